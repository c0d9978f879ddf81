"""Promotion and rejection: the channel is the commit point, and nothing half-written is ever named by it."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.stand_ins import Killed
from tests.warehouse.small_checkpoint import NOON, DyingStore, content
from tests.warehouse.test_object_store import bucket, s3_client  # noqa: F401 - fixtures
from warehouse.checkpoints.canaries import canaries_digest, read_canaries
from warehouse.checkpoints.directory import DirectoryStore
from warehouse.checkpoints.manifests import manifest_digest, read_manifest, read_pointer
from warehouse.checkpoints.object_store import Version
from warehouse.checkpoints.promotion import move_channel, promoted_keys, publish, verify
from warehouse.checkpoints.pull import pull
from warehouse.checkpoints.rejection import reject
from warehouse.checkpoints.s3 import S3Store
from warehouse.digests import canonical_json
from warehouse.errors import Conflict, IntegrityError, NotFound
from warehouse.records import Canary, CanarySet, GateOutcome, Manifest

# ---------------------------------------------------------------- publish


def test_a_published_checkpoint_is_there_whole_and_the_channel_names_it(store: DirectoryStore, make: Any) -> None:
    manifest, files = make("c1")
    pointer = publish(store, manifest, files, channel="production", expected_parent=None, moved_at=NOON)
    assert (pointer.checkpoint_id, pointer.parent, pointer.moved_at) == ("c1", None, NOON)
    assert pointer.manifest_digest == manifest_digest(manifest)
    assert read_manifest(store, "c1") == manifest
    there = read_pointer(store, "production")
    assert there is not None and there[0] == pointer
    assert list(store.list()) == [
        "channels/production.json",
        "checkpoints/c1/config.json",
        "checkpoints/c1/model.safetensors",
        "checkpoints/c1/tokenizer/vocab.json",
        "decisions/d-c1.json",
        "manifests/c1.json",
        "patches/p-c1/patch.json",
        "patches/p-c1/patch.safetensors",
        "reports/r-c1.json",
    ]


def test_publishing_again_changes_nothing_and_gives_the_same_pointer(store: DirectoryStore, make: Any) -> None:
    manifest, files = make("c1")
    first = publish(store, manifest, files, channel="production", expected_parent=None, moved_at=NOON)
    before = content(store)
    later = NOON + timedelta(days=1)
    assert publish(store, manifest, files, channel="production", expected_parent=None, moved_at=later) == first
    assert content(store) == before


def test_a_second_night_moves_the_channel_on(store: DirectoryStore, make: Any) -> None:
    publish(store, *make("c1"), channel="production", expected_parent=None, moved_at=NOON)
    pointer = publish(store, *make("c2", "c1"), channel="production", expected_parent="c1", moved_at=NOON)
    assert (pointer.checkpoint_id, pointer.parent) == ("c2", "c1")


@pytest.mark.parametrize("expected", [None, "c0"])
def test_a_lost_race_says_that_the_lineage_moved(store: DirectoryStore, make: Any, expected: str | None) -> None:
    publish(store, *make("c1"), channel="production", expected_parent=None, moved_at=NOON)
    with pytest.raises(Conflict, match="lineage moved"):
        publish(store, *make("c2", expected), channel="production", expected_parent=expected, moved_at=NOON)
    there = read_pointer(store, "production")
    assert there is not None and there[0].checkpoint_id == "c1"


def test_a_race_lost_during_the_upload_is_found_at_the_swap(store: DirectoryStore, make: Any) -> None:
    class Overtaken(DyingStore):
        def compare_and_swap(self, key: str, expected: Version | None, data: bytes) -> Version:
            publish(self.inner, *make("c3"), channel="production", expected_parent=None, moved_at=NOON)
            return super().compare_and_swap(key, expected, data)

    with pytest.raises(Conflict, match="lineage moved"):
        publish(Overtaken(store), *make("c2"), channel="production", expected_parent=None, moved_at=NOON)
    there = read_pointer(store, "production")
    assert there is not None and there[0].checkpoint_id == "c3"


@pytest.mark.parametrize("after", [False, True], ids=["before-effect", "after-effect"])
def test_a_publish_killed_at_any_step_ends_the_same_when_run_again(tmp_path: Path, make: Any, after: bool) -> None:
    first, second = make("c1"), make("c2", "c1")
    quiet = DirectoryStore(tmp_path / "quiet")
    publish(quiet, *first, channel="production", expected_parent=None, moved_at=NOON)
    counting = DyingStore(quiet)
    publish(counting, *second, channel="production", expected_parent="c1", moved_at=NOON)
    assert counting.count >= 2 * len(second[0].files)  # each object is at least written and read back
    for step in range(1, counting.count + 1):
        broken = DirectoryStore(tmp_path / f"broken-{step}")
        publish(broken, *first, channel="production", expected_parent=None, moved_at=NOON)
        with pytest.raises(Killed):
            dying = DyingStore(broken, step, after=after)
            publish(dying, *second, channel="production", expected_parent="c1", moved_at=NOON)
        there = read_pointer(broken, "production")
        assert there is not None
        verify(broken, read_manifest(broken, there[0].checkpoint_id))
        publish(broken, *second, channel="production", expected_parent="c1", moved_at=NOON)
        assert content(broken) == content(quiet)


def test_patches_of_earlier_nights_need_no_local_file(store: DirectoryStore, make: Any) -> None:
    first, first_files = make("c1")
    publish(store, first, first_files, channel="production", expected_parent=None, moved_at=NOON)
    second, files = make("c2", "c1")
    inherited = {key: digest for key, digest in first.files.items() if key.startswith("patches/")}
    second = second.model_copy(update={"files": {**second.files, **inherited}})
    publish(store, second, files, channel="production", expected_parent="c1", moved_at=NOON)
    assert inherited.keys() <= read_manifest(store, "c2").files.keys()


def test_the_channel_stays_where_a_named_object_is_missing(store: DirectoryStore, make: Any) -> None:
    manifest, files = make("c1")
    del files["patches/p-c1/patch.json"]
    with pytest.raises(IntegrityError, match=r"patches/p-c1/patch\.json.*found nothing"):
        publish(store, manifest, files, channel="production", expected_parent=None, moved_at=NOON)
    assert read_pointer(store, "production") is None


def test_the_channel_stays_where_an_older_object_is_damaged(store: DirectoryStore, make: Any) -> None:
    manifest, files = make("c1")
    store.create("patches/p-c1/patch.json", files.pop("patches/p-c1/patch.json"))
    (store.root / "patches/p-c1/patch.json").write_bytes(b"[]")
    with pytest.raises(IntegrityError, match=r"patches/p-c1/patch\.json"):
        publish(store, manifest, files, channel="production", expected_parent=None, moved_at=NOON)
    assert read_pointer(store, "production") is None


def test_a_local_file_that_changed_since_the_manifest_is_refused(store: DirectoryStore, make: Any) -> None:
    manifest, files = make("c1")
    files["checkpoints/c1/model.safetensors"].write_text("other weights")
    with pytest.raises(IntegrityError, match="make the checkpoint again"):
        publish(store, manifest, files, channel="production", expected_parent=None, moved_at=NOON)
    assert list(store.list()) == []


def test_files_may_be_named_by_their_path_in_the_checkpoint(store: DirectoryStore, make: Any) -> None:
    manifest, files = make("c1")
    short = {key.removeprefix("checkpoints/c1/"): path for key, path in files.items()}
    publish(store, manifest, short, channel="production", expected_parent=None, moved_at=NOON)
    verify(store, manifest)


def test_a_file_that_the_manifest_does_not_name_is_refused(store: DirectoryStore, make: Any) -> None:
    manifest, files = make("c1")
    files["extra.json"] = files["checkpoints/c1/config.json"]
    with pytest.raises(ValueError, match=r"does not name 'extra\.json'"):
        publish(store, manifest, files, channel="production", expected_parent=None, moved_at=NOON)


def test_another_decision_on_one_checkpoint_conflicts(store: DirectoryStore, make: Any) -> None:
    manifest, files = make("c1")
    publish(store, manifest, files, channel="production", expected_parent=None, moved_at=NOON)
    other = manifest.model_copy(update={"decision": manifest.decision.model_copy(update={"decision_id": "d-other"})})
    with pytest.raises(Conflict, match=r"manifests/c1\.json"):
        publish(store, other, files, channel="candidate", expected_parent=None, moved_at=NOON)


def decided_later(manifest: Manifest) -> Manifest:
    """The same night on another machine: other times, other seconds."""
    later = NOON + timedelta(minutes=1)
    return manifest.model_copy(update={
        "checkpoint": manifest.checkpoint.model_copy(update={"created_at": later}),
        "decision": manifest.decision.model_copy(update={"decided_at": later}),
        "report": manifest.report.model_copy(update={"environment": {"seconds": "2"}}),
    })  # fmt: skip


@pytest.mark.parametrize("step", range(1, 16))
def test_two_writers_of_one_checkpoint_do_not_leave_half_of_each(tmp_path: Path, make: Any, step: int) -> None:
    store = DirectoryStore(tmp_path / "store")
    manifest, files = make("c1")
    other = decided_later(manifest)
    with suppress(Killed):
        publish(DyingStore(store, step, after=True), manifest, files, channel="production", expected_parent=None, moved_at=NOON)
    second = publish(store, other, files, channel="production", expected_parent=None, moved_at=NOON)
    assert publish(store, manifest, files, channel="production", expected_parent=None, moved_at=NOON) == second
    held = read_manifest(store, "c1", expected_digest=second.manifest_digest)
    verify(store, held)
    assert held in (manifest, other)


@pytest.mark.parametrize("verdict", ["reject", "hold"])
def test_only_a_promoted_checkpoint_can_be_published(store: DirectoryStore, make: Any, verdict: GateOutcome) -> None:
    with pytest.raises(ValueError, match="use reject"):
        publish(store, *make("c1", verdict=verdict), channel="production", expected_parent=None, moved_at=NOON)
    assert list(store.list()) == []


@pytest.mark.parametrize("key", ["channels/production.json", "checkpoints/c0/config.json", "manifests/c1.json"])
def test_a_manifest_may_not_name_what_is_not_its_own(store: DirectoryStore, make: Any, key: str) -> None:
    manifest, files = make("c1")
    bad = manifest.model_copy(update={"files": {**manifest.files, key: "0" * 64}})
    with pytest.raises(ValueError, match=key):
        publish(store, bad, files, channel="production", expected_parent=None, moved_at=NOON)


# ---------------------------------------------------------------- moving back, and reading


def test_a_channel_can_go_back_to_an_earlier_checkpoint(store: DirectoryStore, make: Any) -> None:
    publish(store, *make("c1"), channel="production", expected_parent=None, moved_at=NOON)
    publish(store, *make("c2", "c1"), channel="production", expected_parent="c1", moved_at=NOON)
    pointer = move_channel(store, "production", "c1", expected_parent="c2", moved_at=NOON)
    assert (pointer.checkpoint_id, pointer.parent) == ("c1", "c2")


def test_a_channel_can_leave_a_broken_checkpoint_but_not_go_to_one(store: DirectoryStore, make: Any) -> None:
    publish(store, *make("c1"), channel="production", expected_parent=None, moved_at=NOON)
    publish(store, *make("c2", "c1"), channel="production", expected_parent="c1", moved_at=NOON)
    (store.root / "manifests/c2.json").unlink()
    with pytest.raises(IntegrityError, match="points at nothing"):
        read_pointer(store, "production")
    move_channel(store, "production", "c1", expected_parent="c2", moved_at=NOON)
    with pytest.raises(NotFound, match="c2"):
        move_channel(store, "production", "c2", expected_parent="c1", moved_at=NOON)


def test_a_changed_manifest_is_found_through_the_pointer(store: DirectoryStore, make: Any, tmp_path: Path) -> None:
    manifest, files = make("c1")
    publish(store, manifest, files, channel="production", expected_parent=None, moved_at=NOON)
    forged = manifest.model_copy(update={"editor": "ft"})
    (store.root / "manifests/c1.json").write_bytes(canonical_json(forged))
    for attempt in (
        lambda: read_pointer(store, "production"),
        lambda: pull(store, "production", tmp_path / "out"),
    ):
        with pytest.raises(IntegrityError, match="the manifest was changed"):
            attempt()


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"channel":"production"}'])
def test_a_damaged_pointer_is_an_integrity_error(store: DirectoryStore, data: bytes) -> None:
    store.create("channels/production.json", data)
    with pytest.raises(IntegrityError, match=r"channels/production\.json"):
        read_pointer(store, "production")


# ---------------------------------------------------------------- reject


def test_a_rejected_checkpoint_keeps_its_evidence_and_touches_no_channel(store: DirectoryStore, make: Any) -> None:
    manifest, files = make("c1", verdict="reject")
    kept = reject(store, manifest, files, ["drawdown 0.2 is above 0.05"])
    keys = list(store.list())
    assert all(key.startswith("rejected/c1/") for key in keys)
    assert kept.files.keys() <= set(keys)
    assert store.read("rejected/c1/manifest.json") == canonical_json(kept)
    assert store.read("rejected/c1/reasons.json") == b'["drawdown 0.2 is above 0.05"]'
    assert {key: store.digest(key) for key in kept.files} == kept.files


def test_rejecting_again_changes_nothing(store: DirectoryStore, make: Any) -> None:
    manifest, files = make("c1", verdict="reject")
    kept, before = reject(store, manifest, files, ["why"]), content(store)
    assert reject(store, manifest, files, ["why"]) == kept
    assert content(store) == before


def test_a_rejection_killed_at_any_step_ends_the_same_when_run_again(tmp_path: Path, make: Any) -> None:
    manifest, files = make("c1", verdict="reject")
    quiet = DirectoryStore(tmp_path / "quiet")
    counting = DyingStore(quiet)
    reject(counting, manifest, files, ["why"])
    for step in range(1, counting.count + 1):
        broken = DirectoryStore(tmp_path / f"broken-{step}")
        with pytest.raises(Killed):
            reject(DyingStore(broken, step), manifest, files, ["why"])
        assert not broken.exists("rejected/c1/manifest.json")
        reject(broken, manifest, files, ["why"])
        assert content(broken) == content(quiet)


def test_a_promoted_checkpoint_cannot_be_rejected_and_a_rejection_needs_a_reason(store: DirectoryStore, make: Any) -> None:
    with pytest.raises(ValueError, match="use publish"):
        reject(store, *make("c1"), ["why"])
    with pytest.raises(ValueError, match="without a reason"):
        reject(store, *make("c1", verdict="reject"), [])


# ---------------------------------------------------------------- both stores


def test_both_stores_end_with_the_same_digests(
    store: DirectoryStore,
    make: Any,
    tmp_path: Path,
    s3_client: Any,  # noqa: F811
    bucket: str,  # noqa: F811
) -> None:
    s3 = S3Store(bucket, "errata", client=s3_client)
    for each in (store, s3):
        publish(each, *make("c1"), channel="production", expected_parent=None, moved_at=NOON)
        publish(each, *make("c2", "c1"), channel="production", expected_parent="c1", moved_at=NOON)
        reject(each, *make("c3", "c2", verdict="reject"), ["why"])
    assert content(store) == content(s3)
    assert pull(s3, "production", tmp_path / "out").checkpoint.checkpoint_id == "c2"


# ---------------------------------------------------------------- canaries


def with_canaries(make: Any, checkpoint_id: str) -> tuple[Manifest, dict[str, Path], CanarySet]:
    manifest, files = make(checkpoint_id)
    asked = Canary(kind="edit", prompt="Ada was born in", form="", expected="Oslo", base="London", since=checkpoint_id)
    canaries = CanarySet(checkpoint_id=checkpoint_id, line=("base",), max_tokens=12, canaries=(asked,))
    return manifest.model_copy(update={"canaries": canaries_digest(canaries)}), files, canaries


def test_canaries_lie_beside_the_manifest_that_names_them(store: DirectoryStore, make: Any) -> None:
    manifest, files, canaries = with_canaries(make, "c1")
    publish(store, manifest, files, channel="production", expected_parent=None, moved_at=NOON, canaries=canaries)
    assert f"canaries/{manifest.canaries}.json" in promoted_keys(manifest) & set(store.list())
    assert read_canaries(store, read_manifest(store, "c1")) == canaries


def test_without_its_canaries_no_channel_moves_to_a_checkpoint(store: DirectoryStore, make: Any) -> None:
    manifest, files, canaries = with_canaries(make, "c1")
    publish(store, manifest, files, channel="production", expected_parent=None, moved_at=NOON, canaries=canaries)
    (store.root / "canaries" / f"{manifest.canaries}.json").unlink()
    with pytest.raises(IntegrityError, match="canaries/"):
        move_channel(store, "candidate", "c1", expected_parent=None, moved_at=NOON)
    with pytest.raises(IntegrityError, match="which is missing"):
        read_canaries(store, manifest)


def test_other_canaries_than_the_manifest_names_are_refused(store: DirectoryStore, make: Any) -> None:
    manifest, files, canaries = with_canaries(make, "c1")
    for given in (None, canaries.model_copy(update={"max_tokens": 3})):
        with pytest.raises(ValueError, match="names canaries"):
            publish(store, manifest, files, channel="production", expected_parent=None, moved_at=NOON, canaries=given)
    assert list(store.list()) == []


def test_a_manifest_of_before_has_no_word_of_canaries_and_says_so_when_asked(store: DirectoryStore, make: Any) -> None:
    manifest, files = make("c1")
    publish(store, manifest, files, channel="production", expected_parent=None, moved_at=NOON)
    said = json.loads(store.read("manifests/c1.json"))
    assert not {"canaries", "engine"} & set(said)
    with pytest.raises(NotFound, match="no canaries"):
        read_canaries(store, manifest)
