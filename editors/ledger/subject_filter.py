"""One linear filter for each subject: it answers 1 at the subject's last token and as little as it can anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editors.asking.tokens import pad_right
from editors.base import Corpus, Prepared
from editors.mechanics.contexts import LookupRow, each_naming, encode_namings
from editors.mechanics.paraphrases import SLOT, relation_templates, stated_templates
from editors.mechanics.passes import length_groups
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
def lookup_states(
    model: EditableModel, rows: Sequence[LookupRow], sites: Sequence[str], read: Callable[[int], None] = lambda _: None
) -> dict[str, Float[Tensor, "rows d_model"]]:
    """Input of each site at each row's lookup token, in one pass for all sites; fp32 on the CPU.

    Args:
        sites: module paths, the last one the deepest.
        read: told how many tokens each pass has read.
    """
    width = model.anatomy.d_model(model.hf)
    found = {site: torch.empty(len(rows), width) for site in sites}
    for chosen in length_groups([row.lookup + 1 for row in rows], TOKENS_PER_PASS):
        ids, mask = pad_right([rows[i].ids[: rows[i].lookup + 1] for i in chosen], model.pad_id)
        each, last = torch.arange(len(chosen)), torch.tensor([rows[i].lookup for i in chosen])
        seen = trace(model, ids, mask, inputs=sites, stop_after=sites[-1], kept=partial(_states_at, (each, last)))
        for site in sites:
            found[site][chosen] = seen.inputs[site]
        read(int(mask.sum()))
    return found


def subject_states(
    model: EditableModel, prompts: Sequence[str], subjects: Sequence[str], site: str, wordings: Collection[str] = ()
) -> Float[Tensor, "namings d_model"]:
    """Input of the module `site` at each subject's last token, one state for each naming; fp32 on the CPU.

    Args:
        wordings: templates that some of the prompts were made from.

    Raises:
        InvalidRequest: a subject is not in its prompt.
    """
    rows = each_naming(encode_namings(model, prompts, subjects, [""] * len(prompts), wordings))
    return lookup_states(model, rows, (site,))[site]


@dataclass(frozen=True)
class TextSample:
    """Random tokens of some texts, drawn before a model reads them: `places` count the tokens of all chunks together."""

    chunks: Sequence[Sequence[list[int]]]
    places: Tensor

    @property
    def tokens(self) -> int:
        return sum(len(row) for chunk in self.chunks for row in chunk)


def sample_texts(model: EditableModel, texts: Sequence[str], count: int, seed: int) -> TextSample:
    """`count` random tokens out of three times as many, or of all that the texts have."""
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = torch.randperm(len(texts), generator=generator).tolist()
    limit = int(getattr(model.hf.config, "max_position_embeddings", 0)) or 256
    chunks: list[list[list[int]]] = []
    total = 0
    for at in range(0, len(order), 32):
        rows = [list(model.tokenizer(texts[i])["input_ids"])[:limit] for i in order[at : at + 32]]
        chunks.append([row for row in rows if row])
        total += sum(map(len, rows))
        if total >= 3 * count:
            break
    return TextSample(chunks, torch.randperm(total, generator=generator)[:count])


@torch.no_grad()
def text_states(
    model: EditableModel, sample: TextSample, sites: Sequence[str], read: Callable[[int], None] = lambda _: None
) -> dict[str, Float[Tensor, "tokens d"]]:
    """Input of each site at the sampled tokens; see `lookup_states`."""
    width, at = model.anatomy.d_model(model.hf), 0
    found = {site: torch.empty(len(sample.places), width) for site in sites}
    for chunk in sample.chunks:
        ids, mask = pad_right(chunk, model.pad_id)
        size = int(mask.sum())
        drawn = ((sample.places >= at) & (sample.places < at + size)).nonzero()[:, 0]
        row, place = (part[sample.places[drawn] - at] for part in mask.nonzero(as_tuple=True))
        seen = trace(model, ids, mask, inputs=sites, stop_after=sites[-1], kept=partial(_states_at, (row, place)))
        for site in sites:
            found[site][drawn] = seen.inputs[site]
        at += size
        read(size)
    return found


def _states_at(places: tuple[Tensor, Tensor], states: Tensor) -> Tensor:
    row, token = (place.to(states.device) for place in places)
    return states[row, token].float().cpu()


def wordings_for(subject: str, templates: Sequence[str], count: int, barred: Sequence[str]) -> list[str]:
    """Prompts that name the subject, of any relation, in an order of the subject's own; none of the barred ones."""
    filled = sorted({t.replace(SLOT, subject) for t in templates} - set(barred))
    return sorted(filled, key=lambda prompt: digest_of("wording", prompt))[:count]


@dataclass(frozen=True)
class SpaceTexts:
    """What a space is made of, before a model reads it: training subjects in a few wordings, tokens of plain texts.

    Attributes:
        templates: wordings by relation; `every` has them all.
        stated: the wordings by relation that edits are stated in, one for each form.
    """

    templates: Mapping[str, Sequence[str]]
    stated: Mapping[str, Sequence[str]]
    every: Sequence[str]
    known: Sequence[LookupRow]
    plain: TextSample


def space_texts(model: EditableModel, corpus: Corpus, *, wordings: int, tokens: int, seed: int) -> SpaceTexts:
    """Every training subject in a few wordings, and tokens of the corpus's texts.

    Raises:
        ValueError: the corpus has no training edit.
    """
    if not corpus.edits:
        raise ValueError("the ledger editor needs training edits in its corpus: known subjects and wordings of relations")
    templates = relation_templates(corpus.edits)
    every = sorted({t for known in templates.values() for t in known})
    subjects = sorted({e.request.subject for e in corpus.edits})
    pairs = [(p, s) for s in subjects for p in [s, *wordings_for(s, every, wordings, ())]]
    known = each_naming(encode_namings(model, [p for p, _ in pairs], [s for _, s in pairs], [""] * len(pairs), every))
    return SpaceTexts(templates, stated_templates(corpus.edits), every, known, sample_texts(model, corpus.texts, tokens, seed))


def space_of(known: Float[Tensor, "known d_model"], plain: Float[Tensor, "tokens d_model"], ridge: float) -> SubjectSpace:
    """The space of states at one site."""
    bank = torch.cat([known, plain])
    mean = bank.mean(0)
    # Both kinds count alike, whatever their numbers.
    centred = [part - mean for part in (known, plain)]
    covariance = sum((c.t().double() @ c.double() / len(c) for c in centred), torch.zeros(len(mean), len(mean)).double()) / 2
    covariance.diagonal().add_(ridge * covariance.diagonal().mean())
    return SubjectSpace(mean, torch.linalg.inv(covariance).float(), bank)


def prepare_space(
    model: EditableModel, corpus: Corpus, site: str, *, wordings: int, tokens: int, ridge: float, seed: int
) -> Prepared:
    """The space of a base model at one site; see `space_texts`."""
    texts = space_texts(model, corpus, wordings=wordings, tokens=tokens, seed=seed)
    known, plain = lookup_states(model, texts.known, (site,)), text_states(model, texts.plain, (site,))
    meta = {"templates": dict(texts.templates), "stated": dict(texts.stated)}
    return Prepared(dict(vars(space_of(known[site], plain[site], ridge))), meta)
