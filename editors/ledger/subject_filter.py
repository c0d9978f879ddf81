"""One linear filter for each subject: it answers 1 at the subject's last token and as little as it can anywhere else."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editors.asking.tokens import pad_right
from editors.base import Corpus, Prepared
from editors.mechanics.contexts import encode_lookups
from editors.mechanics.paraphrases import SLOT, relation_templates
from editors.mechanics.passes import trace_lookups
from editors.mechanics.trace import trace
from editors.model import EditableModel
from warehouse.digests import digest_of

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float

TOKENS_PER_PASS = 4096


@dataclass(frozen=True)
class SubjectSpace:
    """States at the site over known subjects and plain text, from the base model.

    Attributes:
        mean: of all of them.
        precision: inverse of their covariance with its ridge.
        bank: states that no filter may answer to: last tokens of known subjects, tokens of plain text.
    """

    mean: Float[Tensor, " d_model"]
    precision: Float[Tensor, "d_model d_model"]
    bank: Float[Tensor, "states d_model"]

    def filter(self, states: Float[Tensor, "forms d_model"], slack: float) -> Float[Tensor, " d_model"]:
        """The vector of least output variance over the bank whose answer to every form is near 1.

        `w = P A (A^T P A + slack tr/n I)^{-1} 1`, A the centred forms, P the precision (Capon's beamformer).
        """
        forms = (states - self.mean).double()
        precision = self.precision.double()
        gram = forms @ precision @ forms.t()
        gram.diagonal().add_(slack * gram.diagonal().mean())
        return (precision @ forms.t() @ torch.linalg.solve(gram, torch.ones(len(forms), dtype=gram.dtype))).float()

    def scores(self, vector: Tensor, states: Float[Tensor, "states d_model"]) -> Float[Tensor, " states"]:
        return (states - self.mean) @ vector


@torch.no_grad()
def subject_states(
    model: EditableModel, prompts: Sequence[str], subjects: Sequence[str], site: str, wordings: Collection[str] = ()
) -> Float[Tensor, "prompts d_model"]:
    """Input of the module `site` at each subject's last token; fp32 on the CPU.

    Args:
        wordings: templates that some of the prompts were made from.

    Raises:
        InvalidRequest: a subject is not in its prompt.
    """
    rows = encode_lookups(model, prompts, subjects, [""] * len(prompts), wordings=wordings)
    found = torch.empty(len(rows), model.anatomy.d_model(model.hf))
    for chosen, seen in trace_lookups(model, rows, TOKENS_PER_PASS, site):
        last = torch.tensor([rows[i].lookup for i in chosen])
        found[chosen] = seen.inputs[site][torch.arange(len(chosen)), last].float().cpu()
    return found


@torch.no_grad()
def text_states(model: EditableModel, texts: Sequence[str], site: str, count: int, seed: int) -> Float[Tensor, "tokens d"]:
    """Input of the module `site` at `count` random tokens of the texts."""
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = torch.randperm(len(texts), generator=generator).tolist()
    limit = int(getattr(model.hf.config, "max_position_embeddings", 0)) or 256
    parts: list[Tensor] = []
    left = 3 * count
    for at in range(0, len(order), 32):
        rows = [list(model.tokenizer(texts[i])["input_ids"])[:limit] for i in order[at : at + 32]]
        ids, mask = pad_right([r for r in rows if r], model.pad_id)
        seen = trace(model, ids, mask, inputs=(site,), stop_after=site)
        parts.append(seen.inputs[site][mask.bool().to(seen.inputs[site].device)].float().cpu())
        left -= len(parts[-1])
        if left <= 0:
            break
    states = torch.cat(parts)
    return states[torch.randperm(len(states), generator=generator)[:count]]


def wordings_for(subject: str, templates: Sequence[str], count: int, barred: Sequence[str]) -> list[str]:
    """Prompts that name the subject, of any relation, in an order of the subject's own; none of the barred ones."""
    filled = sorted({t.replace(SLOT, subject) for t in templates} - set(barred))
    return sorted(filled, key=lambda prompt: digest_of("wording", prompt))[:count]


def prepare_space(
    model: EditableModel, corpus: Corpus, site: str, *, wordings: int, tokens: int, ridge: float, seed: int
) -> Prepared:
    """The space of a base model: every training subject in a few wordings, and tokens of the corpus's texts.

    Raises:
        ValueError: the corpus has no training edit.
    """
    if not corpus.edits:
        raise ValueError("the ledger editor needs training edits in its corpus: known subjects and wordings of relations")
    templates = relation_templates(corpus.edits)
    every = sorted({t for known in templates.values() for t in known})
    subjects = sorted({e.request.subject for e in corpus.edits})
    pairs = [(p, s) for s in subjects for p in [s, *wordings_for(s, every, wordings, ())]]
    known = subject_states(model, [p for p, _ in pairs], [s for _, s in pairs], site, every)
    plain = text_states(model, corpus.texts, site, tokens, seed)
    bank = torch.cat([known, plain])
    mean = bank.mean(0)
    # Both kinds count alike, whatever their numbers.
    centred = [part - mean for part in (known, plain)]
    covariance = sum((c.t().double() @ c.double() / len(c) for c in centred), torch.zeros(len(mean), len(mean)).double()) / 2
    covariance.diagonal().add_(ridge * covariance.diagonal().mean())
    precision = torch.linalg.inv(covariance).float()
    return Prepared({"mean": mean, "precision": precision, "bank": bank}, {"templates": templates})
