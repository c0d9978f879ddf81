"""A night, step by step: what comes in, what is edited, how it is measured, judged, published or refused."""
