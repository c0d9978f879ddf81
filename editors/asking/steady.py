"""Passes of one shape for each length of row, so that an answer is a function of its row and the model's state, to the bit.

A product's last bits change with the number of its rows, so a question that is asked among others answers otherwise in its
last digits than one that is asked alone. Here a row of `n` tokens always runs in a pass of `rows_of_a_pass(n)` rows of just
`n` tokens, filled up where too few are asked: neither what else is asked nor its place in the pass can show. That is so
where products treat their rows alike, which `is_steady` tries on the machine at hand; elsewhere rows run one at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from editors.asking.calls import Call, Generation, LogitBatch, PromptPositions, Runner
from editors.asking.runner import Wearer
from editors.asking.tokens import EncodedRow, encode_rows

#: Tokens of a pass. Few, because a pass that has too few rows is filled up; an accelerator needs more to be busy.
TOKENS_PER_PASS = {"cpu": 128}
TOKENS_PER_GPU_PASS = 2048
#: Tokens of the rows that `is_steady` tries: passes that are full, and ones that leave a few tokens over.
LENGTHS_TRIED = (7, 16, 30)
#: Positions that the head reads at once.
POSITIONS_AT_ONCE = 32


class SteadyRunner:
    """The model with the hooks that patches have put on it, asked in passes of one shape for each length.

    Args:
        plain: what generates.
        alone: run every row in a pass of its own.
        around: entered for each pass, told which rows run; not for what is generated.
    """

    def __init__(
        self,
        model: Wearer,
        plain: Runner,
        *,
        alone: bool = False,
        around: Callable[[Sequence[int]], AbstractContextManager[None]] = lambda _: nullcontext(),
    ) -> None:
        self._model, self._plain, self._alone, self._around = model, plain, alone, around

    def rows_of_a_pass(self, length: int) -> int:
        """Rows of `length` tokens that run together."""
        tokens = TOKENS_PER_PASS.get(self._model.device.type, TOKENS_PER_GPU_PASS)
        return 1 if self._alone else max(1, tokens // length)

    def encode(self, call: Call) -> list[EncodedRow]:
        """The rows of a call as they are run: those longer than the context lose their left end."""
        rows = encode_rows(self._model.tokenizer, call.prompts, call.continuations)
        limit = int(getattr(self._model.hf.config, "max_position_embeddings", 0))
        return [_cut(row, len(row.ids) - limit) if limit and len(row.ids) > limit else row for row in rows]

    def passes(self, rows: Sequence[EncodedRow]) -> Iterator[tuple[list[int], Tensor]]:
        """(numbers of rows, their tokens filled up to the pass's rows) of each pass, by length."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for number, row in enumerate(rows):
            by_length[len(row.ids)].append(number)
        for length, numbers in sorted(by_length.items()):
            size = self.rows_of_a_pass(length)
            for at in range(0, len(numbers), size):
                chosen = numbers[at : at + size]
                ids = [rows[i].ids for i in chosen]
                yield chosen, torch.tensor(ids + ids[-1:] * (size - len(ids)))

    def logits(self, call: Call) -> Iterator[LogitBatch]:
        """See `Runner`."""
        yield from self.logits_of(self.encode(call))

    def logits_of(self, rows: Sequence[EncodedRow]) -> Iterator[LogitBatch]:
        """Of rows that are encoded already."""
        for numbers, ids in self.passes(rows):
            starts = [rows[i].start for i in numbers]
            with self._around(numbers):
                hidden = self._hidden(ids, starts)
            wanted = [hidden[place, start - 1 :] for place, start in enumerate(starts)]
            yield LogitBatch(numbers, [rows[i].ids[rows[i].start :] for i in numbers], self._head(torch.cat(wanted)))

    def _hidden(self, ids: Tensor, starts: Sequence[int]) -> Tensor:
        model, device = self._model, self._model.device
        filled = torch.tensor([*starts, *[starts[-1]] * (len(ids) - len(starts))])
        place = torch.arange(ids.shape[1])
        model.positions = PromptPositions((filled - 1).to(device), (place < filled[:, None]).to(device))
        on_device = ids.to(device)
        try:
            out = model.hf.base_model(input_ids=on_device, attention_mask=torch.ones_like(on_device), use_cache=False)
        finally:
            model.positions = None
        return out.last_hidden_state

    def _head(self, hidden: Tensor) -> Tensor:
        parts = []
        for part in hidden.split(POSITIONS_AT_ONCE):
            whole = torch.nn.functional.pad(part, (0, 0, 0, POSITIONS_AT_ONCE - len(part)))
            parts.append(self._model.head(whole)[: len(part)])
        return torch.cat(parts)

    def generate(self, prompts: Sequence[str], options: Generation) -> list[str]:
        """See `Runner`; free text is generated as ever."""
        return self._plain.generate(prompts, options)


@torch.inference_mode()
def is_steady(model: Wearer, plain: Runner) -> bool:
    """Whether rows of one pass are treated alike here: the same rows in other places, beside others, give the same bits."""
    runner = SteadyRunner(model, plain)
    return all(_places_do_not_show(runner, length, model.vocab_size) for length in LENGTHS_TRIED)


def _places_do_not_show(runner: SteadyRunner, length: int, vocab: int) -> bool:
    size = runner.rows_of_a_pass(length)
    rows = [EncodedRow([(7 * i + 3 * k) % min(vocab, 256) for k in range(length)], length - 2, []) for i in range(2 * size)]
    first = _by_row(runner, rows)
    order = list(range(0, 2 * size, 2))[::-1] + list(range(1, 2 * size, 2))
    again = _by_row(runner, [rows[i] for i in order])
    few = _by_row(runner, rows[:1])
    return all(torch.equal(first[i], again[at]) for at, i in enumerate(order)) and torch.equal(few[0], first[0])


def _by_row(runner: SteadyRunner, rows: Sequence[EncodedRow]) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for batch in runner.logits_of(rows):
        found |= zip(batch.rows, batch.logits.split([len(ids) + 1 for ids in batch.ids]), strict=True)
    return found


def _cut(row: EncodedRow, over: int) -> EncodedRow:
    """The row without its first tokens; where the continuation alone is too long, its first are only read."""
    return EncodedRow(row.ids[over:], max(row.start - over, 1), row.offsets[over:])
