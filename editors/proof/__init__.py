"""Evaluation by proof: an answer is a function of the base and of the slots that its text opens, so it is asked once."""
