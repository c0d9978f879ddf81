"""After a rejection: which edits broke the gate, and the candidate without them."""
