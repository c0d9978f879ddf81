"""Probe sets, built by SQL from the fact table: the questions that belong to edits, and the standing sets.

One query for each slice; the requests are registered as a frame. Every choice is by hash order under a seed, so the
same facts and requests give the same set in every process.

- A question about locality or drawdown uses template 0, which is trained for every fact, about a slot whose subject
  takes part in no edit.
- A probe's id is the digest of kind, prompt and targets: a prediction can be reused wherever the question comes again.
- A set asks each question once; where two edits could own it, the first does. The intervals of the metrics count
  probes as independent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import pandas as pd

from warehouse.database.connection import Warehouse
from warehouse.digests import digest_of
from warehouse.errors import IntegrityError, NotFound
from warehouse.probe_identity import make_probe, make_probe_set, order_of, probe_set_digest
from warehouse.records import EditRequest, Probe, ProbeKind, ProbeSet
from warehouse.reference.prose import held_text
from warehouse.world.forms import PLAINLY, Asker
from warehouse.world.probe_sql import DRAWDOWN, RESOLVE, SLICES, STAND_INS

log = logging.getLogger(__name__)

#: Most probes of each kind for one request, in each form that its model is asked in (`warehouse.world.forms`). `also` and
#: `carry_over` have as many as the request brings; 0 leaves them out.
PER_REQUEST: dict[ProbeKind, int] = {
    "success": 1, "also": 1, "rephrase": 3, "carry_over": 1, "obsolete": 1, "neighbourhood": 3, "relation_specificity": 2,
    "forgetfulness": 1, "unrelated": 1, "one_hop": 2, "logical": 1, "alias": 2,
}  # fmt: skip
#: Bystanders of a night, however few its edits are: the rules over them are shares, and a share needs a crowd.
BYSTANDERS: dict[ProbeKind, int] = {"neighbourhood": 30, "unrelated": 20}
StandingKind = Literal["drawdown", "retain", "held_text"]


# ---------------------------------------------------------------- builders


def night_counts(num_requests: int) -> dict[ProbeKind, int]:
    """Probes of each kind for one request of a night: so many that a small night asks as many bystanders as a large one."""
    shares = {kind: -(-total // max(num_requests, 1)) for kind, total in BYSTANDERS.items()}
    return {kind: max(count, shares.get(kind, 0)) for kind, count in PER_REQUEST.items()}


def build_edit_probes(
    wh: Warehouse,
    requests: Sequence[EditRequest],
    *,
    excluded_subjects: Collection[str] = frozenset(),
    per_request: Mapping[ProbeKind, int] | None = None,
    least: Mapping[ProbeKind, int] | None = None,
    seed: int = 0,
    name: str = "edits",
    asker: Asker = PLAINLY,
) -> ProbeSet:
    """The questions that tonight's edits must answer, must not disturb, and should carry over to.

    Args:
        excluded_subjects: ids or labels never asked about in `neighbourhood` and `unrelated`: subjects edited on
            earlier nights, subjects of the second moment. Tonight's subjects and targets are added here.
        per_request: most probes of a kind for one request, over `PER_REQUEST`; 0 leaves the kind out.
        least: of all requests together, so many probes of a kind of bystanders, if the store has as many facts: where a
            relation has too few other subjects, facts of any relation stand in for them.
        asker: how the model is asked; bystanders are asked in each form that it is competent in.

    Raises:
        ValueError: `per_request` names a kind that belongs to no edit, or a negative number, or two requests have
            one id.
    """
    counts: dict[ProbeKind, int] = {**PER_REQUEST, **(per_request or {})}
    wrong = [kind for kind, count in counts.items() if kind not in PER_REQUEST or count < 0]
    if wrong:
        raise ValueError(f"per_request {wrong}: counts are >= 0, and for one of {', '.join(PER_REQUEST)}")
    if len({request.request_id for request in requests}) != len(requests):
        raise ValueError("two requests have the same request_id; merge duplicates before probes are built")
    if not requests:
        return make_probe_set(name, ())
    started = time.perf_counter()
    # The order in which a night arrived must not decide who owns a shared question.
    requests = sorted(requests, key=lambda request: request.request_id)
    asked = wh.query(RESOLVE, asked=_request_frame(requests))
    frames = {
        "asked": asked,
        "reworded": _rephrase_frame(requests, asker),
        "in_forms": _form_frame(requests),
        "shut_out": _name_frame([*excluded_subjects, *_involved(asked)]),
    }
    probes: list[Probe] = []
    for kind, count in counts.items():
        if count:
            asked_now = _ask(wh, kind, SLICES[kind], seed, count, frames, asker)
            probes += asked_now + _stand_ins(wh, kind, (least or {}).get(kind, 0), asked_now, requests, seed, frames, asker)
    result = make_probe_set(name, probes)
    seconds = time.perf_counter() - started
    log.info("%d probes for %d requests in %.2f s: %s", len(result.probes), len(requests), seconds, result.digest[:12])
    return result


def standing_probes(
    wh: Warehouse,
    *,
    kind: StandingKind,
    limit: int,
    excluded_subjects: Collection[str] = frozenset(),
    requests: Sequence[EditRequest] = (),
    seed: int = 0,
    asker: Asker = PLAINLY,
) -> ProbeSet:
    """A set that is asked every night; its name is its kind.

    - `drawdown`: facts whose subject takes part in nothing: no edit (`requests`), none of `excluded_subjects`. In several
      forms so many fewer facts are asked.
    - `retain`: of each of `requests` (every edit in force) its own prompt (kind `retain`) and its rephrases (kind
      `rephrase`, at most three), for at most `limit` requests in hash order.
    - `held_text`: paragraphs that no training run has seen; the prompt is the text.

    Raises:
        ValueError: an unknown kind, or a negative limit.
    """
    if limit < 0:
        raise ValueError(f"limit is {limit}; a set cannot have fewer than 0 probes")
    if kind == "held_text":
        return make_probe_set(kind, (make_probe("held_text", text, ()) for text in held_text(limit)))
    if kind == "drawdown":
        involved = _involved(wh.query(RESOLVE, asked=_request_frame(requests))) if requests else []
        frames = {"shut_out": _name_frame([*excluded_subjects, *involved])}
        facts = -(-limit // max(1, len(asker.forms.names)))
        return make_probe_set(kind, _ask(wh, "drawdown", DRAWDOWN, seed, facts, frames, asker))
    if kind != "retain":
        raise ValueError(f"no standing set {kind!r}; there are drawdown, retain, held_text")
    chosen = sorted(requests, key=lambda r: digest_of(seed, "retain", r.request_id))[:limit]
    probes = [make_probe("retain", r.prompt, (r.target_new,), r.request_id) for r in chosen]
    if chosen:
        asked = {"asked": _request_frame(chosen), "reworded": _rephrase_frame(chosen, asker), "in_forms": _form_frame(chosen)}
        for own in ("also", "rephrase", "carry_over"):
            probes += _ask(wh, own, SLICES[own], seed, PER_REQUEST[own], asked, asker)
    return make_probe_set(kind, probes)


def _stand_ins(
    wh: Warehouse,
    kind: ProbeKind,
    least: int,
    asked: Sequence[Probe],
    requests: Sequence[EditRequest],
    seed: int,
    frames: Mapping[str, pd.DataFrame],
    asker: Asker,
) -> list[Probe]:
    """Facts of any relation, shared out among the requests, as far as `asked` falls short of `least`."""
    known = {probe.prompt for probe in asked}
    if len(known) >= least:
        return []
    given = {"seed": str(seed), "kind": kind, "k": least + len(known), "model": asker.forms.model_digest}
    rows = wh.rows(STAND_INS, given, shut_out=frames["shut_out"])
    owners = [request.request_id for request in requests]
    fresh = [
        make_probe(kind, prompt, row["targets"], owners[i % len(owners)])
        for i, row in enumerate(rows)
        for prompt in asker.ask(row["relation"], row["subject"], row["prompt"])
        if prompt not in known
    ]
    return fresh[: least - len(known)]


def _ask(
    wh: Warehouse,
    kind: ProbeKind,
    sql: str,
    seed: int,
    count: int,
    frames: Mapping[str, pd.DataFrame],
    asker: Asker,
) -> list[Probe]:
    """The rows of a query as probes; those that name their fact are asked in every form of the model."""
    given = {"seed": str(seed), "k": count, "model": asker.forms.model_digest}
    # DuckDB refuses a parameter that the statement does not name.
    params = {name: value for name, value in given.items() if f"${name}" in sql}
    rows = wh.rows(sql, params, **{name: frame for name, frame in frames.items() if name in sql})
    return [
        make_probe(kind, prompt, row["targets"], row.get("request_id"))
        for row in rows
        for prompt in (asker.ask(row["relation"], row["subject"], row["prompt"]) if "relation" in row else [row["prompt"]])
    ]


def _involved(asked: pd.DataFrame) -> list[str]:
    """Ids and labels of everything that a request changes or points at; its inverse facts change with it."""
    columns = ("subject_id", "subject", "target_new_id", "target_new", "target_true_id", "target_true")
    return [name for column in columns for name in asked[column]]


def _request_frame(requests: Sequence[EditRequest]) -> pd.DataFrame:
    """Texts only: a column of nothing but None would have no type in SQL, so an absent target is ''."""
    columns = ("request_id", "subject", "subject_id", "relation", "prompt", "target_new", "target_new_id", "kind")
    data: dict[str, list[Any]] = {column: [getattr(r, column) for r in requests] for column in columns}
    data["target_true"] = [r.target_true or "" for r in requests]
    return pd.DataFrame(data, dtype="str").assign(ord=range(len(requests)))


def _rephrase_frame(requests: Sequence[EditRequest], asker: Asker) -> pd.DataFrame:
    rows = [(r.request_id, i, prompt, asker.form_of(prompt)) for r in requests for i, prompt in enumerate(r.rephrases)]
    frame = pd.DataFrame(rows, columns=["request_id", "place", "prompt", "form"])
    return frame.astype({"request_id": "str", "place": "int64", "prompt": "str", "form": "str"})


def _form_frame(requests: Sequence[EditRequest]) -> pd.DataFrame:
    rows = [
        (r.request_id, kind, i, prompt)
        for r in requests
        for kind, prompts in (("also", r.also), ("carry_over", r.carry_over))
        for i, prompt in enumerate(prompts)
    ]
    frame = pd.DataFrame(rows, columns=["request_id", "kind", "place", "prompt"])
    return frame.astype({"request_id": "str", "kind": "str", "place": "int64", "prompt": "str"})


def _name_frame(names: Iterable[str]) -> pd.DataFrame:
    return pd.DataFrame({"name": sorted({name for name in names if name})}, dtype="str")


# ---------------------------------------------------------------- storage


def save_probe_set(wh: Warehouse, probe_set: ProbeSet) -> None:
    """Store a set under its digest; storing it again changes nothing."""
    head = {"digest": probe_set.digest, "name": probe_set.name, "version": probe_set.version}
    with wh.transaction():
        wh.append("probe_sets", [{**head, "created_at": datetime.now(UTC)}])
        wh.append("probes", probe_set.probes, constants={"set_digest": probe_set.digest})


def load_probe_set(wh: Warehouse, digest: str) -> ProbeSet:
    """The set of that digest, equal to the one that was saved.

    Raises:
        NotFound: no set of that digest.
        IntegrityError: the stored probes have another digest.
    """
    heads = wh.rows("SELECT name, version FROM probe_sets WHERE digest = $digest", {"digest": digest})
    if not heads:
        raise NotFound(f"no probe set {digest} in the warehouse")
    sql = "SELECT probe_id, kind, prompt, targets, request_id FROM probes WHERE set_digest = $digest"
    probes = tuple(sorted(wh.records(Probe, sql, {"digest": digest}), key=order_of))
    found = probe_set_digest(probes)
    if found != digest:
        raise IntegrityError(f"probe set {digest} has {len(probes)} stored probes of digest {found}; rebuild the set")
    return ProbeSet(name=heads[0]["name"], version=heads[0]["version"], probes=probes, digest=digest)
