"""Search the numbers of one editor on one model; every trial is kept as soon as it is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from editors.base import Editor
from editors.catalogue import editor_class
from editors.errors import UnsupportedModel
from editors.model import EditableModel
from editors.presets import load_editor, refuse_unfit, sections, space_of
from editors.presets.learnt import learnt_path, read_learnt
from editors.presets.scales import Scales
from tasks.settings import Settings
from tasks.tuning.course import all_known, best_of, most_trials, next_choice
from tasks.tuning.facts import TuningSet
from tasks.tuning.trials import Trial, keep_trial, kept_trials, run_trial, trial_key


class Search:
    """One editor's search: what comes next, and what is best so far.

    Attributes:
        tuning: None where the model knows too few facts: then nothing is tried.
        longest: wall seconds of the longest trial that was measured now.
    """

    def __init__(
        self,
        settings: Settings,
        model: EditableModel,
        name: str,
        scales: Scales,
        tuning: TuningSet | None,
        held: Mapping[str, Any],
        clock: Callable[[], float],
    ) -> None:
        refuse_unfit(name, model)
        self.name, self._asked = editor_class(name).card.name, name
        space = space_of(name)
        if space is None:
            raise UnsupportedModel(
                f"{name} brings no section `auto` in its presets, so nothing is known of what to search; set its numbers as "
                "editor.overrides, or add the section (editors/presets/search_space.py)"
            )
        self._settings, self._model, self._scales, self._held, self._clock = settings, model, scales, held, clock
        self.tuning = tuning
        self.space = space.fitted(len(scales.layers), held)
        self.path = learnt_path(settings.presets, model.base_digest, self.name)
        self._kept = self.path.with_suffix(".trials.jsonl")
        self._trials = kept_trials(self._kept)
        self.measured = 0
        self.longest = 0.0

    @property
    def next(self) -> dict[str, Any] | None:
        """The choice to try next; None where nothing is left or nothing can be tried."""
        return next_choice(self.space, self._known) if self.tuning is not None and self.space.is_searched else None

    @property
    def trials(self) -> list[Trial]:
        """What this search has measured, now and in earlier runs."""
        return list(all_known(self.space, self._known)) if self.tuning is not None and self.space.is_searched else []

    @property
    def most(self) -> int:
        return most_trials(self.space)

    @property
    def best(self) -> Trial | None:
        found = self.trials
        return best_of(found) if found else None

    @property
    def values(self) -> dict[str, Any]:
        """The best numbers so far; scaled ones where none was tried."""
        best = self.best
        return self.values_of(self.space.first) if best is None else dict(best.values)

    def try_next(self) -> Trial:
        """Measure the next choice and keep it."""
        choice = self.next
        assert choice is not None and self.tuning is not None
        values = self.values_of(choice)
        trial = run_trial(
            self._editor(values),
            self._model,
            self.tuning,
            self._settings.preparations,
            choice=choice,
            values=values,
            clock=self._clock,
        )
        keep_trial(self._kept, trial)
        self._trials[trial.key] = trial
        self.measured += 1
        self.longest = max(self.longest, trial.seconds)
        return trial

    def values_of(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration's numbers for a choice; what is held goes over them, and hosts bring their own."""
        found = self.space.numbers(choice, self._scales)
        for field, names_host in self.space.hosts.items():
            host = {**_default(self._asked), **self._held}[names_host]
            found[field] = read_learnt(learnt_path(self._settings.presets, self._model.base_digest, host))
        return {**found, **self._held}

    def _editor(self, values: Mapping[str, Any]) -> Editor:
        # Without presets found before: a search ends where it ends, whatever an earlier one found.
        return load_editor(self._asked, self._model, {"seed": self._settings.seed, **values})

    def _known(self, choice: dict[str, Any]) -> Trial | None:
        assert self.tuning is not None
        found = self._trials.get(trial_key(self._editor(self.values_of(choice)), self._model, self.tuning))
        # The same numbers may have been measured for another space, with other fields in its choices.
        return None if found is None else found.model_copy(update={"choice": dict(choice)})


def hosts_of(name: str, held: Mapping[str, Any]) -> list[str]:
    """Editors whose numbers an editor takes for its own: they come first."""
    space = space_of(name)
    return [] if space is None else [str({**_default(name), **held}[field]) for field in space.hosts.values()]


def _default(name: str) -> dict[str, Any]:
    cls = editor_class(name)
    fields = {n: f.default for n, f in cls.config_class.model_fields.items() if not f.is_required()}
    return fields | sections(name).get("default", {})
