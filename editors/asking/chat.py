"""The chat template of a tokenizer, as the texts around a question."""

from __future__ import annotations

import logging

from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
_MARK = "QUESTION-STANDS-HERE"


def chat_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """What the chat template writes before a user's question, and between it and the assistant's answer.

    None where the tokenizer has no template, or one that changes what it is given. The start token is left out where the
    tokenizer puts it before every text anyway.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    turn = [{"role": "user", "content": _MARK}]
    try:
        text = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program of the checkpoint's and may raise anything
        log.warning("the chat template of this tokenizer cannot be used: %s", error)
        return None
    before, mark, after = text.partition(_MARK)
    if not mark or _MARK in after:
        return None
    begin = tokenizer.bos_token
    ids = tokenizer("a")["input_ids"]
    if isinstance(begin, str) and before.startswith(begin) and ids and ids[0] == tokenizer.bos_token_id:
        before = before.removeprefix(begin)
    return before, after
