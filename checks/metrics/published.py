"""The scores that papers print: does the new answer beat the old one under teacher forcing.

Source: Meng et al. 2022 (ROME, arXiv:2202.05262, section 3.4): efficacy, paraphrase and neighbourhood score (ES, PS, NS). The
paper writes P[new] > P[old]; its code (kmeng01/memit, experiments/py/eval_utils_counterfact.py `test_batch_prediction` and
experiments/summarize.py, commit ef6f4cd) compares the mean negative log-probability per answer token, and so do we, for the
printed tables are the code's. A sum favours the shorter answer, a mean the longer one, whose later tokens follow from its
first: what greedy decoding answers can lose to a longer old answer. A tie is no win. The mean over prompts is taken within an
edit first, then over edits, as there. Read under the final model, as SRR is.

Two things differ. CounterFact's neighbours all have the edit's old answer; ours have answers of their own, which are what the
new answer must not beat. A neighbour whose answer is the new one is left out, one that `f_0` does not know is not. As there,
the rest of the vocabulary and the end of an answer play no part, so these scores mostly run above exact match. They never gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from checks.errors import EvaluationError
from checks.metrics.outcome import rate_by_edit, share_score
from checks.predictor import Answer, Question, Scorer
from warehouse.records import EditRequest, Probe, Score

SLICES = ("efficacy", "paraphrase", "specificity")


@dataclass(frozen=True)
class Duel:
    """Two answers to one prompt: one of `right` must be likelier than `wrong`. `edit`: whose it is."""

    edit: str
    slice: str
    prompt: str
    right: tuple[str, ...]
    wrong: str


def duels_of(request: EditRequest, probes: Sequence[Probe]) -> list[Duel]:
    """The duels of an edit: its prompt and its `rephrase` probes new against old, its `neighbourhood` probes own against new.

    None where the request knows no old answer, or where it is the new one.
    """
    new, old = request.target_new, request.target_true
    if old is None or old == new:
        return []
    asked = [("efficacy", request.prompt)] + [("paraphrase", p.prompt) for p in probes if p.kind == "rephrase"]
    duels = [Duel(request.request_id, name, prompt, (new,), old) for name, prompt in asked]
    return duels + [
        Duel(request.request_id, "specificity", p.prompt, p.targets, new)
        for p in probes
        if p.kind == "neighbourhood" and new not in p.targets
    ]


def duel_questions(duels: Sequence[Duel]) -> list[Question]:
    """Both answers of every duel, each question once."""
    return list(dict.fromkeys(Question(d.prompt, answer) for d in duels for answer in (*d.right, d.wrong)))


def won(predictor: Scorer, duels: Sequence[Duel]) -> dict[Duel, bool]:
    """Which duels the right answer wins; all in one `score` call, each question once.

    Raises:
        EvaluationError: the predictor gave another number of answers than there were questions, or does not say how many
            tokens an answer has.
    """
    questions = duel_questions(duels)
    answers = predictor.score(questions) if questions else []
    if len(answers) != len(questions):
        raise EvaluationError(f"model {predictor.digest[:12]} gave {len(answers)} answers to {len(questions)} questions")
    mean = {q: _mean_log_prob(q, a) for q, a in zip(questions, answers, strict=True)}
    # A broken model's NaN is greater than nothing, and nothing is greater than it: it wins no duel.
    return {d: any(mean[Question(d.prompt, a)] > mean[Question(d.prompt, d.wrong)] for a in d.right) for d in duels}


def published(after: Mapping[Duel, bool], before: Mapping[Duel, bool], seed: int = 0) -> list[Score]:
    """Efficacy, paraphrase and specificity of the edited model; slice `X:before` is what `f_0` gets on the same duels.

    `n` counts edits. Specificity says nothing without `f_0`'s: a model that never knew the neighbours loses those duels anyway.
    """
    scores = []
    for name in SLICES:
        for suffix, found in (("", after), (":before", before)):
            duels = [duel for duel in after if duel.slice == name]
            scores.append(_rate(name + suffix, [(duel.edit, found[duel]) for duel in duels], seed))
    return scores


def _rate(slice_name: str, wins: Sequence[tuple[str, bool]], seed: int) -> Score:
    edits = [edit for edit, _ in wins]
    if len(set(edits)) == len(edits):
        # One prompt an edit is a proportion, as SR is.
        return share_score("published", slice_name, [win for _, win in wins])
    return rate_by_edit("published", slice_name, [float(win) for _, win in wins], edits, seed)


def _mean_log_prob(question: Question, answer: Answer) -> float:
    if answer.num_tokens < 1:
        raise EvaluationError(f"the answer {question.answer!r} to {question.prompt!r} came without its number of tokens")
    return answer.log_prob / answer.num_tokens
