"""Check requests before an edit and models after it: metrics, intervals and gates that know no editor."""
