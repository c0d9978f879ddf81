"""From a promotion to a proved server: real models answer over HTTP, rightly and in four wrong ways."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from flows.cli import app
from tasks.proving.check import promoted_canaries
from tasks.proving.prove import NotProved
from tasks.recheck.audit import audit
from tasks.settings import configure
from tests.completions import Answer, CompletionsStandIn, answers_of
from tests.flows.conftest import Home, bare, begun
from tests.flows.nights import LATER, TEACHER, UPDATES
from warehouse.checkpoints.pull import pull
from warehouse.database.connection import Warehouse
from warehouse.digests import sha256_bytes
from warehouse.lineages.audit import entries
from warehouse.lineages.serving import last_check

pytestmark = pytest.mark.usefixtures("bare_nights")


@pytest.fixture(scope="module")
def nights(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[Home]:
    """One home after its first night, and a copy of it after the second; both promoted.

    By an editor that a random model learns from.
    """
    first = begun(world, tmp_path_factory.mktemp("serving") / "first", editor=TEACHER, serving={"canaries": 64})
    with pytest.MonkeyPatch.context() as patched:
        bare(patched)
        assert first.run("night-01").verdict == "promote"
        second = copy_of(first, first.path.with_name("second"))
        assert second.run("night-02").verdict == "promote"
    return [first, second]


def copy_of(home: Home, folder: Path, **serving: Any) -> Home:
    shutil.copytree(home.path, folder)
    return Home({**home.config, "home": str(folder)} | ({"serving": serving} if serving else {}))


@pytest.fixture(scope="module")
def folders(nights: list[Home], world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What a server may serve: the base, and what each night promoted, as it is pulled."""
    made, place = {"base": Path(world["model"]["name"])}, tmp_path_factory.mktemp("served")
    for name, home in zip(("first", "second"), nights, strict=True):
        made[name] = place / name
        pull(home.store, "production", made[name])
    return made


@pytest.fixture
def second(nights: list[Home], tmp_path: Path) -> Home:
    return copy_of(nights[1], tmp_path / "home")


@contextmanager
def served(answer: Answer) -> Iterator[CompletionsStandIn]:
    with CompletionsStandIn(answer) as stand_in:
        yield stand_in


def check(home: Home, url: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[int, dict[str, Any]]:
    monkeypatch.setenv("ERRATA_HOME", str(home.path))
    monkeypatch.setenv("ERRATA_MODEL__NAME", home.config["model"]["name"])
    result = CliRunner().invoke(app, ["serving", "check", url, "--json", *options])
    return result.exit_code, json.loads(result.stdout)


def trail(home: Home) -> list[Any]:
    with Warehouse.open(home.path / "warehouse.duckdb") as wh:
        return [e for e in entries(wh) if e.kind == "serving"]


# ---------------------------------------------------------------- what a promotion writes


def test_a_promotion_writes_canaries_of_tonight_and_of_before_and_bystanders(second: Home) -> None:
    found, manifest = promoted_canaries(configure(second.config)), second.head()
    edits = [c for c in found.canaries if c.kind == "edit"]
    first, base = manifest.checkpoint.parent, found.line[0]
    assert {c.since for c in edits} == {first, manifest.checkpoint.checkpoint_id}
    assert len(edits) < len(found.canaries) <= 64
    assert found.line == (base, first)
    tonight = [c for c in edits if c.since == manifest.checkpoint.checkpoint_id]
    assert {c.expected for c in tonight} == {new[1] for _, _, _, new in LATER}
    # What tells the checkpoints apart: none of the edits is in the base, and tonight's are not in the one before.
    assert all(c.base not in (None, c.expected) and c.previous not in (None, c.expected) for c in tonight)
    earlier = [c for c in edits if c not in tonight]
    assert {new[1] for _, _, _, new in UPDATES} & {c.previous or c.expected for c in earlier}
    assert len({c.prompt for c in found.canaries}) == len(found.canaries)


def test_the_manifest_the_card_and_show_say_what_an_engine_has_to_know(
    second: Home, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, folder = second.head(), folders["second"]
    facts = manifest.engine
    assert facts is not None
    tensors = load_file(folder / "model.safetensors")
    assert facts.tensors == {n: sha256_bytes(t.contiguous().view(torch.uint8).numpy().tobytes()) for n, t in tensors.items()}
    assert (facts.model_class, facts.dtype) == ("GPT2LMHeadModel", "float32")
    assert set(facts.widths) == {len(tensors[f"transformer.h.{i}.mlp.c_proj.weight"]) for i in range(4)}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert str(manifest.canaries) in card and facts.tokenizer in card and manifest.checkpoint.checkpoint_id in card
    monkeypatch.setenv("ERRATA_HOME", str(second.path))
    monkeypatch.setenv("ERRATA_MODEL__NAME", second.config["model"]["name"])
    shown = json.loads(CliRunner().invoke(app, ["show", "--json"]).stdout)
    assert (shown["engine"]["tensors"], shown["canaries"]) == (facts.tensors, manifest.canaries)
    assert str(manifest.canaries) in CliRunner().invoke(app, ["show"]).stdout.replace("\n", "").replace(" ", "")


def test_a_home_with_canaries_stands_its_audit_and_one_whose_canaries_are_changed_does_not(second: Home) -> None:
    settings = configure(second.config)
    assert audit(settings).breaks == ()
    (path,) = second.path.glob(f"store/canaries/{second.head().canaries}.json")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"kind":"edit"', b'"kind":"bystander"', 1))
    assert any(f"canaries/{path.name}" in b.found for b in audit(settings).breaks)


# ---------------------------------------------------------------- right and wrong servers


def test_the_right_server_agrees_and_the_trail_says_so_once(
    second: Home, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(answers_of(folders["second"])) as server:
        code, found = check(second, server.url, monkeypatch)
        again, _ = check(second, server.url, monkeypatch)
    assert (code, again, found["verdict"]) == (0, 0, "agrees"), found
    assert found["body"]["edits"] == found["body"]["num_edits"] > 0
    (entry,) = trail(second)
    assert entry.payload["verdict"] == "agrees"
    assert second.rows("SELECT count(*) AS n FROM serving_checks") == [{"n": 2}]
    assert second.findings() == []


def test_a_server_of_the_base_is_named(second: Home, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with served(answers_of(folders["base"])) as server:
        code, found = check(second, server.url, monkeypatch)
    assert (code, found["verdict"]) == (1, "differs")
    assert "still answers as the base, not as" in found["sentence"]


def test_a_server_of_an_older_night_is_named(second: Home, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with served(answers_of(folders["first"])) as server:
        code, found = check(second, server.url, monkeypatch)
    older = str(second.head().checkpoint.parent)
    assert (code, found["body"]["answers_as"]) == (1, [older])
    assert f"still answers as {older[:8]}, not as" in found["sentence"]


def test_a_server_whose_logits_are_nan_is_broken(
    second: Home, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(model: Any) -> None:
        # As fp16 does with a key of 3e5: infinity, and infinity from infinity in the norm behind it.
        model.transformer.h[0].mlp.c_fc.weight.data[:] = torch.inf

    with served(answers_of(folders["second"], overflow)) as server:
        code, found = check(second, server.url, monkeypatch)
    assert (code, found["verdict"]) == (1, "garbled"), found
    assert "the server is broken" in found["sentence"]


def test_a_server_that_lost_tensors_is_found(
    second: Home, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loader that knows no such name goes on without it: one layer's edited projection is gone."""
    shutil.copytree(folders["second"], tmp_path / "lost")
    tensors = load_file(tmp_path / "lost" / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if name != "transformer.h.2.mlp.c_proj.weight"}
    assert len(kept) == len(tensors) - 1
    # What is missing begins at random.
    torch.manual_seed(0)
    save_file(kept, tmp_path / "lost" / "model.safetensors", {"format": "pt"})
    with served(answers_of(tmp_path / "lost")) as server:
        code, found = check(second, server.url, monkeypatch)
    assert code == 1 and found["verdict"] in ("differs", "garbled"), found
    assert str(second.head().checkpoint.checkpoint_id) not in found["body"]["answers_as"]


def test_weights_that_are_shown_are_compared_with_the_manifest(
    second: Home, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor that changes no answer of a canary is found by its digest."""
    facts = second.head().engine
    assert facts is not None and facts.held
    with served(answers_of(folders["second"])) as server:
        code, found = check(second, server.url, monkeypatch, "--weights")
        assert (code, found["verdict"]) == (0, "agrees") and "HTTP 404" in found["body"]["weights"]["why_not"]
        server.checksums = {f"dp0:pp0:pcp0:tp0:{name}": digest for name, digest in {**facts.tensors, **facts.held}.items()}
        code, found = check(second, server.url, monkeypatch, "--weights")
        assert (code, found["verdict"], found["body"]["weights"]["equal"]) == (0, "agrees", len(server.checksums))
        assert f"{len(server.checksums)} of its tensors are the promoted ones to the bit" in found["sentence"]
        lost = "transformer.h.0.ln_1.bias"
        server.checksums[f"dp0:pp0:pcp0:tp0:{lost}"] = sha256_bytes(b"another")
        code, found = check(second, server.url, monkeypatch, "--weights")
        assert (code, found["verdict"], found["body"]["weights"]["different"]) == (1, "differs", [lost])
        assert check(second, server.url, monkeypatch)[0] == 0


def test_a_server_that_is_not_there_could_not_be_asked(
    second: Home, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_SERVING__RETRIES", "0")
    with served(answers_of(folders["base"])) as server:
        url = server.url
    code, found = check(second, url, monkeypatch)
    assert (code, found["verdict"]) == (2, "unreachable")
    assert "no answer after 1 attempts" in found["sentence"]


def test_where_nothing_was_promoted_there_is_nothing_to_ask(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, found = check(begun(world, tmp_path / "home"), "http://127.0.0.1:9", monkeypatch)
    assert (code, found["error"]) == (2, "NotFound")


# ---------------------------------------------------------------- after a promotion


def after(home: Home, answer: Answer, act: Callable[[Home, CompletionsStandIn], None], folder: Path, **serving: Any) -> None:
    """The first night's home goes on with a server that is asked after its second."""
    with served(answer) as server:
        act(copy_of(home, folder, urls=[server.url], deadline=0.1, retries=0, **serving), server)


def test_a_server_that_comes_up_before_the_deadline_is_proved(
    nights: list[Home], folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.proving.prove.BETWEEN_S", 0.01)
    with served(answers_of(folders["first"])) as server:
        server.reload = (70, answers_of(folders["second"]))
        home = copy_of(nights[0], tmp_path / "home", urls=[server.url], deadline=120, on_mismatch="roll_back")
        line = home.run("night-02")
    assert "which is promoted" in line.details["serving"][server.url + "/v1"]
    assert home.head().checkpoint.checkpoint_id == line.checkpoint_id


def test_warned_of_a_wrong_server_the_next_night_goes_on(nights: list[Home], folders: dict[str, Path], tmp_path: Path) -> None:
    def act(home: Home, server: CompletionsStandIn) -> None:
        said = home.run("night-02").details["serving"][server.url + "/v1"]
        assert "still answers as" in said and said.endswith("warned")
        with pytest.raises(Exception, match="has finished all"):
            home.run(None)  # pyright: ignore[reportArgumentType]

    after(nights[0], answers_of(folders["first"]), act, tmp_path / "home", on_mismatch="warn")


def test_held_the_next_night_is_refused_until_a_check_passes(
    nights: list[Home], folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(home: Home, server: CompletionsStandIn) -> None:
        with pytest.raises(NotProved, match="it was never asked for"):
            home.run("night-02")
        assert check(home, server.url, monkeypatch)[0] == 1
        with pytest.raises(NotProved, match="still answers as the base"):
            home.run("night-02")
        server.answer = answers_of(folders["first"])
        assert check(home, server.url, monkeypatch)[0] == 0
        line = home.run("night-02")
        assert (line.verdict, home.head().checkpoint.checkpoint_id) == ("promote", line.checkpoint_id)
        assert line.details["serving"][server.url + "/v1"].endswith("the next night waits until a check passes")

    after(nights[0], answers_of(folders["base"]), act, tmp_path / "home", on_mismatch="hold")


def test_rolled_back_the_channel_serves_the_night_before(nights: list[Home], folders: dict[str, Path], tmp_path: Path) -> None:
    def act(home: Home, server: CompletionsStandIn) -> None:
        before = home.head().checkpoint.checkpoint_id
        line = home.run("night-02")
        assert home.head().checkpoint.checkpoint_id == before != line.checkpoint_id
        assert line.details["serving"][server.url + "/v1"].endswith(f"the channel serves {before[:8]} again")
        with Warehouse.open(home.path / "warehouse.duckdb") as wh:
            kinds = [e.kind for e in entries(wh)]
            last = last_check(wh, "main", server.url + "/v1", line.checkpoint_id)
        assert kinds[-2:] == ["serving", "rollback"]
        assert last is not None and last.verdict == "differs"
        assert audit(configure(home.config)).breaks == ()
        assert home.run("night-02") == line

    after(nights[0], answers_of(folders["first"]), act, tmp_path / "home", on_mismatch="roll_back")


def test_after_the_first_promotion_there_is_nothing_to_go_back_to(
    world: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    with served(answers_of(folders["base"])) as server:
        serving = {"urls": [server.url], "deadline": 0.1, "on_mismatch": "roll_back"}
        home = begun(world, tmp_path / "home", editor=TEACHER, serving=serving)
        line = home.run("night-01")
        assert home.head().checkpoint.checkpoint_id == line.checkpoint_id
        assert "nothing was promoted before it" in line.details["serving"][server.url + "/v1"]
        with pytest.raises(NotProved, match="still answers as the base"):
            home.run("night-02")
