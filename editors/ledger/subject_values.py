"""One value for all edits of a subject, from the base model alone: its edits hold, its other relations stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from editors.asking.tokens import continuation_of
from editors.mechanics.contexts import encode_namings
from editors.mechanics.paraphrases import SLOT, paraphrases_of
from editors.model import EditableModel
from editors.targets.beginnings import Beginnings
from editors.targets.leads import LeadConfig, solve_leads
from editors.targets.objective import EncodedEdit, Kind, build_objective
from editors.targets.values import descend_values
from warehouse.digests import digest_of
from warehouse.records import EditRequest

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float


#: A prompt, what must follow it, and why it is asked.
Text = tuple[str, str, Kind]
#: Wordings of a relation that the base is asked to find out whether it knows the fact.
KNOWN_WORDINGS = 3


class SubjectValueConfig(LeadConfig):
    """Attributes:
    value_solver: `leads` takes the smallest change with which the answers lead (`targets/leads.py`), and where that is not
        to be had, what `adam` takes: the descent of the published methods on the mean NLL and the KL terms, with their
        numbers (`value_lr`, `value_steps`, `stop_margin`, `kl_weight`, `kept_weight`). It takes seven times as many passes.
    paraphrases: other wordings of each fact (from the training edits, never the request's own rephrases) in the
        value's loss.
    kept_wordings: how many wordings of each of the subject's other relations are offered to the term of kept relations;
        it takes the `kept_count` that the base answers with most confidence.
    spare_old: of relations that are not known of the subject, offer only prompts that the base answers otherwise than
        the edited ones. Relations overlap (seat and place of founding, citizenship and country of origin): holding a
        guessed old answer in one wording while changing it in another teaches the value to tell wordings apart, and the
        edit no longer carries over to a new one.
    known_confidence: a relation is known where the request names it (`other_relations`) and the base gives one first
        token in all wordings asked (`KNOWN_WORDINGS`), each with at least this probability. Its prompts are kept whatever
        they answer. Confidence alone does not do: a base is as sure of many a guess.
    known_kept: how many wordings of a known relation are offered. Where edits are stated in several forms, the relation is
        asked as it is stated in each; what two forms agree on is known, however sure, and offered in those that do: a prompt in
        one form keeps no other.
    """

    value_solver: Literal["leads", "adam"] = "leads"
    paraphrases: NonNegativeInt = 4
    kept_wordings: NonNegativeInt = 1
    spare_old: bool = True
    known_confidence: float = Field(default=0.95, gt=0, le=1)
    known_kept: PositiveInt = 2


def solve_subject(
    model: EditableModel,
    requests: Sequence[EditRequest],
    templates: Mapping[str, Sequence[str]],
    layer: int,
    site_path: str,
    config: SubjectValueConfig,
    stated: Mapping[str, Sequence[str]] | None = None,
    beginnings: Beginnings | None = None,
) -> tuple[Float[Tensor, " d_model"], bool]:
    """The change at the subject's last token, wherever it is named, that makes all of its edits hold together; fp32 on the CPU.

    One subject at a time: what else is edited cannot show in it, not even through padding. The model must stand at its
    base.

    Args:
        requests: edits of one subject, at most one of each relation, in the order of their relations.
        templates: relation -> wordings with `{}` for the subject.
        stated: relation -> those that edits are stated in, one for each form.
        beginnings: what the rows of other subjects began with.

    Returns:
        The change, and whether every target token leads in every wording.

    Raises:
        EditRefused: the objective became infinite or NaN.
    """
    name = ", ".join(r.request_id for r in requests)
    texts = _texts(model, requests, templates, config, stated)
    beginnings = beginnings or Beginnings()
    if config.value_solver == "leads":
        encoded = [_encode(model, requests, texts, templates)]
        objective, _ = build_objective(model, encoded, layer, site_path, config, beginnings)
        found = solve_leads(objective.in_parts(), config, name)
        if found.margin > 0:
            return found.change.cpu(), True
    if config.kl_weight:
        texts.append((requests[0].subject, "", Kind.ESSENCE))
    encoded = [_encode(model, requests, texts, templates)]
    objective, base = build_objective(model, encoded, layer, site_path, config, beginnings)
    deltas, _, _, margins = descend_values(objective.in_parts(), base, config, [name])
    return deltas[0].detach().float().cpu(), margins[0] > 0


def group_by_subject(
    active: Mapping[str, Sequence[EditRequest]], fresh: Sequence[EditRequest]
) -> dict[str, tuple[EditRequest, ...]]:
    """The subjects of the fresh requests with all their edits: an edit of a relation that has one takes its place."""
    groups: dict[str, dict[str, EditRequest]] = {}
    for request in fresh:
        group = groups.setdefault(request.subject, {r.relation: r for r in active.get(request.subject, ())})
        group[request.relation] = request
    # By relation: a subject's edits come in any order.
    return {subject: tuple(group[relation] for relation in sorted(group)) for subject, group in sorted(groups.items())}


def without(active: Mapping[str, Sequence[EditRequest]], request_ids: Sequence[str]) -> dict[str, tuple[EditRequest, ...]]:
    """The subjects of the retracted edits with what is left of theirs, perhaps nothing.

    Raises:
        ValueError: an edit is not active.
    """
    wanted = set(request_ids)
    missing = wanted - {r.request_id for group in active.values() for r in group}
    if missing:
        raise ValueError(f"no active edit {', '.join(sorted(missing))}; it was superseded, retracted or never made")
    return {
        subject: tuple(r for r in group if r.request_id not in wanted)
        for subject, group in sorted(active.items())
        if any(r.request_id in wanted for r in group)
    }


def facts_of(requests: Sequence[EditRequest]) -> list[object]:
    """What a value depends on, for a digest; identifiers are no part of it."""
    return [
        (r.subject, r.relation, r.prompt, r.target_new, r.rephrases, r.other_relations, r.also, r.wordings, r.carry_over)
        for r in requests
    ]


def _texts(
    model: EditableModel,
    requests: Sequence[EditRequest],
    templates: Mapping[str, Sequence[str]],
    config: SubjectValueConfig,
    stated: Mapping[str, Sequence[str]] | None,
) -> list[Text]:
    texts: list[Text] = []
    for request in requests:
        wordings = [request.prompt, *paraphrases_of(request, templates, config.paraphrases)]
        texts += [(w, continuation_of(request.target_new), Kind.TARGET) for w in wordings]
    if config.kept_weight:
        texts += [(p, "", Kind.KEPT) for p in kept_prompts(model, requests, templates, config, stated)]
    return texts


def _encode(
    model: EditableModel, requests: Sequence[EditRequest], texts: Sequence[Text], templates: Mapping[str, Sequence[str]]
) -> EncodedEdit:
    wordings = {wording for group in templates.values() for wording in group}
    subjects = [requests[0].subject] * len(texts)
    rows = encode_namings(model, [t for t, _, _ in texts], subjects, [c for _, c, _ in texts], wordings)
    return EncodedEdit(tuple(rows), tuple(k for _, _, k in texts))


def kept_prompts(
    model: EditableModel,
    requests: Sequence[EditRequest],
    templates: Mapping[str, Sequence[str]],
    config: SubjectValueConfig,
    stated: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """The `kept_count` prompts about the subject's other relations that count most: known ones, then by the base's confidence.

    None of them is a request's rephrase, whatever relation it looks like. They are chosen here, from one pass that the
    runner shares out, and not among the rows of the objective: with examples before each question those would be three
    times as many as the edit's own.
    """
    subject, edited, barred = requests[0].subject, {r.relation for r in requests}, {p for r in requests for p in r.measured}
    held = {relation for r in requests for relation in r.other_relations}
    forms = {relation: wordings for relation, wordings in (stated or {}).items() if relation in held and len(wordings) > 1}
    asked: dict[str, list[str]] = {}
    for relation, wordings in sorted(templates.items()):
        if relation not in edited:
            count = max(config.kept_wordings, KNOWN_WORDINGS) if relation in held else config.kept_wordings
            chosen = forms.get(relation) or sorted(wordings, key=lambda t: digest_of("kept", t))[:count]
            asked[relation] = [p for t in chosen if (p := t.replace(SLOT, subject)) not in barred]
    if not any(asked.values()):
        return []
    edits = [r.prompt for r in requests]
    log_probs = model.next_token_log_probs([*edits, *(p for prompts in asked.values() for p in prompts)])
    first, sure = log_probs.argmax(-1), np.exp(log_probs.max(-1))
    old, at = set(first[: len(edits)].tolist()), len(edits)
    weight: dict[str, tuple[bool, float]] = {}
    for relation, prompts in asked.items():
        own = slice(at, at + len(prompts))
        at += len(prompts)
        if not prompts:
            continue
        said, shares = first[own].tolist(), sure[own].tolist()
        if relation in forms:
            kept = _agreed(said)
        else:
            is_known = relation in held and len(set(said)) == 1 and min(shares) >= config.known_confidence
            kept = list(range(len(prompts)))[: config.known_kept] if is_known else []
        guesses = [i for i in range(len(prompts))[: config.kept_wordings] if not config.spare_old or said[i] not in old]
        weight |= {prompts[i]: (bool(kept), shares[i]) for i in kept or guesses}
    return sorted(weight, key=lambda prompt: weight[prompt], reverse=True)[: config.kept_count]


def _agreed(said: Sequence[int]) -> list[int]:
    """Which forms give the first token that most of them give; none where no two agree."""
    answer, votes = Counter(said).most_common(1)[0]
    return [i for i, token in enumerate(said) if token == answer] if votes > 1 else []
