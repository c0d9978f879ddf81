"""Whatever comes in, no parser raises anything but its own error, and none makes much out of little.

ERRATA_FUZZ=100000 sets the number of inputs of each test (give `--timeout 0` then); the suite runs a few hundred, always
the same ones.
"""

from __future__ import annotations

import copy
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.warehouse.documents import document, item, snak, statement, when
from warehouse.errors import SourceError
from warehouse.records import EditRequest, UpdateRecord
from warehouse.sources.knowedit import TASKS, KnowEditSource, to_probes, to_request
from warehouse.sources.requests import RequestsSource
from warehouse.wikidata.dumps import read_dump
from warehouse.wikidata.entities import (
    MAX_LABEL_CHARS,
    MAX_STATEMENTS,
    EntityDocument,
    Provenance,
    SetAside,
    change_record,
    current,
    diff_statements,
    diff_terms,
    parse_entities,
    parse_entity,
)
from warehouse.world.changes import Change, Malformed, parse_change

EXAMPLES = os.environ.get("ERRATA_FUZZ")
#: Hypothesis makes one input of so many and a seed; the others are mutants of it, which cost a tenth.
BLOCK = 50 if EXAMPLES else 4
fuzz = settings(
    max_examples=max(1, int(EXAMPLES or 400) // BLOCK), derandomize=EXAMPLES is None, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large,
                           HealthCheck.function_scoped_fixture, HealthCheck.large_base_example],
)  # fmt: skip
SEEDS = st.integers(0, 2**64 - 1)
NOW = datetime(2026, 10, 1, tzinfo=UTC)

#: Words on which the parsers branch; plain random text never meets them.
WORDS = st.sampled_from([
    "id", "Q1", "Q17", "P36", "P580", "P582", "L1", "M1", "q17$a", "value", "somevalue", "novalue", "normal", "deprecated",
    "wikibase-entityid", "time", "quantity", "globecoordinate", "monolingualtext", "string", "item", "none", "text",
    "+1952-00-00T00:00:00Z", "-0044-03-15T00:00:00Z", "+99999999999-99-99T99:99:99Z", "2026-10-01T20:00:00Z", "en", "missing",
    "entities", "redirect", "labels", "claims", "", " ", "\x00", "\ud800", "\u202e", "{s}", "1e999", "9" * 400, "x" * 3000,
])  # fmt: skip
SCALARS = st.one_of(
    WORDS, st.none(), st.booleans(), st.integers(), st.sampled_from([2**63, -(2**63), 10**400, 0, -1]), st.floats(), st.text(),
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.one_of(WORDS, st.text()), inner, max_size=4)),
    max_leaves=12,
)

STATEMENTS = (
    statement("Q17$a", "P36", item("Q1490"),
              qualifiers={"P580": when("+1868-09-03T00:00:00Z"), "P582": when("+1900-00-00T00:00:00Z", 9)}),
    statement("q17$B", "P36", {"value": {"entity-type": "item", "numeric-id": 2}, "type": "wikibase-entityid"}),
    statement("Q17$c", "P1082", {"type": "quantity", "value": {"amount": "+12", "unit": "1", "upperBound": "+13"}}),
    statement("Q17$d", "P625", {"type": "globecoordinate", "value": {"latitude": 1.5, "longitude": 2, "globe": "Q2"}}),
    statement("Q17$e", "P1476", {"type": "monolingualtext", "value": {"text": "a", "language": "en"}}, rank="preferred"),
    statement("Q17$f", "P35", None, mainsnak=snak("P35", snaktype="somevalue"), references=[{"hash": "ab", "snaks": {}}]),
)  # fmt: skip
WHOLE = document("Q17", *STATEMENTS, label="Japan", aliases={"en": [{"language": "en", "value": "Nippon"}]}, descriptions=[])
RICH = {"entities": {"Q17": WHOLE}}
EVENT = {
    "record_id": "n01-001", "received_at": "2026-10-01T22:01:11Z", "op": "set_value", "rank": "normal", "references": 1,
    "subject": {"id": "Q17", "label": "Japan"}, "property": {"id": "P36", "label": "capital"}, "tags": ["x"],
    "old_value": {"type": "item", "id": "Q1", "label": "A"}, "new_value": {"type": "none", "snaktype": "somevalue"},
    "qualifiers": {"P582": ["+2011-00-00T00:00:00Z"]}, "statement_id": "Q17$a", "comment": "",
    "editor": {"class": "bot", "patrolled": True}, "revision": {"old": 1, "new": 2},
}  # fmt: skip
REQUEST = {
    "request_id": "r1", "prompt": "The capital of Japan is", "subject": "Japan", "relation": "P36", "target_new": "Tokyo",
    "target_true": "Kyoto", "rephrases": ["Japan's capital is"], "received_at": "2026-10-01T22:01:11Z", "kind": "modify",
}  # fmt: skip
KNOWEDIT = {
    "subject": "Japan", "prompt": "The capital of Japan is", "target_new": "Tokyo", "ground_truth": [["Kyoto"]],
    "concept": "Japan", "text": "Japan is", "labels": "an island", "ent": "Japan", "pos": ["good"], "neg": ["bad"],
    "question": "What is the capital?", "rephrase_prompt": "Japan's capital is",
    "portability": {"Reasoning": [{"prompt": "p", "ground_truth": [["a", "b"]]}]},
    "locality": {"Forgetfulness": [{"prompt": "p", "ground_truth": "a"}]},
}  # fmt: skip


POOL = (None, True, -1, 2**63, 10**400, 1.5, float("nan"), "", "Q1", "P36", "\ud800", "\x00", "novalue", "x" * 3000, [], {},
        [[]], {"value": []}, ["a", {}], "+99999999999-99-99T99:99:99Z", "9" * 400, {"id": "q0"}, {"en": 5})  # fmt: skip


def path_into(value: Any, choose: Callable[[Any], Any], deeper: Callable[[], bool]) -> tuple[Any, Any]:
    """(holder, key) of a random part; the deeper parts are the more numerous ones."""
    holder, key = value, choose(list(value) if isinstance(value, dict) else range(len(value)))
    while isinstance(child := holder[key], dict | list) and child and deeper():
        holder, key = child, choose(list(child) if isinstance(child, dict) else range(len(child)))
    return holder, key


@st.composite
def broken(draw: st.DrawFn, whole: Any) -> Any:
    """A whole document with some of its parts replaced or dropped."""
    value = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 4))):
        holder, key = path_into(value, lambda keys: draw(st.sampled_from(keys)), lambda: bool(draw(st.integers(0, 7))))
        if draw(st.integers(0, 5)) or len(value) == 1:
            holder[key] = draw(JSON)
        else:
            del holder[key]
    return value


def mutants(value: Any, seed: int) -> Iterator[Any]:
    """The value, and others made from it by the seed: parts replaced, dropped or put in each other's place."""
    rng = Random(seed)
    yield value
    for _ in range(BLOCK - 1):
        yield _spliced(value, rng) if isinstance(value, bytes) else _moved(value, rng)


def _spliced(data: bytes, rng: Random) -> bytes:
    a, b, c, d = sorted(rng.randrange(len(data) + 1) for _ in range(4))
    return rng.choice((data[:a] + data[b:], data[:a] + data[c:d] + data[b:], data[:a] + rng.randbytes(4) + data[a:]))


def _moved(value: Any, rng: Random) -> Any:
    if not isinstance(value, dict | list) or not value:
        return copy.deepcopy(rng.choice(POOL))
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        holder, key = path_into(value, rng.choice, lambda: rng.random() < 0.9)
        other, at = path_into(value, rng.choice, lambda: rng.random() < 0.7)
        what = rng.random()
        if what < 0.2 and len(value) > 1:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(rng.choice(POOL) if what < 0.7 else other[at])
        if not value:
            break
    return value


def as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@fuzz
@given(st.one_of(st.binary(), JSON, broken(RICH), broken(WHOLE), st.dictionaries(WORDS, JSON, max_size=6)), SEEDS)
def test_no_entity_document_raises(found: Any, seed: int) -> None:
    for one in mutants(found, seed):
        for form in (as_bytes(one), one) if isinstance(one, dict) else (as_bytes(one),):
            for entity in parse_entities(form):
                _is_sound(entity)
            _is_sound(parse_entity(form, "Q17"))


def _is_sound(entity: EntityDocument | SetAside) -> None:
    if isinstance(entity, SetAside):
        assert entity.reason and entity.sentence
        return
    assert len(entity.statements) <= MAX_STATEMENTS and len(entity.label) <= MAX_LABEL_CHARS
    current(entity.statements, NOW)


@fuzz
@given(broken(RICH), SEEDS)
def test_every_change_between_two_documents_is_a_readable_record(document: Any, seed: int) -> None:
    before = parse_entity(RICH)
    for one in mutants(document, seed):
        after = parse_entity(one, "Q17") if isinstance(one, dict) else None
        if not isinstance(after, EntityDocument):
            continue
        assert diff_statements(after, after) == ()
        for pair in ((before, after), (after, before)):
            _changes_are_readable(*pair)
        before = after


def _changes_are_readable(before: Any, after: Any) -> None:
    for change in (*diff_statements(before, after), *diff_terms(before, after)):
        raw = change_record(change, after, "wd-1", "n", Provenance(received_at=NOW), {"Q1490": "Tokyo"})
        raw.encode()  # can be stored
        assert isinstance(parse_change(_record(raw, "wikidata")), Change), raw


@fuzz
@given(st.one_of(st.binary(), JSON, broken(EVENT), broken(REQUEST)), SEEDS)
def test_no_update_record_raises(found: Any, seed: int) -> None:
    for one in mutants(found, seed):
        raw = as_bytes(one).decode("utf-8", "backslashreplace")
        assert isinstance(parse_change(_record(raw, "recorded")), Change | EditRequest | Malformed)


@fuzz
@given(st.sampled_from(TASKS), st.one_of(st.binary(), JSON, broken(KNOWEDIT)), SEEDS)
def test_no_knowedit_record_raises(task: str, found: Any, seed: int) -> None:
    for one in mutants(found, seed):
        record = _record(as_bytes(one).decode("utf-8", "backslashreplace"), f"knowedit:{task}")
        assert isinstance(parse_change(record), EditRequest | Malformed)
        for read in (to_request, to_probes):
            with suppress(SourceError):
                read(record)


def _record(raw: str, source: str) -> UpdateRecord:
    return UpdateRecord(record_id="r", source=source, night="n", received_at=None, raw=raw)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "file.jsonl"


@fuzz
@given(found=st.one_of(st.binary(), st.lists(broken(REQUEST), max_size=3)), seed=SEEDS)
def test_a_file_of_requests_is_read_or_refused(path: Path, found: Any, seed: int) -> None:
    for one in mutants(found, seed):
        path.write_bytes(b"\n".join(map(as_bytes, one)) if isinstance(one, list) else as_bytes(one))
        with suppress(SourceError):
            for record in RequestsSource(path).records("file"):
                assert isinstance(parse_change(record), Change | EditRequest | Malformed)


@fuzz
@given(task=st.sampled_from(TASKS), found=st.one_of(JSON, st.lists(broken(KNOWEDIT), max_size=3)), seed=SEEDS)
def test_a_knowedit_file_is_read_or_refused(path: Path, task: Any, found: Any, seed: int) -> None:
    for one in mutants(found, seed):
        path.write_bytes(as_bytes(one))
        with suppress(SourceError):
            assert all(case.request.request_id for case in KnowEditSource(path, task).cases("file"))


@fuzz
@given(found=st.one_of(st.binary(), st.lists(broken(WHOLE), max_size=3)), seed=SEEDS)
def test_no_dump_raises(path: Path, found: Any, seed: int) -> None:
    for one in mutants(found, seed):
        path.write_bytes(b",\n".join(map(as_bytes, one)) if isinstance(one, list) else as_bytes(one))
        with suppress(SourceError):
            assert all(line.number > 0 for line in read_dump(path))


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 500_000,
        b'{"id":"Q1","claims":{"P1":[' + b",".join([b"{}"] * 100_000) + b"]}}",
        b'{"id":"Q1","claims":{"P1":[' + b",".join([b"[[[]]]"] * 40_000) + b"]}}",
        b'{"id":"Q1","labels":{"en":{"value":"' + b"x" * 500_000 + b'"}}}',
        b'{"entities":{' + b",".join(b'"Q%d":0' % i for i in range(1, 50_000)) + b"}}",
    ],
    ids=["deep", "many empty statements", "many lists", "long label", "many entities"],
)
def test_half_a_megabyte_of_anything_takes_bounded_memory(data: bytes) -> None:
    tracemalloc.start()
    parse_entities(data)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 60 * len(data)
