"""Bad input: each received record is kept with a verdict; a file that cannot be read changes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.flows.conftest import Home, bare, begun
from tests.flows.nights import LATER, PERMISSIVE, UPDATES, event, write_night, write_policy

pytestmark = pytest.mark.usefixtures("bare_nights")

Refresh = Callable[..., tuple[int, Any]]


def refreshing(home: Home, folder: Path, world: dict[str, Any], patch: pytest.MonkeyPatch) -> Refresh:
    """`errata refresh --json` over a folder of our own nights: exit code and printed document."""
    variables = {
        "HOME": home.path, "SOURCE__PATH": folder / "nights", "MODEL__NAME": world["model"]["name"],
        "POLICY": write_policy(folder / "policy.yaml", PERMISSIVE, "permissive"), "THREADS": 1,
        "SERVING__CANARIES": world["serving"]["canaries"],
    }  # fmt: skip
    sizes = {f"PROBES__{name.upper()}": value for name, value in world["probes"].items()}
    for name, value in (variables | sizes).items():
        patch.setenv(f"ERRATA_{name}", str(value))

    def run(lines: Sequence[str | bytes] | None = None, night: str = "night-01") -> tuple[int, Any]:
        from flows.cli import app

        if lines is not None:
            write_night(folder / "nights", night, lines)
        result = CliRunner().invoke(app, ["refresh", "--night", night, "--json"])
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        return result.exit_code, json.loads(result.stdout)

    return run


@pytest.fixture
def refresh(home: Home, tmp_path: Path, world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Refresh:
    return refreshing(home, tmp_path, world, monkeypatch)


def verdicts(home: Home) -> dict[str, tuple[str, str]]:
    """Verdict and reason of every record that was received; a record without a verdict has two Nones."""
    rows = home.rows(
        "SELECT record_id, verdict, reason FROM updates LEFT JOIN verdicts USING (source, record_id, night) ORDER BY 1"
    )
    return {row["record_id"]: (row["verdict"], row["reason"]) for row in rows}


def good(number: int = 1) -> str:
    return json.dumps(event(number, 1, *UPDATES[number - 1]))


def changed(number: int, **fields: Any) -> str:
    return json.dumps({**event(number, 1, *LATER[0]), **fields})


# ---------------------------------------------------------------- bad records among good ones


#: The record, and the verdict and reason that it gets.
BAD: dict[str, tuple[str | bytes, str, str]] = {
    "a truncated line": (changed(2)[:150], "reject", "undecodable"),
    "a string of 10 MB": (changed(3, comment="x" * 10_000_000), "reject", "too_large"),
    "a subject that is a number": (changed(4, subject=17), "reject", "malformed_record"),
    "a count that is a word": (changed(5, references="many"), "reject", "malformed_record"),
    "a list": ("[1, 2]", "reject", "malformed_record"),
    "bytes that are no text": (b"\xff\xfe\x00", "reject", "undecodable"),
    "a property that nobody knows": (
        changed(8, property={"id": "P99999", "label": "colour of the roof"}), "quarantine", "unknown_property",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def mixed(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, tuple[int, Any]]:
    """A night of a good record and all the bad ones, and what the command said of it."""
    folder = tmp_path_factory.mktemp("mixed")
    home = begun(world, folder / "home")
    with pytest.MonkeyPatch.context() as patch:
        bare(patch)
        return home, refreshing(home, folder, world, patch)([good(), *(bad for bad, _, _ in BAD.values())])


def test_among_bad_records_the_good_one_is_edited(mixed: tuple[Home, tuple[int, Any]]) -> None:
    home, (code, line) = mixed
    assert (code, line["records"], line["edited"], line["verdict"]) == (0, 1 + len(BAD), 1, "promote")
    assert verdicts(home)["t01-001"][0] == "supersede"
    assert home.findings() == []


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_kept_with_its_verdict(name: str, mixed: tuple[Home, tuple[int, Any]]) -> None:
    bad, verdict, reason = BAD[name]
    home, _ = mixed
    (kept,) = home.rows(
        "SELECT raw, verdict, reason FROM updates LEFT JOIN verdicts USING (source, record_id, night) "
        f"ORDER BY received_seq LIMIT 1 OFFSET {1 + list(BAD).index(name)}"
    )
    raw = bad if isinstance(bad, str) else bad.decode("utf-8", "backslashreplace")
    assert (kept["raw"], kept["verdict"], kept["reason"]) == (raw, verdict, reason)


def test_a_night_of_nothing_but_bad_records_ends_without_an_edit(home: Home, refresh: Refresh) -> None:
    code, line = refresh(["{", "null", changed(2, op="explode")])
    assert (code, line["records"], line["accepted"], line["verdict"]) == (0, 3, 0, "nothing to edit")
    assert [verdict for verdict, _ in verdicts(home).values()] == ["reject"] * 3
    assert list(home.store.list()) == []


# ---------------------------------------------------------------- a bad file


def nothing_done(home: Home) -> bool:
    counts = [home.rows(f"SELECT count(*) AS n FROM {t}")[0]["n"] for t in ("updates", "verdicts", "edits", "reports")]
    return counts == [0, 0, 0, 0] and not list(home.store.list())


@pytest.mark.parametrize("lines", [pytest.param([], id="no byte"), pytest.param(["", "  "], id="blank lines")])
def test_an_empty_file_is_an_error_that_names_it_and_changes_nothing(lines: list[str], home: Home, refresh: Refresh) -> None:
    code, found = refresh(lines)
    assert (code, found["error"]) == (1, "SourceError")
    assert "night-01.events.jsonl" in found["message"]
    assert nothing_done(home)


def test_a_night_that_is_not_there_is_an_error_that_lists_those_that_are(home: Home, refresh: Refresh) -> None:
    write_night(Path(os.environ["ERRATA_SOURCE__PATH"]), "night-02", [good()])
    code, found = refresh()
    assert (code, found["error"]) == (1, "SourceError")
    assert "night-02" in found["message"]
    assert nothing_done(home)


def test_a_file_that_was_mended_is_run_as_if_it_had_never_been_empty(home: Home, refresh: Refresh) -> None:
    assert refresh([])[0] == 1
    code, line = refresh([good()])
    assert (code, line["records"], line["verdict"]) == (0, 1, "promote")


# ---------------------------------------------------------------- twice


def test_the_same_night_twice_adds_nothing(home: Home, refresh: Refresh) -> None:
    first = refresh([good(1), good(2)])
    before = home.listing()
    assert refresh() == first
    assert home.listing() == before
    assert len(verdicts(home)) == 2


def test_the_same_record_twice_in_a_night_is_edited_once_and_both_are_kept(home: Home, refresh: Refresh) -> None:
    code, line = refresh([good(), good()])
    assert (code, line["records"], line["edited"]) == (0, 2, 1)
    assert sorted(verdict for verdict, _ in verdicts(home).values()) == ["merge_duplicate", "supersede"]


def test_a_record_under_a_known_id_with_another_text_waits_and_holds_no_other(home: Home, refresh: Refresh) -> None:
    refresh([good()])
    other = json.dumps({**event(1, 2, *LATER[0]), "record_id": "t01-001"})
    code, line = refresh([other, json.dumps(event(2, 2, *LATER[1]))], night="night-02")
    assert (code, line["records"], line["accepted"]) == (0, 2, 1)
    (held,) = (name for name in verdicts(home) if name.startswith("t01-001~"))
    assert verdicts(home)[held] == ("quarantine", "record_id_reused")
    assert home.findings() == []


def test_a_night_that_stopped_before_it_was_edited_is_withdrawn_and_its_mended_file_read_again(
    home: Home, refresh: Refresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.cli import app

    def broken(*_: object) -> None:
        raise RuntimeError("the model is not there")

    with monkeypatch.context() as patched:
        patched.setattr("tasks.night.edit.base_model", broken)
        with pytest.raises(AssertionError, match="the model is not there"):
            refresh([good(), changed(2, new_value=None)])
    asked = ["night", "withdraw", "night-01", "--reason", "no value", "--json"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0 and json.loads(result.stdout)["records"]["rows"] == 2
    assert verdicts(home) == {}
    code, line = refresh([good(), good(2)])
    assert (code, line["records"], line["accepted"], line["verdict"]) == (0, 2, 2, "promote")
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 1 and "errata revert" in json.loads(result.stdout)["message"]
    assert home.findings() == []


def test_the_same_file_again_under_another_night_is_recognised_by_its_records(home: Home, refresh: Refresh) -> None:
    lines = [good(1), good(2)]
    refresh(lines)
    before = (verdicts(home), home.listing())
    code, line = refresh(lines, night="night-02")
    assert (code, line["records"], line["verdict"]) == (0, 0, "nothing to edit")
    assert (verdicts(home), home.listing()) == before
