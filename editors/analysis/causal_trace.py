"""Causal tracing: which hidden state, restored, brings an answer back after its subject was blurred."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from editors.asking.tokens import continuation_of
from editors.errors import InvalidRequest
from editors.mechanics.contexts import LookupRow, encode_lookups
from editors.mechanics.trace import trace
from editors.model import EditableModel

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float

#: What is restored: the whole state after a block, or what the feed-forward or the attention adds.
Site = Literal["block", "mlp", "attention"]
SITES: tuple[Site, ...] = ("block", "mlp", "attention")
#: Rows of one pass, in tokens.
TOKENS_PER_PASS = 4096
#: Layers restored together for `mlp` and `attention`, as a share of the depth: ROME restores 10 of 48.
WINDOW_SHARE = 10 / 48


@dataclass(frozen=True)
class CausalTrace:
    """Probabilities of the answer, all of its tokens under teacher forcing.

    Attributes:
        tokens: the prompt's tokens as text; `subject` is the range of those of the subject.
        clean, corrupted: with the prompt as it is, and with noise on the subject's embeddings.
        restored: site -> (tokens, layers) with that state put back; averaged over the noise samples.
        window: layers restored together at `mlp` and `attention`.
    """

    prompt: str
    answer: str
    tokens: tuple[str, ...]
    subject: range
    clean: float
    corrupted: float
    restored: dict[str, Float[Tensor, "tokens layers"]]
    window: int

    def effect(self, site: Site) -> Float[Tensor, "tokens layers"]:
        """Indirect effect: how much of the probability the state brings back."""
        return self.restored[site] - self.corrupted

    def peak(self, site: Site) -> tuple[int, int]:
        """(token, layer) of the largest indirect effect."""
        effect = self.effect(site)
        place = int(effect.argmax())
        return place // effect.shape[1], place % effect.shape[1]


@torch.no_grad()
def causal_trace(
    model: EditableModel,
    prompt: str,
    subject: str,
    answer: str,
    *,
    noise: float = 3.0,
    samples: int = 10,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CausalTrace:
    """Trace one fact through the model as it stands.

    Meng et al. 2022 (ROME), section 2.1: Gaussian noise of `noise` times the standard deviation of the embeddings on
    the subject's tokens, then the clean state put back at one token and layer (a window of layers for the two parts).

    Args:
        samples: draws of the noise; every state is restored under each of them.

    Raises:
        InvalidRequest: the subject is not in the prompt, or the answer is empty.
    """
    if not answer.strip():
        raise InvalidRequest(f"causal tracing of {prompt!r} needs an answer; it is empty")
    row = encode_lookups(model, [prompt], [subject], [continuation_of(answer)])[0]
    embedding = model.hf.get_submodule(model.anatomy.embedding)
    # Gemma's embedding scales what it gives out.
    spread = float(model.parameter(f"{model.anatomy.embedding}.weight").float().std()) * float(
        getattr(embedding, "embed_scale", 1.0)
    )
    place = range(row.first, row.lookup + 1)
    generator = torch.Generator().manual_seed(seed)
    width = model.anatomy.d_model(model.hf)
    draws = noise * spread * torch.randn(samples, len(place), width, generator=generator).to(model.device)
    tracer = _Tracer(model, row, place, draws)
    depth = model.anatomy.num_layers(model.hf)
    window = max(1, round(depth * WINDOW_SHARE))
    restored: dict[str, Tensor] = {}
    for number, site in enumerate(SITES):
        columns = []
        for layer in range(depth):
            if progress is not None:
                progress(number * depth + layer, len(SITES) * depth)
            half = window // 2
            layers = [layer] if site == "block" else [i for i in range(layer - half, layer - half + window) if 0 <= i < depth]
            columns.append(tracer.restored(site, layers))
        restored[site] = torch.stack(columns, 1).cpu()
    tokens = tuple(str(model.tokenizer.decode([i])) for i in row.ids[: row.start])
    return CausalTrace(prompt, answer, tokens, place, tracer.clean(), float(tracer.corrupted().mean()), restored, window)


class _Tracer:
    """Rows of one prompt under each draw of the noise, with clean states to put back."""

    def __init__(self, model: EditableModel, row: LookupRow, subject: range, draws: Tensor) -> None:
        self.model, self.row, self.subject, self.draws = model, row, subject, draws
        anatomy, depth = model.anatomy, model.anatomy.num_layers(model.hf)
        self.paths = {"block": anatomy.block, "mlp": anatomy.mlp, "attention": anatomy.attention}
        ids = torch.tensor([row.ids])
        wanted = [path.format(layer=i) for path in self.paths.values() for i in range(depth)]
        self.states = trace(model, ids, torch.ones_like(ids), outputs=wanted)

    def clean(self) -> float:
        assert self.states.final is not None
        return float(self._probability(self.states.final)[0])

    def corrupted(self) -> Tensor:
        """(samples,)"""
        with self._noise(len(self.draws)):
            return self._run(len(self.draws))

    def restored(self, site: Site, layers: list[int]) -> Tensor:
        """(tokens,) probability with the clean state of `site` in `layers` at each token, mean over the draws."""
        tokens, samples = self.row.start, len(self.draws)
        at_once = max(1, TOKENS_PER_PASS // (len(self.row.ids) * samples))
        found = []
        for start in range(0, tokens, at_once):
            chosen = torch.arange(start, min(start + at_once, tokens)).repeat_interleave(samples)
            with self._noise(len(chosen)), self._put_back(site, layers, chosen):
                found.append(self._run(len(chosen)).view(-1, samples).mean(1))
        return torch.cat(found)

    @contextmanager
    def _noise(self, rows: int) -> Iterator[None]:
        """Noise on the subject's embeddings; draws follow each other in the rows."""
        draws = self.draws.repeat(rows // len(self.draws), 1, 1)

        def blur(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
            blurred = output.clone()
            blurred[:, self.subject.start : self.subject.stop] += draws.to(output.dtype)
            return blurred

        undo = self.model.hook(self.model.anatomy.embedding, blur)
        try:
            yield
        finally:
            undo()

    @contextmanager
    def _put_back(self, site: Site, layers: list[int], tokens: Tensor) -> Iterator[None]:
        every = torch.arange(len(tokens))
        with ExitStack() as stack:
            for layer in layers:
                path = self.paths[site].format(layer=layer)
                clean = self.states.outputs[path][0]

                def restore(_module: Any, _inputs: Any, output: Any, clean: Tensor = clean) -> Any:
                    state = (output[0] if isinstance(output, tuple) else output).clone()
                    state[every, tokens] = clean[tokens]
                    return (state, *output[1:]) if isinstance(output, tuple) else state

                stack.callback(self.model.hook(path, restore))
            yield

    def _run(self, rows: int) -> Tensor:
        ids = torch.tensor([self.row.ids], device=self.model.device).expand(rows, -1)
        final = self.model.hf.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return self._probability(final)

    def _probability(self, final: Tensor) -> Tensor:
        """(rows,) product of the answer tokens' probabilities."""
        start, ids = self.row.start, torch.tensor(self.row.ids, device=final.device)
        logp = self.model.head(final[:, start - 1 : -1]).float().log_softmax(-1)
        return logp.gather(2, ids[start:].expand(len(final), -1)[..., None])[..., 0].sum(1).exp()
