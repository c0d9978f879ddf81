"""The made-up volume of the ingest benchmark: new events every time, and all of them accounted for."""

from __future__ import annotations

from pathlib import Path

from tasks.speed.ingest_speed import ingest_speed, write_recording
from warehouse.stream.events import StreamEvent, parse_event
from warehouse.stream.sse import recorded_frames


def test_every_event_of_the_recording_is_another_one(tmp_path: Path) -> None:
    expected = write_recording(tmp_path / "a.sse", 300)
    events = [parse_event(frame.data) for frame in recorded_frames([tmp_path / "a.sse"])]
    assert len({event.key for event in events if isinstance(event, StreamEvent)}) == 300
    kept = [event for event in events if isinstance(event, StreamEvent) and event.action in ("fetch_and_diff", "tombstone")]
    assert len(kept) == expected > 150


def test_everything_wanted_is_stored_and_counted(tmp_path: Path) -> None:
    expected = write_recording(tmp_path / "a.sse", 500)
    speed = ingest_speed(tmp_path / "a.sse", tmp_path, 500, expected)
    assert (speed.events, speed.stored) == (500, expected)
    assert speed.events_per_s == 500 / speed.wall_s and min(speed.rss_before_mb, speed.rss_early_mb, speed.rss_late_mb) > 10
