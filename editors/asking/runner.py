"""The plain model as a runner: packed teacher-forced batches, logits only where they are read, left-padded generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TopKLogitsWarper,
)

from editors.asking.calls import Call, Generation, LogitBatch, PromptPositions
from editors.asking.prefixes import prefix_groups, shared_cache
from editors.asking.tokens import EncodedRow, encode_prompts, encode_rows, pad_right, said_text
from editors.draws import seeded
from editors.errors import EditRefused
from editors.precision import WIDER

#: Padded tokens in one forward pass. On a CPU the feed-forward activations of a pass must stay in its cache (512 tokens
#: scored four times as many probes a second as 8,192); a GPU wants large passes.
TOKENS_PER_BATCH = {"cpu": 512}
TOKENS_PER_GPU_BATCH = 16384
#: Tokens of whole rows for each token that a pass may run: behind a prefix its keys are laid before every row, layer by layer.
WHOLE_PER_TOKEN = 16
#: Logits held at once (fp32: 4 bytes each).
LOGITS_PER_BATCH = 2**25
PROMPTS_PER_GENERATION = 64
#: transformers draws from this many of the likeliest tokens where a call leaves it open.
DRAWN_FROM = 50


class Wearer(Protocol):
    """What a runner needs of the model that it runs: `EditableModel`, which imports this module.

    `positions` is set for the length of each pass, for the hooks that patches have put on the model.
    """

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pad_id: int
    positions: PromptPositions | None

    @property
    def device(self) -> torch.device: ...

    @property
    def head(self) -> Callable[[torch.Tensor], torch.Tensor]: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def end_ids(self) -> Sequence[int]: ...

    @property
    def shares_prefixes(self) -> bool: ...


class PlainRunner:
    """Runs the Hugging Face model itself, with the hooks that patches have put on it."""

    def __init__(self, model: Wearer) -> None:
        self._model = model

    def logits(self, call: Call) -> Iterator[LogitBatch]:
        """Batches sorted by length, so that little is padded; rows longer than the context lose their left end.

        What many prompts begin with runs once, where every hook on the model allows it (`EditableModel.hook`).
        """
        model = self._model
        rows = encode_rows(model.tokenizer, call.prompts, call.continuations)
        limit = int(getattr(model.hf.config, "max_position_embeddings", 0)) or max((len(r.ids) for r in rows), default=1)
        groups, others = prefix_groups(rows, limit) if model.shares_prefixes else ([], list(range(len(rows))))
        for group in groups:
            yield from self._packed(rows, group.rows, limit, self._prefix(rows[group.rows[0]].ids[: group.length]))
        yield from self._packed(rows, others, limit)

    def _prefix(self, ids: Sequence[int]) -> Cache:
        """Run the first tokens of many rows, with the hooks of patches; the last prompt token of each is still to come."""
        model, device = self._model, self._model.device
        tokens = torch.tensor([list(ids)], device=device)
        model.positions = PromptPositions(torch.tensor([len(ids)], device=device), torch.ones_like(tokens).bool())
        try:
            # Without the configuration, which would have layers with a sliding window forget what lies behind it.
            filled = model.hf.base_model(input_ids=tokens, past_key_values=DynamicCache(), use_cache=True).past_key_values
        finally:
            model.positions = None
        return shared_cache(filled)

    def _packed(
        self, rows: Sequence[EncodedRow], chosen: Sequence[int], limit: int, prefix: Cache | None = None
    ) -> Iterator[LogitBatch]:
        """The chosen rows in passes of like length; of rows behind a prefix, what follows it."""
        model = self._model
        vocab, before = model.vocab_size, prefix.get_seq_length() if prefix is not None else 0
        order = sorted(chosen, key=lambda i: len(rows[i].ids))
        most_tokens = TOKENS_PER_BATCH.get(model.device.type, TOKENS_PER_GPU_BATCH)
        at = 0
        while at < len(order):
            batch: list[int] = []
            answers = 0
            while at < len(order):
                row = rows[order[at]]
                width, count = min(len(row.ids), limit) - before, len(row.ids) - row.start + 1
                size = len(batch) + 1
                full = size * width > most_tokens or (answers + count) * vocab > LOGITS_PER_BATCH
                full |= size * (before + width) > WHOLE_PER_TOKEN * most_tokens
                if batch and full:
                    break
                batch.append(order[at])
                answers += count
                at += 1
            yield self._pass([rows[i] for i in batch], batch, limit, before, prefix)

    def _pass(
        self, rows: Sequence[EncodedRow], numbers: list[int], limit: int, before: int, prefix: Cache | None
    ) -> LogitBatch:
        """One forward pass over the rows, without the `before` tokens that the prefix holds."""
        model, device = self._model, self._model.device
        cut = [before or max(0, len(row.ids) - limit) for row in rows]
        ids, mask = pad_right([row.ids[c:] for row, c in zip(rows, cut, strict=True)], model.pad_id)
        # Where the continuation alone exceeds the context, its first tokens are only read, not predicted.
        begins = [max(row.start, c + 1) for row, c in zip(rows, cut, strict=True)]
        starts = torch.tensor([b - c for b, c in zip(begins, cut, strict=True)])
        ends = mask.sum(1)
        place = torch.arange(ids.shape[1])
        wanted = (place >= starts[:, None] - 1) & (place < ends[:, None])
        # In tokens of the whole row, the prefix among them: hooks such as GRACE's act on the prompt's last token.
        whole = torch.arange(before + ids.shape[1])
        model.positions = PromptPositions(
            (before + starts - 1).to(device), (whole < before + starts[:, None]).to(device), before
        )
        try:
            hidden = model.hf.base_model(
                input_ids=ids.to(device),
                attention_mask=torch.nn.functional.pad(mask, (before, 0), value=1).to(device),
                past_key_values=prefix,
                use_cache=False,
            ).last_hidden_state
        finally:
            model.positions = None
        logits = model.head(hidden[wanted.to(device)])
        return LogitBatch(numbers, [row.ids[b:] for row, b in zip(rows, begins, strict=True)], logits)

    def generate(self, prompts: Sequence[str], options: Generation) -> list[str]:
        """Continuations of the prompts; what the checkpoint ships for generation, but its end tokens, has no part in it."""
        model, tokenizer = self._model, self._model.tokenizer
        device = model.device
        texts: list[str] = [""] * len(prompts)
        encoded = encode_prompts(tokenizer, prompts)
        order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
        context = int(getattr(model.hf.config, "max_position_embeddings", 0))
        for at in range(0, len(order), PROMPTS_PER_GENERATION):
            chosen = order[at : at + PROMPTS_PER_GENERATION]
            longest = max(len(encoded[i]) for i in chosen)
            if context:
                longest = min(longest, max(1, context - options.max_new_tokens))
            ids = torch.full((len(chosen), longest), model.pad_id)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(chosen):
                kept = encoded[i][-longest:]
                ids[row, longest - len(kept) :] = torch.tensor(kept)
                mask[row, longest - len(kept) :] = 1
            hf: Any = model.hf  # transformers types `generate` for fewer models than have it
            last = torch.full((len(chosen),), longest - 1, device=device)
            model.positions = PromptPositions(last, mask.bool().to(device))
            with seeded(options.seed), plain_generation(model):
                try:
                    out = hf.generate(
                        input_ids=ids.to(device),
                        attention_mask=mask.to(device),
                        max_new_tokens=options.max_new_tokens,
                        do_sample=options.sample and device.type == "cpu",
                        use_cache=options.use_cache,
                        pad_token_id=model.pad_id,
                        logits_processor=_processors(hf.dtype, device) if options.sample else None,
                    )
                finally:
                    model.positions = None
            for i, tokens in zip(chosen, out[:, longest:].tolist(), strict=True):
                texts[i] = said_text(tokenizer, encoded[i], tokens)
        return texts


class _Drawable(LogitsProcessor):
    """Refuse logits that nothing can be drawn from; torch would say less, and on a GPU nothing could run afterwards."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not bool(scores.isfinite().all()):
            raise EditRefused(f"logits to sample a continuation from are not finite in float16; {WIDER}")
        return scores


class _DrawnOnCpu(LogitsProcessor):
    """Draw the next token as transformers does, on the CPU, and leave it as the only one: draws of devices differ."""

    _likeliest = TopKLogitsWarper(DRAWN_FROM)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        chances = self._likeliest(input_ids, scores).softmax(-1).cpu()
        drawn = torch.multinomial(chances, 1).to(scores.device)
        return torch.full_like(scores, float("-inf")).scatter(1, drawn, 0.0)


def _processors(dtype: torch.dtype, device: torch.device) -> list[LogitsProcessor]:
    """What stands between logits and a drawn token, beside transformers' own."""
    checks: list[LogitsProcessor] = [_Drawable()] if dtype == torch.float16 else []
    return checks if device.type == "cpu" else [*checks, _DrawnOnCpu()]


@contextmanager
def plain_generation(model: Wearer) -> Iterator[None]:
    """Generation with no setting of the checkpoint's but its end tokens: no penalty, beam, ban, forced or least length.

    Replaced whole, not setting by setting: transformers fills what a call leaves open from the checkpoint, and every
    release brings more of them. The checkpoint's own come back, so that an export carries them as they came.
    """
    hf: Any = model.hf
    shipped, hf.generation_config = hf.generation_config, GenerationConfig(eos_token_id=list(model.end_ids) or None)
    try:
        yield
    finally:
        hf.generation_config = shipped
