"""Entity documents of Wikidata and dumps of them: read and compared. Nothing here knows a store."""
