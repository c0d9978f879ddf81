"""A question to a model and how the model stands to its answer: the only two shapes that editors and checks share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A prompt and one accepted answer; the answer has no leading space, the prompt no trailing one."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Answer:
    """One teacher-forced pass over `prompt + " " + answer`.

    Attributes:
        exact: greedy decoding from the prompt would give all answer tokens and then stop the entity.
        token_accuracy: share of answer tokens that are the argmax (the softer rate; never gates).
        log_prob: sum of log-probabilities of the answer tokens, in nats.
        margin: smallest logit lead of an answer token over its best rival (negative where the rival wins).
        argmax_text: the argmax at every answer position and the stop position, decoded.
        num_tokens: of the answer; 0: not told, and then nothing can be said of a token's mean log-probability.
    """

    exact: bool
    token_accuracy: float
    log_prob: float
    margin: float
    argmax_text: str
    num_tokens: int = 0
