"""ICE: the new fact is stated before every prompt that names its subject."""

from __future__ import annotations

from typing import final

from pydantic import NonNegativeFloat, PositiveInt, field_validator

from editors.base import Editor, EditorCard, EditorConfig, Prepared
from editors.errors import InvalidRequest
from editors.mechanics.answers import check_request
from editors.model import EditableModel
from editors.patches.prompt import PromptPatch, StatedFact
from warehouse.records import EditBatch, EditRequest

#: What a template may hold. Filled in by replacement: labels may hold braces.
FIELDS = ("{prompt}", "{target}")


class StatementConfig(EditorConfig):
    """How a fact is stated, and how much the statement counts.

    Attributes:
        fact, retraction: wording; each holds `{prompt}` and `{target}`.
        contrast: weight of what the model says without the statement; 0 reads the statement alone, as published.
    """

    fact: str = "New fact: {prompt} {target}."
    retraction: str = "Retracted: {prompt} {target}."
    contrast: NonNegativeFloat = 0.0

    @field_validator("fact", "retraction")
    @classmethod
    def _has_fields(cls, text: str) -> str:
        if any(field not in text for field in FIELDS):
            raise ValueError(f"template {text!r} needs {' and '.join(FIELDS)}")
        return text


class InContextConfig(StatementConfig):
    """`limit`: facts shown before one prompt, at most."""

    limit: PositiveInt = 1


@final
class InContextEditing(Editor[InContextConfig]):
    """Zhang et al. 2024 (KnowEdit), after Zheng et al. 2023 without demonstrations.

    A retraction states the old object; where the request does not give it, the new one is stated as a fact.
    """

    card = EditorCard(
        name="ice",
        title="ICE",
        family="in_context",
        patch_kind="prompt",
        paper="arXiv:2401.01286",
        code="zjunlp/EasyEdit easyeditor/models/ike (use_icl_examples: false)",
        differs=(
            "A fact is stated only where the prompt names its subject; published ICE states it everywhere. The answer can be "
            "set against the one without the statement (context-aware decoding, arXiv:2305.14739)."
        ),
    )

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> PromptPatch:
        """See `Editor.edit`."""
        config = self.config
        facts = [StatedFact(r.subject, f"{r.subject}|{r.relation}", stated_text(r, config)) for r in batch.requests]
        return PromptPatch(facts, (), config.limit, config.contrast)


def stated_text(request: EditRequest, config: StatementConfig) -> str:
    """A request as one sentence.

    Raises:
        InvalidRequest: it cannot be applied, or its target has line breaks.
    """
    check_request(request)
    template, target = config.fact, request.target_new
    if request.kind == "erase" and request.target_true:
        template, target = config.retraction, request.target_true
    target = target.strip()
    if "\n" in target:
        raise InvalidRequest(f"request {request.request_id}: a target with line breaks cannot be stated in one line")
    # "Washington, D.C." already has the full stop that the template would add.
    stated = template.replace("{target}.", "{target}") if target.endswith(".") else template
    # The prompt goes in last, and once: it may itself hold a word in braces.
    before, _, after = stated.partition("{prompt}")
    return before.replace("{target}", target) + request.prompt + after.replace("{target}", target)
