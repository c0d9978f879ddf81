"""How a model is asked: calls and who runs them, tokens of subjects and answers, when an answer is right."""
