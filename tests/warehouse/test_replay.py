"""The replay server over real HTTP, and the client against it: every fault, and nothing lost or twice."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.warehouse.live import body, edit, frame, moving_items, recording, statement
from warehouse.database.connection import Warehouse
from warehouse.errors import SourceError
from warehouse.ingest.live_ingest import Filters, IngestLimits, LiveIngest
from warehouse.ingest.stream_tables import read_cursor, stream_summary
from warehouse.reference import HERE
from warehouse.stream.events import StreamEvent, parse_event
from warehouse.stream.recording import load_recording
from warehouse.stream.replay import KINDS, STREAM_PATH, Faults, ReplayServer, serving
from warehouse.stream.sse import EventStream, read_frames
from warehouse.stream.wikidata_http import Backoff, WikidataClient, guarded_client, user_agent

FAST = Backoff(0.01, 0.05, random.Random(0))
SAMPLE = HERE / "stream"


def ingest(
    server: ReplayServer, path: Path, *, properties: frozenset[str] | None = frozenset({"P19"}), **limits: Any
) -> tuple[LiveIngest, EventStream]:
    """One run of the whole client against a server, until nothing new comes."""
    hosts, agent = [server.url.removeprefix("http://")], user_agent("0", "test")
    # Held open: opening for each write is what the soak does.
    with guarded_client(hosts, agent, read_timeout_s=5) as http, Warehouse.open(path) as wh:
        client = WikidataClient(http, server.url, backoff=FAST, retries=30)
        limits = {"idle_s": 0.4, "flush_s": 0.05, "batch": 40, **limits}
        filters = Filters(properties=properties)
        run = LiveIngest(lambda: nullcontext(wh), "live", "night-live", client, filters, IngestLimits(**limits))
        stream = EventStream(http, server.url + STREAM_PATH, on_wait=run.on_wait, backoff=FAST, max_failures=100)
        run.run(stream.frames(run.cursor.last_event_id))
    return run, stream


def rows(path: Path, sql: str) -> list[dict[str, Any]]:
    with Warehouse.open(path) as wh:
        return wh.rows(sql)


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(headers={"User-Agent": user_agent("0", "test")}, trust_env=False) as client:
        yield client


def texts(client: httpx.Client, server: ReplayServer, count: int, **headers: str) -> list[str]:
    """Data of the first frames of a connection."""
    with client.stream("GET", server.url + STREAM_PATH, headers=headers) as response:
        return [f.data for _, f in zip(range(count), read_frames(response.iter_text()), strict=False)]


# ---------------------------------------------------------------- the server


def test_it_goes_on_behind_the_last_event_id_even_where_a_recording_repeats_ids(http: httpx.Client) -> None:
    many = recording(["one", "two", "three", "four"])
    many.frames = [frame(f.data, 7) for f in many.frames]
    with serving(many, heartbeat_s=0.05) as server:
        assert texts(http, server, 4) == ["one", "two", "three", "four"]
        assert texts(http, server, 2, **{"Last-Event-ID": many.wire_id(1)}) == ["three", "four"]
        # A recorded id as it was: behind its first place, so that nothing is left out.
        assert texts(http, server, 3, **{"Last-Event-ID": many.frames[0].id}) == ["two", "three", "four"]


def test_it_begins_at_a_time(http: httpx.Client) -> None:
    with serving(recording([edit(n, "Q1", n, n + 1) for n in range(1, 4)]), heartbeat_s=0.05) as server:
        assert json.loads(texts(http, server, 1)[0])["meta"]["id"].endswith("1")
        with http.stream("GET", server.url + STREAM_PATH, params={"since": "2026-10-01T22:00:03Z"}) as response:
            first = next(read_frames(response.iter_text()))
        assert json.loads(first.data)["meta"]["id"].endswith("3")


def test_an_unknown_id_and_an_agent_without_a_name_are_refused(http: httpx.Client) -> None:
    with serving(recording(["one"])) as server:
        assert http.get(server.url + STREAM_PATH, headers={"Last-Event-ID": "unknown"}).status_code == 400
        assert http.get(server.url + STREAM_PATH, headers={"User-Agent": "python-httpx/1"}).status_code == 403
        assert http.get(server.url + "/elsewhere").status_code == 404


def test_documents_are_served_by_revision_redirect_and_batch(http: httpx.Client) -> None:
    found = recording([], body("Q1", 5), body("Q1", 9))
    found.redirects["Q7"], found.labels["Q84"] = "Q1", "London"
    with serving(found) as server:
        data = server.url + "/wiki/Special:EntityData/"
        assert http.get(data + "Q1.json").json()["entities"]["Q1"]["lastrevid"] == 9
        assert http.get(data + "Q1.json?revision=5").json()["entities"]["Q1"]["lastrevid"] == 5
        assert list(http.get(data + "Q7.json").json()["entities"]) == ["Q1"]
        assert http.get(data + "Q1.json?revision=6").status_code == 404
        ids = {"action": "wbgetentities", "ids": "Q1|Q7|Q84|Q99"}
        bodies = http.get(server.url + "/w/api.php", params=ids).json()["entities"]
        assert bodies["Q7"]["id"] == "Q1" and bodies["Q84"]["labels"]["en"]["value"] == "London" and "missing" in bodies["Q99"]
        too_many = {"action": "wbgetentities", "ids": "|".join(f"Q{n}" for n in range(1, 52))}
        assert http.get(server.url + "/w/api.php", params=too_many).json()["error"]["code"] == "toomanyvalues"


def test_equal_seeds_give_equal_faults(http: httpx.Client) -> None:
    found, seen = moving_items(2, 20), []
    for _ in range(2):
        seen.append([])
        faults = Faults(garbage=0.3, duplicate=0.3, seed=4)
        with serving(found, faults, heartbeat_s=0.05) as server, http.stream("GET", server.url + STREAM_PATH) as response:
            frames = read_frames(response.iter_text())
            while not seen[-1] or seen[-1][-1] != found.frames[-1].data:
                seen[-1].append(next(frames).data)
    assert seen[0] == seen[1] and len(seen[0]) > len(found.frames)


@pytest.mark.parametrize("chance", [-0.1, 1.5])
def test_a_chance_is_between_nought_and_one(chance: float) -> None:
    with pytest.raises(ValueError, match="fault drop"):
        Faults(drop=chance)


# ---------------------------------------------------------------- recordings


def test_the_sample_is_a_whole_recording() -> None:
    found = load_recording(SAMPLE)
    assert len(found.frames) == 55 and len(found.revisions) == 75
    events = [parse_event(f.data) for f in found.frames]
    wanted = [e for e in events if isinstance(e, StreamEvent) and e.action == "fetch_and_diff"]
    assert len({e.key for e in wanted}) == 38
    assert all((e.entity_id, e.rev_new) in found.revisions and (e.entity_id, e.rev_old) in found.revisions for e in wanted)


def test_documents_of_touched_statements_only_are_filled_in_so_that_revisions_chain(tmp_path: Path) -> None:
    first, second = statement("Q1", "P19", "Q2"), statement("Q1", "P69", "Q3")
    moved, other = statement("Q1", "P19", "Q4"), statement("Q1", "P69", "Q5")

    def line(old: dict[str, Any], new: dict[str, Any]) -> str:
        return json.dumps({"entity": "Q1", "old_revision": {"entities": {"Q1": old}}, "new_revision": {"entities": {"Q1": new}},
                           "labels": {"Q4": "four"}})  # fmt: skip

    lines = [line(body("Q1", 1, first), body("Q1", 2, moved)), line(body("Q1", 2, second), body("Q1", 3, other))]
    (tmp_path / "a.entitydata.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "a.sse").write_text("id: a\ndata: {}\n\n")
    found = load_recording(tmp_path)
    whole = {rev: {s["id"]: s for many in b["claims"].values() for s in many} for (_, rev), b in found.revisions.items()}
    assert list(whole[1].values()) == [first, second]
    assert list(whole[2].values()) == [moved, second]
    assert list(whole[3].values()) == [moved, other]
    assert found.labels == {"Q4": "four"}


def test_documents_are_found_in_their_folder_with_the_redirect_in_their_name(tmp_path: Path) -> None:
    (tmp_path / "a.sse").write_text("id: a\ndata: {}\n\n")
    (tmp_path / "entities" / "revisions").mkdir(parents=True)
    (tmp_path / "entities" / "x__Q7.json").write_text(json.dumps({"entities": {"Q1": body("Q1", 5)}}))
    (tmp_path / "entities" / "revisions" / "4.json").write_text(json.dumps(body("Q1", 4)))
    (tmp_path / "entities" / "INDEX.json").write_text("[]")
    found = load_recording(tmp_path)
    assert sorted(found.revisions) == [("Q1", 4), ("Q1", 5)] and found.redirects == {"Q7": "Q1"}
    assert found.current["Q1"]["lastrevid"] == 5


def test_a_folder_without_a_stream_and_a_broken_document_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no recorded stream"):
        load_recording(tmp_path)
    (tmp_path / "a.sse").write_text("id: a\ndata: {}\n\n")
    (tmp_path / "b.entitydata.jsonl").write_text('{"entity": "Q1"}\n')
    with pytest.raises(SourceError, match=r"b\.entitydata\.jsonl, line 1: expected old_revision"):
        load_recording(tmp_path)


# ---------------------------------------------------------------- the client against the server


def test_the_sample_becomes_records(tmp_path: Path) -> None:
    path = tmp_path / "w.duckdb"
    with serving(load_recording(SAMPLE)) as server:
        run, _ = ingest(server, path, properties=None)
    done = run.progress
    assert (done.frames, done.redelivered, done.records, done.problem) == (53, 2, 37, "")
    with Warehouse.open(path) as wh:
        summary = stream_summary(wh, "night-live")
    assert summary["refused"] == {"stream_error": 1, "undecodable": 1} and summary["pending"] == 0
    assert summary["events"]["other_wiki"] == 2  # pyright: ignore[reportIndexIssue]


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_fault_loses_or_doubles_anything(kind: str, tmp_path: Path) -> None:
    found = moving_items(4, 10, noise=1)
    # The API is asked for labels only, a few times.
    with serving(found, replace(Faults(delay_s=0.02), **{kind: 0.8 if kind == "lag" else 0.2})) as server:
        run, _ = ingest(server, tmp_path / "w.duckdb")
        assert server.met[kind] > 0
    assert run.progress.problem == ""
    assert rows(tmp_path / "w.duckdb", "SELECT count(*) AS n, count(DISTINCT rev_new) AS m FROM stream_events") == [
        {"n": 40, "m": 40}
    ]
    assert rows(tmp_path / "w.duckdb", "SELECT count(*) AS n FROM updates") == [{"n": 40}]
    with Warehouse.open(tmp_path / "w.duckdb") as wh:
        assert read_cursor(wh, "live").last_event_id == found.wire_id(len(found.frames) - 1)


def test_a_second_run_asks_for_nothing_again(tmp_path: Path) -> None:
    with serving(moving_items(3, 4)) as server:
        first, _ = ingest(server, tmp_path / "w.duckdb")
        asked = sum(server.asked.values())
        second, _ = ingest(server, tmp_path / "w.duckdb")
        assert sum(server.asked.values()) == asked
        assert server.resumed == ["", first.cursor.last_event_id or server.recording.wire_id(11)]
    assert (first.progress.records, second.progress.frames, second.progress.records) == (12, 0, 0)


def test_max_events_stops_and_the_next_run_goes_on_behind(tmp_path: Path) -> None:
    with serving(moving_items(3, 4)) as server:
        counts = [ingest(server, tmp_path / "w.duckdb", max_events=5)[0].progress.frames for _ in range(3)]
    assert counts == [5, 5, 2]
    assert rows(tmp_path / "w.duckdb", "SELECT count(*) AS n FROM updates") == [{"n": 12}]


def test_events_wait_while_the_documents_are_away_and_are_resolved_later(tmp_path: Path) -> None:
    found = moving_items(3, 4)
    with serving(found) as server:
        server.faults = Faults(unavailable=0.0)
        with guarded_client([server.url.removeprefix("http://")], user_agent("0", "test")) as http:
            broken = WikidataClient(http, server.url + "/nowhere/..%2f", backoff=FAST, retries=1)
            broken.revision = lambda *_: _raise()  # pyright: ignore
            run = LiveIngest(
                lambda: Warehouse.open(tmp_path / "w.duckdb"), "live", "n", broken, Filters(), IngestLimits(idle_s=0.3)
            )
            done = run.run(EventStream(http, server.url + STREAM_PATH, on_wait=run.on_wait).frames())
        assert (done.stored, done.records) == (12, 0) and "away" in done.problem
        again, _ = ingest(server, tmp_path / "w.duckdb")
    assert (again.progress.frames, again.progress.records) == (0, 12)


def _raise() -> Any:
    from warehouse.stream.wikidata_http import Unavailable

    raise Unavailable("Wikidata is away")
