"""Numbers that every locate-and-edit method shares; each method's own configuration adds its layers and weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from editors.base import EditorConfig
from warehouse.digests import digest_of

#: (number of contexts, tokens in each): one group of sampled prefixes.
ContextGroup = tuple[PositiveInt, PositiveInt]


def _ascending(layers: tuple[int, ...]) -> tuple[int, ...]:
    if not layers or list(layers) != sorted(set(layers)):
        raise ValueError(f"layers must be given in ascending order, without repeats; found {layers}")
    return layers


#: Layers that share one update, lowest first.
AscendingLayers = Annotated[tuple[NonNegativeInt, ...], AfterValidator(_ascending)]


class LocateEditConfig(EditorConfig):
    """Contexts, second moment and value optimisation; defaults are the published ones where there are any.

    Attributes:
        contexts: groups of sampled prefixes beside the bare prompt.
        key_average: `flat` weighs all contexts alike (ROME); `grouped` first averages in each group (MEMIT), so that
            the bare prompt counts as much as a whole group.
        key_forms: `averaged` is the published single key. `each` writes the value at three keys: bare prompt, average
            over the contexts, and the subject alone at the start of a text, where its first token (no space before it)
            and its key are others; short subjects need it.
        second_moment_tokens: how many corpus tokens the second moment is taken over.
        second_moment_ridge: added to its diagonal, as a share of the mean diagonal entry.
        value_steps, value_lr, value_decay, kl_weight, clamp_norm: the optimisation of the value;
            `clamp_norm` bounds the change by this multiple of the base value's norm.
        stop_loss: an edit may stop when its whole objective is below this; None: no bound on the loss.
        stop_margin: and when every target token leads by this many logits in every context; None: not asked.
        include_stop: also ask that the answer ends: mass of all tokens that end an answer, behind the target.
        kept_prompts: relation -> prompt with `{}` for the subject. Of the subject's other relations, the
            `kept_count` that the base answers with most confidence keep their next-token distribution,
            with weight `kept_weight` (0: the published form, without this term).
        anchor_norm: rescale each solved value to the mean norm of base values at its site (NAS, arXiv 2602.02543).
        max_relative_norm: an update larger than this share of the weight's Frobenius norm is refused.
    """

    contexts: tuple[ContextGroup, ...] = ((5, 10),)
    key_average: Literal["flat", "grouped"] = "flat"
    key_forms: Literal["averaged", "each"] = "averaged"
    second_moment_tokens: PositiveInt = 20_000
    second_moment_ridge: PositiveFloat = 1e-4
    value_steps: PositiveInt = 25
    value_lr: PositiveFloat = 0.5
    value_decay: NonNegativeFloat = 0.5
    kl_weight: NonNegativeFloat = 0.0625
    clamp_norm: PositiveFloat = 4.0
    stop_loss: PositiveFloat | None = 0.05
    stop_margin: float | None = None
    include_stop: bool = True
    kept_prompts: dict[str, str] = Field(default_factory=dict)
    kept_count: PositiveInt = 5
    kept_weight: NonNegativeFloat = 0.0
    anchor_norm: bool = False
    max_relative_norm: Annotated[float, Field(gt=0)] = 0.1

    def preparation_digest(self, layers: tuple[int, ...]) -> str:
        """Digest of what the preparation depends on: a changed weight, step or clamp does not make it again."""
        return digest_of("locate-edit", self.seed, layers, self.contexts, self.second_moment_tokens, self.second_moment_ridge)
