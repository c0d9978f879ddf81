"""A tokenizer as a `.gguf` says it: tokens, their kinds, merges or scores, and the name of the rule that splits a text first.

llama.cpp has its own tokenizers and is told which by name. Names are given by what a tokenizer does (its `tokenizer.json`), so
one that does something else is refused, not split otherwise in silence.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from editors.errors import UnsupportedModel

SPACE = "▁"
DIGIT = r"\p{N}"
#: GPT-2's own expression, which `tokenizers` has built in.
WORDS = "GPT-2"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
QWEN_2 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{{0}}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{{0}}|\p{{N}}{{1}}"
_CASED_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = _CASED.replace("{0}", "").replace("{1}", "") + _CASED_REST
GPT_4O = _CASED.replace("{0}", _ENDINGS + "?").replace("{1}", "{1,3}") + _CASED_REST
#: (expressions, one after another; whole words of the vocabulary go before merges) -> llama.cpp's name.
SPLITS = {
    ((WORDS,), False): "gpt-2",
    ((DIGIT, WORDS), False): "smollm",
    ((LLAMA_3,), True): "llama-bpe",
    ((LLAMA_3,), False): "dbrx",
    ((QWEN_2,), False): "qwen2",
    ((TEKKEN,), True): "tekken",
    ((GPT_4O,), False): "gpt-4o",
}


@dataclass(frozen=True)
class Vocabulary:
    """What of a tokenizer goes into the header. `scores` of pieces, or `merges` of bytes; `prefixed`: a space is put before."""

    model: str
    split: str
    tokens: list[str]
    kinds: list[TokenType]
    merges: list[str]
    scores: list[float]
    prefixed: bool


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """A tokenizer's vocabulary with one token for each of the embedding's `rows`.

    Raises:
        UnsupportedModel: it is of no kind that llama.cpp has, or splits a text as none of its rules does.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedModel(
            f"the tokenizer is a {type(tokenizer).__name__} without tokenizer.json; save it as a fast tokenizer first"
        )
    state = json.loads(backend.to_str())
    core = state["model"]
    if core["type"] != "BPE":
        raise UnsupportedModel(
            f"the tokenizer is of the kind {core['type']}; a .gguf is written with BPE over bytes or with byte fallback; "
            "export with --format hf"
        )
    tokens, kinds = _tokens(state, rows)
    merges = [merge.split(" ", 1) if isinstance(merge, str) else list(merge) for merge in core["merges"]]
    if core.get("byte_fallback"):
        prefixed = _prefixed(state)
        return Vocabulary("llama", "default", tokens, kinds, [], _scores(core["vocab"], merges, rows), prefixed)
    return Vocabulary("gpt2", _split(state), tokens, kinds, [" ".join(pair) for pair in merges], [], False)


def describe_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int, ends: Sequence[int]) -> None:
    """Write a tokenizer into the header.

    Args:
        rows: of the embedding.
        ends: ids of the tokens that end an answer, the tokenizer's own end token first.

    Raises:
        UnsupportedModel: see `vocabulary_of`; also more end tokens than a header has words for.
    """
    # A header names three tokens that end an answer: of the text, of a turn, of a message.
    named = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    if len(ends) > len(named):
        raise UnsupportedModel(
            f"an answer ends at any of {len(ends)} tokens (eos_token_id in generation_config.json), and a .gguf names "
            f"{len(named)}: at the others llama.cpp would go on; leave {len(named)} there, or export with --format hf"
        )
    found = vocabulary_of(tokenizer, rows)
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.split)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.kinds)
    if found.scores:
        writer.add_token_scores(found.scores)
        writer.add_add_space_prefix(found.prefixed)
    else:
        writer.add_token_merges(found.merges)
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if isinstance(token, int):
            add(token)
    for add, token in zip(named, ends, strict=False):
        add(token)
    asked = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and asked[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and asked[-1] == tokenizer.eos_token_id)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        writer.add_chat_template([{"name": name, "template": text} for name, text in template.items()])
    elif template:
        writer.add_chat_template(template)


def _tokens(state: dict[str, Any], rows: int) -> tuple[list[str], list[TokenType]]:
    """Tokens by id, and their kinds; rows of the embedding that no token has get a name of their own."""
    core = state["model"]
    tokens = [f"[PAD{i}]" for i in range(rows)]
    kinds = [TokenType.UNUSED] * rows
    for token, i in core["vocab"].items():
        tokens[i] = token
        is_byte = core.get("byte_fallback") and len(token) == 6 and token.startswith("<0x")
        kinds[i] = TokenType.BYTE if is_byte else TokenType.UNKNOWN if token == core.get("unk_token") else TokenType.NORMAL
    for added in state["added_tokens"]:
        tokens[added["id"]] = added["content"]
        if kinds[added["id"]] != TokenType.UNKNOWN:
            kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    return tokens, kinds


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The parts of a normaliser or pre-tokenizer, one after another."""
    if part is None:
        return []
    return list(part[key]) if part["type"] == "Sequence" else [part]


def _split(state: dict[str, Any]) -> str:
    """llama.cpp's name for how a text is split before bytes are merged."""
    expressions: list[str] = []
    for step in _steps(state["pre_tokenizer"], "pretokenizers"):
        match step:
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use}:
                expressions += [WORDS] if use else []
            case {"type": "Digits", "individual_digits": True}:
                expressions.append(DIGIT)
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
                expressions.append(pattern)
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}:
                expressions.append(pattern)
            case _:
                expressions.append(json.dumps(step))
    odd = [s["type"] for s in _steps(state["normalizer"], "normalizers") if s["type"] != "NFC"]
    name = SPLITS.get((tuple(expressions), bool(state["model"].get("ignore_merges"))))
    if name is None or odd:
        what = f"is normalised by {', '.join(odd)}" if odd else f"is split by {' then '.join(expressions) or 'nothing'}"
        raise UnsupportedModel(
            f"in this tokenizer a text {what}, for which llama.cpp has no name that is known here "
            f"({', '.join(sorted(set(SPLITS.values())))}): it would see other tokens; export with --format hf"
        )
    return name


def _prefixed(state: dict[str, Any]) -> bool:
    """Is a space put before a text? Of pieces with byte fallback, whose spaces are written as letters."""
    prefixed, spaces, odd = False, False, []
    for step in _steps(state["normalizer"], "normalizers"):
        match step:
            case {"type": "Prepend", "prepend": "▁"}:
                prefixed = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                spaces = True
            case _:
                odd.append(step["type"])
    for step in _steps(state["pre_tokenizer"], "pretokenizers"):
        match step:
            case {"type": "Metaspace", "split": False, "prepend_scheme": scheme}:
                spaces, prefixed = True, scheme != "never"
            case {"type": "Split", "pattern": {"String": " "}} if spaces:
                # No space is left to split at.
                continue
            case _:
                odd.append(step["type"])
    if odd or not spaces:
        raise UnsupportedModel(
            f"this tokenizer has byte fallback and {', '.join(odd) or 'no letter for spaces'}, which llama.cpp does not do: it "
            "would see other tokens; export with --format hf"
        )
    return prefixed


def _scores(vocab: dict[str, int], merges: list[list[str]], rows: int) -> list[float]:
    """A score for each token, so that the best pair to join by score is the first to join by merges: minus its place.

    Raises:
        UnsupportedModel: two ways to one token have other merges between them, which no score says.
    """
    scores, place, last = [0.0] * rows, -1, None
    for left, right in merges:
        joined = vocab[left + right]
        if joined != last:
            if scores[joined]:
                raise UnsupportedModel(
                    f"the tokenizer joins {left + right!r} in two ways with other merges between them; llama.cpp has one rank "
                    "for a token; export with --format hf"
                )
            place, last = place + 1, joined
        scores[joined] = -float(place + 1)
    return scores
