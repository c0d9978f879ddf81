"""A model that is asked in several forms: the rates of each form, and which prompts say nothing.

A prompt in which the base does not answer an old answer that it gives elsewhere says nothing about an edit of it: it would
have been wrong without any edit. Such prompts are not counted, and `not_counted` tells how many they were. An edit's own
prompt always counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from checks.metrics.drawdown import drawdown_of
from checks.metrics.generalization import generalization_rate
from checks.metrics.locality import locality
from checks.metrics.outcome import ProbeOutcome, of_kind, share_score
from warehouse.probe_identity import make_probe
from warehouse.records import Prediction, Probe, Score

#: The form that a prompt stands in.
FormOf = Callable[[str], str]
#: Kinds that ask for an edit's new answer in wordings that are not its own prompt.
REWORDED = ("also", "rephrase", "carry_over")
OWN = ("success", "also")


def unanswered(
    probes: Sequence[Probe],
    old_answers: Mapping[str, Sequence[str]],
    ask_base: Callable[[list[Probe]], Mapping[str, Prediction]],
) -> frozenset[str]:
    """Ids of the probes that say nothing: `f_0` gives the old answer to another prompt of the request, and not to this one.

    Args:
        old_answers: by request id, what was right before the edit.
        ask_base: predictions of `f_0` by probe id.
    """
    old = {
        probe.probe_id: make_probe("obsolete", probe.prompt, old_answers[probe.request_id], probe.request_id)
        for probe in probes
        if probe.kind in ("success", "retain", *REWORDED) and probe.request_id and old_answers.get(probe.request_id)
    }
    right = {key: answer.exact for key, answer in ask_base(list(old.values())).items()}
    known = {probe.request_id for probe in old.values() if right[probe.probe_id]}
    return frozenset(
        probe.probe_id
        for probe in probes
        if probe.kind in REWORDED and probe.request_id in known and not right[old[probe.probe_id].probe_id]
    )


def by_form(outcomes: Sequence[ProbeOutcome], retain: Sequence[ProbeOutcome], form_of: FormOf, seed: int = 0) -> list[Score]:
    """SR, GR, SRR, GRR, locality and drawdown of each form, as slices; `GR` of a form that an edit was not trained on is
    its `carry_over`."""
    scores: list[Score] = []
    for form in sorted({form_of(o.probe.prompt) for o in (*outcomes, *retain)}):
        asked, kept = ([o for o in group if form_of(o.probe.prompt) == form] for group in (outcomes, retain))
        for metric, group, own in (("SR", asked, OWN), ("SRR", kept, (*OWN, "retain"))):
            if found := of_kind(group, *own):
                scores.append(share_score(metric, form, [o.after.exact for o in found]))
        for metric, group in (("GR", asked), ("GRR", kept)):
            if of_kind(group, "rephrase", "carry_over"):
                scores.append(generalization_rate(group, metric, seed, ("rephrase", "carry_over"), form))
        scores += [s.model_copy(update={"slice": f"{s.slice}/{form}"}) for s in locality(asked) if s.n]
        if found := of_kind(asked, "drawdown"):
            scores.append(drawdown_of(f"known/{form}", [o for o in found if o.known_before], seed))
    return scores


def not_counted(probes: Sequence[Probe], aside: Collection[str], form_of: FormOf) -> list[Score]:
    """The share of an edit's reworded prompts that say nothing, of all and of each form."""
    asked = [(form_of(p.prompt), p.probe_id in aside) for p in probes if p.kind in REWORDED]
    scores = []
    for form in ("", *sorted({form for form, _ in asked})):
        own = [out for f, out in asked if form in ("", f)]
        if own:
            scores.append(share_score("not_counted", form, own))
    return scores
