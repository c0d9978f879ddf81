"""A file or folder is there whole or not at all, and what a killed writer leaves can be told from what is written."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.stand_ins import Killed
from warehouse import whole_files
from warehouse.whole_files import is_left_over, whole_file, whole_folder, write_whole


def test_a_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "night.json"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two" and [p.name for p in path.parent.iterdir()] == ["night.json"]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "night.json"
    write_whole(path, b"old")
    with pytest.raises(Killed), whole_file(path) as fresh:
        fresh.write_bytes(b"half")
        assert path.read_bytes() == b"old" and fresh.parent == path.parent
        raise Killed
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["night.json"]


def test_a_block_that_leaves_no_file_is_an_error(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"old")
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_folder_gets_its_name_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "plain.v2"
    with whole_folder(out) as fresh:
        (fresh / "inner").mkdir()
        (fresh / "inner" / "weights").write_bytes(b"w")
        assert not out.exists()
    assert (out / "inner" / "weights").read_bytes() == b"w" and [p.name for p in out.parent.iterdir()] == ["plain.v2"]


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Killed), whole_folder(tmp_path / "out") as fresh:
        (fresh / "half").write_bytes(b"h")
        raise Killed
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_taken_and_a_full_one_only_over(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with whole_folder(out) as fresh:
        (fresh / "a").write_bytes(b"1")
    with pytest.raises(OSError, match="not empty"), whole_folder(out) as fresh:
        (fresh / "b").write_bytes(b"2")
    assert [p.name for p in out.iterdir()] == ["a"] and [p.name for p in tmp_path.iterdir()] == ["out"]
    with whole_folder(out, over=True) as fresh:
        (fresh / "b").write_bytes(b"2")
    assert [p.name for p in out.iterdir()] == ["b"]


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    sync, replace = os.fsync, Path.replace
    paths: dict[int, str] = {}
    opened = os.open

    def watched_open(path: Path, flags: int) -> int:
        handle = opened(path, flags)
        paths[handle] = Path(path).name
        return handle

    def watched_sync(handle: int) -> None:
        seen.append("sync " + paths[handle].split(".")[0])
        sync(handle)

    def watched_replace(self: Path, target: Path) -> Path:
        seen.append("rename")
        return replace(self, target)

    monkeypatch.setattr(whole_files.os, "open", watched_open)
    monkeypatch.setattr(whole_files.os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    write_whole(tmp_path / "file", b"x")
    assert seen == ["sync file", "rename", f"sync {tmp_path.name}"]
    seen.clear()
    with whole_folder(tmp_path / "out") as fresh:
        os.close(opened(fresh / "weights", os.O_CREAT | os.O_WRONLY))
    assert seen == ["sync weights", "sync out", "rename", f"sync {tmp_path.name}"]


def test_two_threads_write_one_file_without_meeting(tmp_path: Path) -> None:
    path, both = tmp_path / "patch.json", threading.Barrier(2)

    def write(text: bytes) -> None:
        with whole_file(path) as fresh:
            fresh.write_bytes(text)
            both.wait(timeout=10)

    threads = [threading.Thread(target=write, args=(text,)) for text in (b"same", b"same")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == b"same" and [p.name for p in tmp_path.iterdir()] == ["patch.json"]


def test_what_is_being_written_is_no_left_over_and_what_a_kill_left_is(tmp_path: Path) -> None:
    dead = int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True).stdout)
    with whole_file(tmp_path / "patch.json") as fresh:
        fresh.write_bytes(b"x")
        assert not is_left_over(fresh)
    assert is_left_over(tmp_path / f"patch.json.{dead}-{dead}.new") and is_left_over(tmp_path / f"patch.json.{dead}.new")
    assert not is_left_over(tmp_path / f"patch.json.{os.getppid()}-1.new")
    # A thread of this process that has ended, and names that earlier versions gave.
    assert is_left_over(tmp_path / f"patch.json.{os.getpid()}-0.new")
    assert is_left_over(tmp_path / f"patch.json.{os.getpid()}.new") and is_left_over(tmp_path / "edited.new")
