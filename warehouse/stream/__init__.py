"""Wikidata's live stream: events over HTTP, the documents they ask for, recordings and their replay. No store."""
