"""The world in the warehouse: facts with two times, templates and properties. Shared by every lineage.

Nights are in the order of `warehouse.nights.order`; `BASE_NIGHT` comes before all of them.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import pandas as pd

from warehouse.database.connection import Warehouse
from warehouse.database.frames import utc
from warehouse.digests import digest_of, sha256_file
from warehouse.errors import Conflict, IntegrityError
from warehouse.keys import text_key
from warehouse.night_names import BASE_NIGHT
from warehouse.nights.intake import (
    nights,
    receive,
    record_verdicts,
    request_digest,
    requests_by_id,
    requests_of,
    updates_of,
    verdicts_of,
)
from warehouse.nights.order import last_changed, register
from warehouse.records import EditRequest, Fact
from warehouse.reference import world

#: What a night brought is written in `intake.py`; both halves of the world are offered here.
__all__ = [
    "BASE_NIGHT",
    "FACT_IDENTITY",
    "apply_fact_changes",
    "fact_id",
    "facts_as_of",
    "nights",
    "receive",
    "record_verdicts",
    "request_digest",
    "requests_by_id",
    "requests_of",
    "seed_world",
    "updates_of",
    "verdicts_of",
    "with_other_relations",
]

logger = logging.getLogger(__name__)

#: What a fact's identity covers; `known_to_night` is left out because the store learns it later.
FACT_IDENTITY = (
    "subject_id",
    "subject",
    "relation",
    "object_id",
    "object",
    "rank",
    "statement_id",
    "revision",
    "valid_from",
    "valid_to",
    "source",
    "known_from_night",
)
_SEED_KEY, _FILES_KEY = "reference_facts_sha256", "reference_files_digest"
_FILES = ("facts.csv", "templates.yaml", "properties.csv", "aliases.csv")
_SLOT = ["s", "relation", "o"]
_OPEN = "(known_to_night IS NULL OR place_of(known_to_night) > place_of($night))"


def fact_id(row: dict[str, Any]) -> str:
    """Digest of a fact row (FACT_IDENTITY); times count as moments, whatever their zone."""
    moments = {name: utc(row[name]) for name in ("valid_from", "valid_to")}
    texts = {name: None if moment is None else moment.isoformat() for name, moment in moments.items()}
    return digest_of([texts.get(name, row[name]) for name in FACT_IDENTITY])


# ---------------------------------------------------------------- the base world


def seed_world(wh: Warehouse) -> int:
    """Load the embedded facts, templates, properties and aliases; a second call changes nothing.

    Returns:
        The number of facts added.

    Raises:
        IntegrityError: the warehouse was seeded from other facts. Its nights build on those, so none are mixed in.
    """
    files = {name: world.HERE / name for name in _FILES if (world.HERE / name).exists()}
    digests = {name: sha256_file(path) for name, path in files.items()}
    digest, all_files = digests["facts.csv"], digest_of(digests)
    # Callers seed on every open: with the same files nothing is read, compared or locked.
    if wh.scalar("SELECT value FROM store_meta WHERE key = ?", [_FILES_KEY]) == all_files:
        return 0
    with wh.transaction():
        seeded = wh.scalar("SELECT value FROM store_meta WHERE key = ?", [_SEED_KEY])
        if seeded not in (None, digest):
            raise IntegrityError(
                f"this warehouse was seeded from facts.csv {seeded[:12]}, the code now ships {digest[:12]}; "
                "start a new ERRATA_HOME, or go back to the version that made this one"
            )
        _put_templates(wh)
        _put_properties(wh)
        if "aliases.csv" in files:
            aliases = pd.read_csv(files["aliases.csv"], dtype=str, keep_default_na=False)
            wh.append("aliases", aliases[["entity_id", "alias"]])
        wh.execute("DELETE FROM store_meta WHERE key = ?", [_FILES_KEY])
        wh.append("store_meta", [{"key": _FILES_KEY, "value": all_files}])
        if seeded == digest:
            return 0
        frame = pd.DataFrame(
            {
                "subject_id": f.subject_id,
                "subject": f.subject,
                "relation": f.relation,
                "object_id": f.object_id,
                "object": f.object,
                "source": f.origin,
            }
            for f in world.facts()
        )
        added = add_facts(wh, BASE_NIGHT, frame)
        wh.append("store_meta", [{"key": _SEED_KEY, "value": digest}])
    logger.info("seeded %d facts", added)
    return added


def _put_templates(wh: Warehouse) -> None:
    rows = pd.DataFrame(
        {"relation": t.relation, "idx": i, "prompt": prompt, "phrase": t.phrase, "inverse": t.inverse}
        for t in world.templates().values()
        for i, prompt in enumerate(t.prompts)
    )
    # Wording may improve with a release: stored templates follow the shipped ones.
    wh.execute("DELETE FROM templates WHERE (relation, idx) NOT IN (SELECT (relation, idx) FROM shipped)", shipped=rows)
    wh.execute(
        """UPDATE templates SET prompt = s.prompt, phrase = s.phrase, inverse = s.inverse FROM shipped AS s
           WHERE templates.relation = s.relation AND templates.idx = s.idx
             AND (templates.prompt, templates.phrase, templates.inverse)
                 IS DISTINCT FROM (s.prompt, s.phrase, s.inverse)""",
        shipped=rows,
    )
    wh.append("templates", rows)


def _put_properties(wh: Warehouse) -> None:
    columns = [
        "pid",
        "label",
        "cardinality",
        "single_in_practice",
        "inverse_pid",
        "symmetric",
        "value_type",
        "subject_type",
        "temporal",
    ]
    with (world.HERE / "properties.csv").open(encoding="utf-8", newline="") as handle:
        rows = [{name: row[name] or None for name in columns} for row in csv.DictReader(handle)]
    for row in rows:
        row |= {name: row[name] == "True" for name in ("single_in_practice", "symmetric", "temporal")}
    wh.append("properties", rows)


# ---------------------------------------------------------------- facts in time


def add_facts(wh: Warehouse, night: str, frame: pd.DataFrame) -> int:
    """Append facts believed from `night`; `frame` has the columns of Fact and may have rank, statement_id, revision."""
    full = frame.reindex(columns=[name for name in FACT_IDENTITY if name != "known_from_night"])
    full = full.astype(object).where(full.notna(), None)
    full["rank"] = full["rank"].map(lambda rank: rank or "normal")
    full["known_from_night"] = night
    rows = [
        row
        | {"valid_from": _moment(row["valid_from"]), "valid_to": _moment(row["valid_to"])}
        | {"revision": None if row["revision"] is None else int(row["revision"])}
        for row in full.to_dict("records")
    ]
    return wh.append("facts", [row | {"fact_id": fact_id(row)} for row in rows])


def _moment(value: Any) -> Any:
    return utc(value.to_pydatetime()) if isinstance(value, pd.Timestamp) else utc(value)


def _keyed(frame: pd.DataFrame) -> pd.DataFrame:
    """With `s` and `o`: the ids, or the keys of the labels where a source has only text."""
    return frame.assign(s=_keys_of(frame, "subject"), o=_keys_of(frame, "object"))


def _keys_of(frame: pd.DataFrame, side: str) -> pd.Series:
    # Folding a label costs more than all else here, and few rows are without an id.
    keys = [own or text_key(label) for own, label in zip(frame[f"{side}_id"], frame[side], strict=True)]
    return pd.Series(keys, index=frame.index, dtype="str")


def apply_fact_changes(
    wh: Warehouse,
    night: str,
    added: Sequence[Fact] | pd.DataFrame,
    ended: Sequence[tuple[str, str, str]] = (),
) -> tuple[int, int]:
    """Let the store believe `added` from `night` on and cease to believe `ended`; a second call changes nothing.

    Args:
        night: after BASE_NIGHT.
        added: facts, or a frame with the columns of Fact and optionally `rank`, `statement_id`, `revision`. A triple
            believed already is left as it is.
        ended: (subject_id, relation, object_id) of facts to end; labels where the source has no ids. One that was
            not believed before `night` is left alone.

    Returns:
        (facts added, facts ended).

    Raises:
        ValueError: the night is empty, or one triple is both added and ended.
        Conflict: a later night has changed facts already, and this one would change history behind it. (The same
            changes once more, after later nights, are no change.)
    """
    if night == BASE_NIGHT:
        raise ValueError("facts change in a named night; the empty name is the base world")
    new = added if isinstance(added, pd.DataFrame) else pd.DataFrame([f.model_dump() for f in added])
    if new.empty:
        new = pd.DataFrame(columns=list(Fact.model_fields), dtype="str")
    new = _keyed(new).drop_duplicates(_SLOT)
    gone = pd.DataFrame(list(ended), columns=_SLOT, dtype="str")
    ids = {*new["subject_id"], *new["object_id"]} | _known_ids(wh, {*gone["s"], *gone["o"]})
    for side in ("s", "o"):
        # What is no id is a label, or the key of one.
        gone[side] = gone[side].map(lambda name: name if name in ids or name.startswith("text:") else text_key(name))
    gone = gone.drop_duplicates()
    both = new[_SLOT].merge(gone, on=_SLOT)
    if len(both):
        raise ValueError(f"night {night} both adds and ends {tuple(both.iloc[0])}; decide which before storing")
    with wh.transaction():
        register(wh, [night])
        before = _keyed(
            wh.query(f"SELECT * FROM facts WHERE place_of(known_from_night) < place_of($night) AND {_OPEN}", {"night": night})
        )
        ending = before.merge(gone, on=_SLOT)[["fact_id"]]
        fresh = new.merge(_keyed(facts_as_of(wh, night))[_SLOT], on=_SLOT, how="left", indicator=True)
        fresh = fresh.loc[fresh["_merge"] == "left_only", :].drop(columns=["_merge", "s", "o"])
        if (len(ending) or len(fresh)) and (latest := last_changed(wh, night)) is not None:
            raise Conflict(
                f"night {latest} was received after night {night} and has changed facts already, so {len(fresh)} added and "
                f"{len(ending)} ended facts of night {night} cannot be applied behind it. `errata refresh --night {night} "
                f"--late` takes {night} as received now: what it says then stands over what {latest} said"
            )
        num_ended = wh.execute(
            "UPDATE facts SET known_to_night = $night WHERE fact_id IN (SELECT fact_id FROM ending)",
            {"night": night},
            ending=ending,
        )
        num_added = add_facts(wh, night, fresh)
    return num_added, num_ended


def _known_ids(wh: Warehouse, names: Collection[str]) -> set[str]:
    asked = pd.DataFrame({"name": sorted(names)}, dtype="str")
    rows = wh.rows(
        "SELECT DISTINCT subject_id AS id FROM facts JOIN asked ON name = subject_id UNION "
        "SELECT DISTINCT object_id FROM facts JOIN asked ON name = object_id",
        asked=asked,
    )
    return {row["id"] for row in rows}


def facts_as_of(wh: Warehouse, night: str, valid_at: datetime | None = None) -> pd.DataFrame:
    """All facts that the store believed at the end of `night` (BASE_NIGHT: before the first one).

    Args:
        valid_at: of those, only the facts that hold in the world at that moment, as the store believed then. A fact
            without a start or an end holds before or after without limit; the end itself is outside.
    """
    return wh.query(
        f"""SELECT * FROM facts WHERE place_of(known_from_night) <= place_of($night) AND {_OPEN}
            AND ($at IS NULL OR (coalesce(valid_from <= $at, true) AND coalesce(valid_to > $at, true)))
            ORDER BY subject_id, relation, object_id, fact_id""",
        {"night": night, "at": utc(valid_at)},
    )


def with_other_relations(wh: Warehouse, requests: Sequence[EditRequest]) -> list[EditRequest]:
    """The requests, each naming the other relations in which the warehouse believes something of its subject now.

    A request without an id of its subject goes by the label.
    """
    asked = pd.DataFrame(
        [(r.request_id, r.subject_id, r.subject, r.relation) for r in requests],
        columns=["request_id", "subject_id", "subject", "relation"],
        dtype="str",
    )
    rows = wh.rows(
        """WITH held AS (
               SELECT a.request_id, f.relation FROM asked AS a JOIN facts AS f USING (subject_id)
               WHERE a.subject_id <> '' AND f.relation <> a.relation AND f.known_to_night IS NULL AND f."rank" <> 'deprecated'
               UNION
               SELECT a.request_id, f.relation FROM asked AS a JOIN facts AS f USING (subject)
               WHERE a.subject_id = '' AND f.relation <> a.relation AND f.known_to_night IS NULL AND f."rank" <> 'deprecated')
           SELECT request_id, list(relation ORDER BY relation) AS relations FROM held GROUP BY request_id""",
        asked=asked,
    )
    held = {row["request_id"]: tuple(row["relations"]) for row in rows}
    return [r.model_copy(update={"other_relations": held.get(r.request_id, ())}) for r in requests]
