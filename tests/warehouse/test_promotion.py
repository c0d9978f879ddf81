"""Promotion, rejection and pull: the channel is the commit point, and nothing unverified is handed out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.warehouse.test_artifacts import bucket, s3_client  # noqa: F401 - fixtures
from warehouse.artifacts import ObjectStore, Version
from warehouse.artifacts_directory import DirectoryStore
from warehouse.artifacts_s3 import S3Store
from warehouse.digests import canonical_json, sha256_bytes
from warehouse.errors import Conflict, IntegrityError, NotFound, WarehouseError
from warehouse.limits import Limits
from warehouse.promotion import (
    checkpoint_files,
    file_digests,
    manifest_digest,
    move_channel,
    patch_files,
    publish,
    read_manifest,
    read_pointer,
    reject,
    verify,
)
from warehouse.pulling import pull
from warehouse.records import Checkpoint, EvaluationReport, GateDecision, GateOutcome, Manifest, Score

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def safetensors_text(note: str) -> str:
    """A safetensors file without a tensor; its header's length is small enough to be text."""
    header = json.dumps({"__metadata__": {"note": note}})
    return chr(len(header)) + "\0" * 7 + header


def make_manifest(
    checkpoint_id: str, files: dict[str, str], parent: str | None = None, verdict: GateOutcome = "promote"
) -> Manifest:
    score = Score(metric="success", value=0.97, low=0.93, high=0.99, n=100)
    return Manifest(
        checkpoint=Checkpoint(
            checkpoint_id=checkpoint_id,
            parent=parent,
            base_model="reference",
            base_revision="1",
            base_digest="0" * 64,
            patch_digests=("p-" + checkpoint_id,),
            created_at=NOON,
        ),
        lineage="memit",
        night="night-01",
        editor="memit",
        verdict=verdict,
        report=EvaluationReport(
            report_id=f"r-{checkpoint_id}",
            before=parent or "",
            after=checkpoint_id,
            probe_set_digest="d",
            scores=(score,),
        ),
        decision=GateDecision(
            decision_id=f"d-{checkpoint_id}",
            report_id=f"r-{checkpoint_id}",
            policy_digest="q",
            verdict=verdict,
            results=(),
            decided_at=NOON,
        ),
        files=files,
    )


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[Manifest, dict[str, Path]]]:
    """Manifest and local files of a small checkpoint."""

    def build(
        checkpoint_id: str, parent: str | None = None, verdict: GateOutcome = "promote"
    ) -> tuple[Manifest, dict[str, Path]]:
        model, patch = tmp_path / "work" / checkpoint_id / "hf", tmp_path / "work" / checkpoint_id / "patch"
        for path, text in (
            (model / "config.json", "{}"),
            (model / "model.safetensors", safetensors_text(f"weights of {checkpoint_id}")),
            (model / "tokenizer" / "vocab.json", "{}"),
            (patch / "patch.safetensors", f"update of {checkpoint_id}"),
            (patch / "patch.json", "{}"),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        files = {**checkpoint_files(checkpoint_id, model), **patch_files(f"p-{checkpoint_id}", patch)}
        return make_manifest(checkpoint_id, file_digests(files), parent, verdict), files

    return build


def content(store: ObjectStore) -> dict[str, str]:
    return {key: store.digest(key) for key in store.list()}


class Killed(BaseException):
    """Stands for SIGKILL: no `except Exception` may swallow it."""


class DyingStore(ObjectStore):
    """Another store whose n-th operation is the last thing this process does, cut off before or after its effect."""

    def __init__(self, inner: ObjectStore, die_at: int | None = None, *, after: bool = False) -> None:
        self.inner, self.url = inner, inner.url
        self.die_at, self.after, self.count = die_at, after, 0

    def _step(self, operation: Callable[[], Any]) -> Any:
        self.count += 1
        dies = self.count == self.die_at
        if dies and not self.after:
            raise Killed
        value = operation()
        if dies:
            raise Killed
        return value

    def create(self, key: str, data: bytes | Path) -> None:
        self._step(lambda: self.inner.create(key, data))

    def stream(self, key: str) -> Iterator[bytes]:
        yield from self._step(lambda: self.inner.stream(key))

    def exists(self, key: str) -> bool:
        return self._step(lambda: self.inner.exists(key))

    def list(self, prefix: str = "") -> Iterator[str]:
        return self._step(lambda: self.inner.list(prefix))

    def read_versioned(self, key: str) -> tuple[bytes, Version]:
        return self._step(lambda: self.inner.read_versioned(key))

    def compare_and_swap(self, key: str, expected: Version | None, data: bytes) -> Version:
        return self._step(lambda: self.inner.compare_and_swap(key, expected, data))


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


def test_a_rejected_checkpoint_cannot_be_pulled_and_says_where_the_reasons_are(
    store: DirectoryStore, make: Any, tmp_path: Path
) -> None:
    reject(store, *make("c1", verdict="reject"), ["why"])
    with pytest.raises(NotFound, match=r"rejected/c1/reasons\.json"):
        pull(store, "c1", tmp_path / "out")


# ---------------------------------------------------------------- pull


@pytest.fixture
def published(store: DirectoryStore, make: Any) -> Manifest:
    manifest, files = make("c1")
    publish(store, manifest, files, channel="production", expected_parent=None, moved_at=NOON)
    return manifest


@pytest.mark.parametrize("name", ["production", "c1"])
def test_a_pulled_folder_is_the_published_one(store: DirectoryStore, published: Manifest, tmp_path: Path, name: str) -> None:
    assert pull(store, name, tmp_path / "deep" / "out") == published
    out = tmp_path / "deep" / "out"
    assert file_digests(checkpoint_files("c1", out)) == {
        key: digest for key, digest in published.files.items() if key.startswith("checkpoints/")
    }
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_pulling_onto_the_same_content_or_an_empty_folder_is_fine(
    store: DirectoryStore, published: Manifest, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    pull(store, "production", out)
    assert pull(store, "production", out) == published


@pytest.mark.parametrize("change", ["another file", "other content", "a file", "a link"])
def test_pulling_onto_something_else_is_refused(
    store: DirectoryStore, published: Manifest, tmp_path: Path, change: str
) -> None:
    out = tmp_path / "out"
    if change in ("another file", "other content"):
        pull(store, "production", out)
        (out / ("note.txt" if change == "another file" else "config.json")).write_text("mine")
    elif change == "a file":
        out.write_text("mine")
    else:
        (tmp_path / "elsewhere").mkdir()
        out.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Conflict, match="give an empty folder"):
        pull(store, "production", out)


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_object_is_not_handed_out(store: DirectoryStore, published: Manifest, tmp_path: Path, damage: str) -> None:
    path = store.root / "checkpoints/c1/model.safetensors"
    if damage == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    else:
        path.unlink()
    with pytest.raises(IntegrityError, match=r"checkpoints/c1/model\.safetensors"):
        pull(store, "production", tmp_path / "pulled" / "out")
    assert list((tmp_path / "pulled").iterdir()) == []


@pytest.mark.parametrize(
    "key", ["checkpoints/c1/../../../evil", "/etc/evil", "checkpoints/c1/a\\..\\evil", "checkpoints/c2/config.json"]
)
def test_a_manifest_that_names_a_path_elsewhere_is_not_followed(
    store: DirectoryStore, published: Manifest, tmp_path: Path, key: str
) -> None:
    evil = published.model_copy(update={"files": {**published.files, key: sha256_bytes(b"evil")}})
    (store.root / "manifests/c1.json").write_bytes(canonical_json(evil))
    with pytest.raises(IntegrityError, match="not to be trusted"):
        pull(store, "c1", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_larger_than_the_limit_is_not_pulled(store: DirectoryStore, published: Manifest, tmp_path: Path) -> None:
    size = sum((store.root / key).stat().st_size for key in published.files if key.startswith("checkpoints/"))
    with pytest.raises(WarehouseError, match="larger than the limit"):
        pull(store, "production", tmp_path / "pulled" / "out", limits=Limits(total_bytes=size - 1))
    assert list((tmp_path / "pulled").iterdir()) == []
    pull(store, "production", tmp_path / "pulled" / "out", limits=Limits(total_bytes=size))


def test_an_unknown_name_is_not_found(store: DirectoryStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no checkpoint productoin"):
        pull(store, "productoin", tmp_path / "out")


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
