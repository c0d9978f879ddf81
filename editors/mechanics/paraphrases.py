"""Other wordings of a request: those that it brings, or those of its relation in the training edits; never its rephrases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from editors.asking.subjects import SLOT, subject_places
from editors.base import TrainingEdit
from warehouse.digests import digest_of
from warehouse.records import EditRequest


def relation_templates(edits: Sequence[TrainingEdit]) -> dict[str, list[str]]:
    """Relation -> every wording that the training edits have for it, with `{}` for the subject, sorted.

    A wording that holds `{}` itself is left out: it could not be filled.
    """
    found: dict[str, set[str]] = {}
    for edit in edits:
        templates = (_template(prompt, edit.request.subject) for prompt in (edit.request.prompt, *edit.request.rephrases))
        found.setdefault(edit.request.relation, set()).update(t for t in templates if t is not None)
    return {relation: sorted(templates) for relation, templates in sorted(found.items()) if templates}


def stated_templates(edits: Sequence[TrainingEdit]) -> dict[str, list[str]]:
    """Relation -> the wordings that its requests are stated in, one for each form; as `relation_templates`."""
    found: dict[str, dict[str, None]] = {}
    for edit in edits:
        for prompt in (edit.request.prompt, *edit.request.also):
            if (template := _template(prompt, edit.request.subject)) is not None:
                found.setdefault(edit.request.relation, {})[template] = None
    return {relation: list(templates) for relation, templates in sorted(found.items())}


def _template(prompt: str, subject: str) -> str | None:
    """The prompt with `{}` at every naming of the subject."""
    places = subject_places(prompt, subject)
    if not places or SLOT in prompt:
        return None
    ends = [0, *(at + len(subject) for at in places)]
    parts = [prompt[end:at] for end, at in zip(ends, [*places, len(prompt)], strict=True)]
    return SLOT.join(parts)


def in_every_form(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """Each request as it is asked, then once for every other form that it is stated in (`also`), under its own name.

    What trains on rows, or holds an entry for each prompt, takes these for requests: an edit stands in every form.
    """
    stated: list[EditRequest] = []
    for request in requests:
        first = request.model_copy(update={"also": ()}) if request.also else request
        stated += [first, *other_forms(request)]
    return stated


def other_forms(request: EditRequest) -> list[EditRequest]:
    """The request once for every form beside its first (`also`), each stated in that form alone."""
    return [request.model_copy(update={"prompt": prompt, "also": ()}) for prompt in request.also]


def names_of(requests: Sequence[EditRequest]) -> list[str]:
    """Their ids, each once, in order."""
    return list(dict.fromkeys(request.request_id for request in requests))


def paraphrases_of(request: EditRequest, templates: Mapping[str, Sequence[str]], count: int) -> list[str]:
    """At most `count` other prompts for the request's fact: those that it brings, else the relation's in an order of its own.

    The request's own prompt and rephrases are left out: rephrases are what generalization is measured on, and an editor
    that trained on them would measure its training.
    """
    barred = {request.prompt, *request.measured}
    if brought := [prompt for prompt in (*request.also, *request.wordings) if prompt not in barred]:
        return brought[:count]
    filled = [t.replace(SLOT, request.subject) for t in templates.get(request.relation, ())]
    return sorted(set(filled) - barred, key=lambda prompt: digest_of("paraphrase", prompt))[:count]


def other_relations(request: EditRequest, templates: Mapping[str, Sequence[str]], count: int) -> list[str]:
    """At most `count` prompts that ask other relations of the request's subject, one of each relation."""
    others = [relation for relation, wordings in templates.items() if wordings and relation != request.relation]
    chosen = sorted(others, key=lambda relation: digest_of("other-relation", request.subject, relation))[:count]
    return [templates[relation][0].replace(SLOT, request.subject) for relation in chosen]
