"""The runner of stated facts: prompts in scope are read behind a prefix, and may be set against what they say without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from editors.asking.calls import Call, Generation, LogitBatch, PromptPositions, Runner
from editors.asking.tokens import encode_prompts, said_text
from editors.model import EditableModel

#: Rows of a contrasted call held at once: each keeps its plain logits until the stated ones are there.
ROWS_PER_PASS = 64


class Statements(Protocol):
    """What is stated before which prompt; decided once for each prompt, from the prompt alone.

    `contrast` is the weight of what the model says without the statement.
    """

    contrast: float

    def prefixes(self, prompts: Sequence[str]) -> list[str]:
        """The text to put before each prompt; empty where no fact is in scope."""
        ...


def contrasted(stated: Tensor, plain: Tensor, weight: float) -> Tensor:
    """`(1 + a) l(y | fact, x) - a l(y | x)`: context-aware decoding (Shi et al. 2023, arXiv:2305.14739, equation 1).

    What the model believes anyway counts less, what the statement adds counts more.
    """
    return (1 + weight) * stated.float().log_softmax(-1) - weight * plain.float().log_softmax(-1)


class InContextRunner:
    """Prefixes prompts in scope; a prompt with no stated fact passes as it is, so locality is exact there.

    Contrasted generations run the model itself: runners below this one are passed over.
    """

    def __init__(self, inner: Runner, model: EditableModel, store: Statements) -> None:
        self._inner, self._model, self._store = inner, model, store

    def logits(self, call: Call) -> Iterator[LogitBatch]:
        prefixes = self._store.prefixes(call.prompts)
        if not self._store.contrast:
            prompts = tuple(prefix + prompt for prefix, prompt in zip(prefixes, call.prompts, strict=True))
            yield from self._inner.logits(Call(prompts, call.continuations))
            return
        stated = [row for row, prefix in enumerate(prefixes) if prefix]
        passing = [row for row, prefix in enumerate(prefixes) if not prefix]
        if passing:
            yield from _renumbered(self._inner.logits(call.select(passing)), passing)
        for at in range(0, len(stated), ROWS_PER_PASS):
            rows = stated[at : at + ROWS_PER_PASS]
            bare = call.select(rows)
            prompts = tuple(prefixes[row] + call.prompts[row] for row in rows)
            yield from _renumbered(self._against(bare, Call(prompts, bare.continuations)), rows)

    def _against(self, bare: Call, stated: Call) -> Iterator[LogitBatch]:
        plain: dict[int, Tensor] = {}
        for batch in self._inner.logits(bare):
            plain |= dict(zip(batch.rows, batch.logits.split([len(ids) + 1 for ids in batch.ids]), strict=True))
        for batch in self._inner.logits(stated):
            # A row whose left end is cut off by the context may have lost labels in one of the two.
            tails = [plain[row][-(len(ids) + 1) :] for row, ids in zip(batch.rows, batch.ids, strict=True)]
            yield LogitBatch(batch.rows, batch.ids, contrasted(batch.logits, torch.cat(tails), self._store.contrast))

    def generate(self, prompts: Sequence[str], options: Generation) -> list[str]:
        prefixes = self._store.prefixes(prompts)
        if not self._store.contrast:
            return self._inner.generate([f + p for f, p in zip(prefixes, prompts, strict=True)], options)
        texts = [""] * len(prompts)
        passing = [row for row, prefix in enumerate(prefixes) if not prefix]
        if passing:
            said = self._inner.generate([prompts[row] for row in passing], options)
            for row, text in zip(passing, said, strict=True):
                texts[row] = text
        stated = [row for row, prefix in enumerate(prefixes) if prefix]
        for at in range(0, len(stated), ROWS_PER_PASS):
            rows = stated[at : at + ROWS_PER_PASS]
            said = self._write([prefixes[row] + prompts[row] for row in rows], [prompts[row] for row in rows], options)
            for row, text in zip(rows, said, strict=True):
                texts[row] = text
        return texts

    def _write(self, stated: Sequence[str], bare: Sequence[str], options: Generation) -> list[str]:
        """Token by token, both contexts of each row going on with the same token."""
        model, count = self._model, len(stated)
        context = int(getattr(model.hf.config, "max_position_embeddings", 0))
        encoded = encode_prompts(model.tokenizer, [*stated, *bare])
        ends = torch.tensor(model.end_ids, dtype=torch.long, device=model.device)
        if context:
            encoded = [ids[-max(1, context - options.max_new_tokens) :] for ids in encoded]
        ids, mask = _pad_left(encoded, model.pad_id)
        ids, mask = ids.to(model.device), mask.to(model.device)
        generator = torch.Generator().manual_seed(options.seed) if options.sample else None
        written: list[Tensor] = []
        running = torch.ones(count, dtype=torch.bool, device=ids.device)
        last = torch.full((2 * count,), ids.shape[1] - 1, device=ids.device)
        model.positions = PromptPositions(last, mask.bool())
        cache: Any = None
        try:
            for _ in range(options.max_new_tokens):
                fresh = ids if cache is None else ids[:, -1:]
                places = (mask.cumsum(1) - 1).clamp(min=0)[:, -fresh.shape[1] :]
                out = model.hf(
                    input_ids=fresh,
                    attention_mask=mask,
                    position_ids=places,
                    past_key_values=cache,
                    use_cache=options.use_cache,
                )
                cache = out.past_key_values if options.use_cache else None
                scores = contrasted(out.logits[:count, -1], out.logits[count:, -1], self._store.contrast)
                token = scores.argmax(-1) if generator is None else _drawn(scores, generator)
                token = torch.where(running, token, model.pad_id)
                written.append(token)
                running = running & ~torch.isin(token, ends)
                if not bool(running.any()):
                    break
                ids = torch.cat([ids, token.repeat(2)[:, None]], 1)
                mask = torch.cat([mask, mask.new_ones(2 * count, 1)], 1)
        finally:
            model.positions = None
        rows = torch.stack(written, 1).tolist() if written else [[]] * count
        return [said_text(model.tokenizer, head, row) for head, row in zip(encoded[count:], rows, strict=True)]


def _drawn(scores: Tensor, generator: torch.Generator) -> Tensor:
    return torch.multinomial(scores.softmax(-1).cpu(), 1, generator=generator)[:, 0].to(scores.device)


def _renumbered(batches: Iterator[LogitBatch], rows: Sequence[int]) -> Iterator[LogitBatch]:
    """Batches of a selected call, with the rows of the call that it was selected from."""
    for batch in batches:
        yield LogitBatch([rows[row] for row in batch.rows], batch.ids, batch.logits)


def _pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (longest - len(row)) + list(row) for row in rows])
    return ids, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
