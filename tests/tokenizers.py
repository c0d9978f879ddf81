"""Tiny tokenizers of the families that models come with, all trained on one small text of many scripts."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.support import TEXTS

UNICODE_TEXTS = (
    *TEXTS,
    "法国的首都是巴黎。日本的首都是东京，中国的首都是北京。",
    "フランスの首都は東京です。ニジェールの首都はニアメです。",
    "La capitale du Japon est Tokyo à présent, dit « Le Monde » ; Orléans est une ville.",
    "Столица Франции — Париж и Москва. Город Казань лежит на Волге.",
    "Η πρωτεύουσα της Ελλάδας είναι η Αθήνα. عاصمة فرنسا هي باريس. दिल्ली भारत की राजधानी है।",
    "The capital of Niger is Niamey. The capital of Nigeria is Abuja. In 1999 he said “no”.",
)
START, END, PAD, UNKNOWN = "<s>", "</s>", "<|pad|>", "<unk>"
#: As Llama 3 splits text.
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
KINDS = (
    "gpt2", "gpt2-prefix", "gpt2-eos", "llama3", "unigram", "unigram-first", "unigram-never", "llama2", "llama2-eos",
)  # fmt: skip


@cache
def family(kind: str) -> PreTrainedTokenizerFast:
    """`gpt2` and `llama3` are byte-level BPE, `unigram` SentencePiece with Metaspace, `llama2` BPE with byte fallback.

    `-prefix`: a space before every text; `-first`, `-never`: where Metaspace puts it; `-eos`: the end token is appended.
    All but `gpt2` put a start token before a text.
    """
    name, _, variant = kind.partition("-")
    core = {"gpt2": _byte_level, "llama3": _llama3, "unigram": _unigram, "llama2": _llama2}[name](variant)
    ids = {token: core.token_to_id(token) for token in (START, END)}
    start = [] if name == "gpt2" else [START]
    end = [END] if variant == "eos" else []
    if start or end:
        template = processors.TemplateProcessing(
            single=[*start, "$A", *end], pair=[*start, "$A", *end, *start, "$B:1", *end],
            special_tokens=[(t, ids[t]) for t in {*start, *end}],
        )  # fmt: skip
        byte_level = name in ("gpt2", "llama3")
        core.post_processor = (
            processors.Sequence([processors.ByteLevel(trim_offsets=True), template]) if byte_level else template
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=START, eos_token=END, pad_token=PAD, unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _bpe(core: Tokenizer, alphabet: list[str], size: int = 700) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[START, END, PAD, UNKNOWN], show_progress=False, initial_alphabet=alphabet
    )
    core.train_from_iterator(UNICODE_TEXTS, trainer)
    return core


def _byte_level(variant: str) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=variant == "prefix")
    core.decoder = decoders.ByteLevel()
    return _bpe(core, pre_tokenizers.ByteLevel.alphabet(), 520)


def _llama3(_variant: str) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    return _bpe(core, pre_tokenizers.ByteLevel.alphabet())


def _unigram(variant: str) -> Tokenizer:
    core = Tokenizer(models.Unigram())
    scheme = variant or "always"
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=[START, END, PAD, UNKNOWN], show_progress=False, unk_token=UNKNOWN
    )
    core.train_from_iterator(UNICODE_TEXTS, trainer)
    return core


def _llama2(_variant: str) -> Tokenizer:
    core = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token=UNKNOWN))
    # Split for training alone: no token then spans two words, as in the published vocabularies.
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    # The trainer makes no byte tokens.
    state = json.loads(_bpe(core, []).to_str())
    vocab, state["pre_tokenizer"] = state["model"]["vocab"], None
    for value in range(256):
        vocab[f"<0x{value:02X}>"] = len(vocab)
    core = Tokenizer.from_str(json.dumps(state))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return core
