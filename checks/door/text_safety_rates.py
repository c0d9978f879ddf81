"""What many records of one night do together: a trigger word, a rare object, a burst against the last nights.

Only changes from outside are counted, not a user's own requests, and only those that every other rule lets through.
The history is `facts`: what the last nights made the store believe. What waits never becomes history by itself.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from checks.door.text_safety import Suspicion, labels_of, odd_words
from checks.door.text_safety_policy import Burst, DoorPolicy
from checks.judging.conflicts import Row
from warehouse.database.connection import Reader
from warehouse.nights.conflict_sql import MAX_EVIDENCE
from warehouse.nights.suspicion_queries import learnt_counts, subjects_by_object, words_in_labels
from warehouse.world.changes import Change


@dataclass(frozen=True)
class History:
    """Records that the last nights made true: nights, all records, and counts by property and by object."""

    nights: int
    total: int
    properties: Mapping[str, int]
    objects: Mapping[str, int]


def read_history(store: Reader, night: str, nights: int) -> History:
    """Counts of the last `nights` nights before `night` in which anything was accepted."""
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for row in learnt_counts(store, night, nights):
        counts[row["kind"]][row["key"]] = row["num"]
    return History(counts["nights"][""], counts["all"][""], counts["property"], counts["object"])


def surprise(count: int, before: int, others: int, others_before: int, nights: int, dispersion: float) -> float:
    """Probability of `count` records or more tonight, from `before` records over the last nights.

    The expectation is the larger of the nightly mean and the share that the history gives to tonight's volume, so
    that a night which is bigger in everything is no burst. One record is added to the history: what was never seen is
    rare, not impossible. The predictive distribution is negative binomial with variance about `dispersion` times that
    of a Poisson, since edits come in batches; both keep small counts from looking like proof.

    Args:
        count, before: records of this property or object tonight, and over the last nights.
        others, others_before: all the other records tonight, and over the last nights.
        nights: number of nights in the history, 1 or more.
    """
    seen = before + 1
    expected = max(seen / nights, seen * (others + 1) / (others_before + 1))
    shape = expected / max(dispersion - 1.0, 1e-9)
    log_p, log_q = math.log(1.0 / dispersion), math.log1p(-1.0 / dispersion) if dispersion > 1 else -math.inf
    terms = (
        math.lgamma(k + shape) - math.lgamma(shape) - math.lgamma(k + 1) + shape * log_p + (k * log_q if k else 0.0)
        for k in range(count)
    )
    return max(0.0, 1.0 - math.fsum(math.exp(term) for term in terms))


def rate_suspicions(
    store: Reader, night: str, rows: Sequence[Row], records: Mapping[str, Change], policy: DoorPolicy
) -> dict[str, Suspicion]:
    """Suspicions over the records that would be accepted; `rows` and `records` are of changes that assert a value."""
    if not rows:
        return {}
    found = _trigger_words(store, rows, records, policy.trigger_word.min_subjects)
    for more in (_rare_objects(store, rows, policy), _bursts(store, night, rows, policy.burst)):
        found |= {record_id: suspicion for record_id, suspicion in more.items() if record_id not in found}
    return found


def _grouped(rule: str, group: Sequence[Row], sentence: str) -> dict[str, Suspicion]:
    ids = tuple(sorted(row["record_id"] for row in group))[:MAX_EVIDENCE]
    return {row["record_id"]: Suspicion(rule, sentence, tuple(i for i in ids if i != row["record_id"])) for row in group}


def _trigger_words(
    store: Reader, rows: Sequence[Row], records: Mapping[str, Change], min_subjects: int
) -> dict[str, Suspicion]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        for word in odd_words(labels_of(records[row["record_id"]])):
            groups[word].append(row)
    groups = {word: group for word, group in groups.items() if _num_subjects(group) >= min_subjects}
    if not groups:
        return {}
    known = words_in_labels(store, list(groups))
    found: dict[str, Suspicion] = {}
    for word, group in sorted(groups.items()):
        if word not in known:
            sentence = f"{_num_subjects(group)} subjects of one night carry '{word}', which no label of the store has."
            found |= _grouped("trigger_word", group, sentence)
    return found


def _num_subjects(group: Sequence[Row]) -> int:
    return len({row["subject_key"] for row in group})


def _by(rows: Sequence[Row], column: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row[column]].append(row)
    return groups


def _rare_objects(store: Reader, rows: Sequence[Row], policy: DoorPolicy) -> dict[str, Suspicion]:
    rule = policy.rare_object
    groups = {key: group for key, group in _by(rows, "new_key").items() if _num_subjects(group) >= rule.min_subjects}
    if not groups:
        return {}
    known = subjects_by_object(store, list(groups))
    found: dict[str, Suspicion] = {}
    for key, group in sorted(groups.items()):
        if known.get(key, 0) <= rule.max_known:
            sentence = (
                f"{_num_subjects(group)} subjects of one night turn to '{group[0]['new_label']}' ({key}), which the store "
                f"knows for {known.get(key, 0)}."
            )
            found |= _grouped("rare_object", group, sentence)
    return found


def _bursts(store: Reader, night: str, rows: Sequence[Row], rule: Burst) -> dict[str, Suspicion]:
    floors = {"relation": rule.min_property_records, "new_key": rule.min_object_records}
    groups = [
        (column, key, group)
        for column, floor in floors.items()
        for key, group in sorted(_by(rows, column).items())
        if len(group) >= floor
    ]
    if not groups:
        return {}
    history = read_history(store, night, rule.nights)
    if history.nights < rule.min_nights:
        return {}
    found: dict[str, Suspicion] = {}
    for column, key, group in groups:
        before = (history.properties if column == "relation" else history.objects).get(key, 0)
        chance = surprise(len(group), before, len(rows) - len(group), history.total - before, history.nights, rule.dispersion)
        if chance < rule.alpha:
            what = "property" if column == "relation" else "object"
            name = group[0]["relation_label" if column == "relation" else "new_label"]
            sentence = (
                f"{len(group)} records of {what} '{name}' ({key}) in one night, after {before} in the last "
                f"{history.nights} nights (chance {chance:.0e})."
            )
            found |= {i: s for i, s in _grouped(f"{what}_burst", group, sentence).items() if i not in found}
    return found
