"""Which feed-forward neurons an answer comes from: integrated gradients of its probability.

A neuron is an input of the output projection, so that in gated feed-forwards it is the product of gate and up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editors.asking.calls import PromptPositions
from editors.asking.tokens import continuation_of, encode_rows, pad_right
from editors.errors import InvalidRequest
from editors.mechanics.answers import at_positions
from editors.mechanics.suffix import suffix_of
from editors.mechanics.trace import trace
from editors.model import EditableModel

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float

#: Points of all answers that are run together.
ROWS_PER_PASS = 2048


def answer_ids(model: EditableModel, prompt: str, answer: str) -> list[int]:
    """Token ids of an answer behind a prompt."""
    row = encode_rows(model.tokenizer, [prompt], [continuation_of(answer)])[0]
    return row.ids[row.start :]


@torch.no_grad()
def current_answer(model: EditableModel, prompt: str, max_new_tokens: int = 12) -> str:
    """What the weights as they stand say behind a prompt, greedily, up to the first token that ends an answer.

    Token by token: text of broken bytes does not tokenise back into what was said.
    """
    start = encode_rows(model.tokenizer, [prompt], [""])[0].ids
    ids = torch.tensor([start], device=model.device)
    for _ in range(max_new_tokens):
        with at_positions(model, _positions(len(start) - 1, ids.shape[1], 1, ids.device)):
            final = trace(model, ids, torch.ones_like(ids)).final
        assert final is not None
        token = model.head(final[:, -1]).argmax(-1)
        if bool(model.stops[int(token)]):
            break
        ids = torch.cat([ids, token[None]], dim=1)
    return str(model.tokenizer.decode(ids[0, len(start) :], skip_special_tokens=True)).strip()


def neuron_attributions(
    model: EditableModel, prompts: Sequence[str], answer_token_ids: Sequence[Sequence[int]], points: int = 20
) -> Float[Tensor, "prompts layers d_mlp"]:
    """Attr_i = w_i / m * sum_{k=1..m} dP(y | (k/m) w) / dw_i for every neuron of every layer (Dai et al. 2022, equation 2).

    w are the activations of one layer where the token y is to be predicted; they alone are scaled, other layers follow.
    A longer answer's attributions are the sum over its tokens, each behind the right ones before it.

    All points of all tokens of all prompts are one batch. What stands before the predicted token, and the layers below the
    scaled one, do not depend on the scaling: they run once, and a point costs one token in the layers above. The gradient
    at the activations is that at the block's output through the output projection.

    Args:
        answer_token_ids: of each prompt's answer, as `answer_ids` gives them.
        points: m.

    Raises:
        ValueError: an answer without tokens, or not one answer for each prompt.
        InvalidRequest: a prompt and its answer are longer than the model's context.
    """
    if len(prompts) != len(answer_token_ids) or not all(len(ids) for ids in answer_token_ids):
        raise ValueError(f"{len(prompts)} prompts with {len(answer_token_ids)} answers; each needs one of a token or more")
    rows: list[list[int]] = []
    owners: list[int] = []
    for number, (row, answer) in enumerate(
        zip(encode_rows(model.tokenizer, prompts, [""] * len(prompts)), answer_token_ids, strict=True)
    ):
        rows += [[*row.ids, *answer[:j]] for j in range(len(answer))]
        owners += [number] * len(answer)
    limit = int(getattr(model.hf.config, "max_position_embeddings", 0))
    longest = max(range(len(rows)), key=lambda i: len(rows[i]))
    if limit and len(rows[longest]) > limit:
        raise InvalidRequest(
            f"prompt {prompts[owners[longest]][:60]!r} and its answer have {len(rows[longest])} tokens, {model.name} reads "
            f"{limit}; shorten it"
        )
    tokens = [token for answer in answer_token_ids for token in answer]
    depth, d_mlp = model.anatomy.num_layers(model.hf), model.weight(model.anatomy.mlp_out, 0).shape[1]
    out = torch.zeros(len(prompts), depth, d_mlp)
    size = max(1, ROWS_PER_PASS // points)
    for at in range(0, len(rows), size):
        part = slice(at, at + size)
        found = _attributions(model, rows[part], tokens[part], points)
        out.index_add_(0, torch.tensor(owners[part]), found.float().cpu())
    return out


def _attributions(model: EditableModel, rows: Sequence[list[int]], tokens: Sequence[int], points: int) -> Tensor:
    """(rows, layers, d_mlp): each row's last token predicts its token."""
    anatomy, depth = model.anatomy, model.anatomy.num_layers(model.hf)
    keys = [anatomy.mlp_out.format(layer=layer) for layer in range(depth)]
    blocks = [anatomy.block.format(layer=layer) for layer in range(depth)]
    ids, mask = pad_right(rows, model.pad_id)
    seen = trace(model, ids, mask, inputs=keys, outputs=[*keys, *blocks], calls=blocks[1:], use_cache=True)
    device = seen.outputs[blocks[0]].device
    ends = mask.sum(1).to(device)
    each, token = torch.arange(len(rows), device=device), torch.tensor(tokens, device=device)
    share = torch.arange(1, points + 1, device=device) / points
    norm, found = model.hf.get_submodule(anatomy.final_norm), []
    for layer in range(depth):
        activations = seen.inputs[keys[layer]][each, ends - 1]
        weight = model.weight(anatomy.mlp_out, layer)
        # What is missing from the output where the activations are scaled; the blocks above see nothing else of it.
        missing = (activations @ weight.t())[:, None] * (share.to(activations) - 1)[:, None]
        change = missing.flatten(0, 1).detach().requires_grad_(True)
        written = seen.outputs[keys[layer]][each, ends - 1]
        suffix = suffix_of(model, seen, layer, ends - 1, ends, written).select(each.repeat_interleave(points))
        with torch.enable_grad():
            likely = model.head(norm(suffix.run(change)[:, 0])).float().softmax(-1)
            picked = likely.gather(1, token.repeat_interleave(points)[:, None])
            (gradient,) = torch.autograd.grad(picked.sum(), change)
        found.append(activations * (gradient.view(len(rows), points, -1).mean(1) @ weight))
    return torch.stack(found, dim=1)


def _positions(last_prompt: int, tokens: int, rows: int, device: torch.device) -> PromptPositions:
    place = torch.arange(tokens, device=device)
    return PromptPositions(torch.full((rows,), last_prompt, device=device), (place <= last_prompt).expand(rows, -1))
