"""Settings: what wins over what, and how a wrong one is told."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.request import proxy_bypass_environment

import pytest

from tasks.home import NoHomeFolder
from tasks.settings import Settings, configure, origins
from warehouse.checkpoints.opening import open_store
from warehouse.errors import UsageError


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, no ERRATA_* variable, and a Prefect home that is not touched."""
    for name in [name for name in os.environ if name.startswith("ERRATA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.chdir(tmp_path)


def test_the_file_wins_over_defaults() -> None:
    Path("errata.toml").write_text('[model]\nname = "some/model"\n', encoding="utf-8")
    assert configure().model.name == "some/model"


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("errata.toml").write_text('[model]\nname = "some/model"\n', encoding="utf-8")
    monkeypatch.setenv("ERRATA_MODEL__NAME", "another/model")
    assert configure().model.name == "another/model"


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_LINEAGE", "from-environment")
    monkeypatch.setenv("ERRATA_EDITOR__NAME", "grace")
    settings = configure(lineage="given", editor="ft")
    assert (settings.lineage, settings.editor.name) == ("given", "ft")


def test_naming_an_editor_keeps_its_other_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_EDITOR__BATCH_SIZE", "7")
    settings = configure(editor="ft")
    assert (settings.editor.name, settings.editor.batch_size) == ("ft", 7)


@pytest.mark.parametrize(
    "values", [{"polcy": "nightly"}, {"model": {"nam": "x"}}, {"threads": "many"}, {"model": {"device": "gpu"}}]
)
def test_an_unknown_or_ill_typed_setting_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="settings"):
        configure(values)


def test_origins_say_where_each_setting_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("errata.toml").write_text('policy = "mine"\n[probes]\ndrawdown = 5\n', encoding="utf-8")
    monkeypatch.setenv("ERRATA_EDITOR__NAME", "grace")
    found = origins(configure())
    assert found["policy"] == found["probes.drawdown"] == "errata.toml"
    assert found["editor.name"] == "environment"
    assert found["probes.seed"] == found["lineage"] == "default"


def test_the_main_lineage_serves_production_and_others_a_channel_of_their_own() -> None:
    assert [Settings(lineage=name).channel_name for name in ("main", "b")] == ["production", "production-b"]


def test_telemetry_is_off_unless_the_user_turns_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    configure({"telemetry": True})
    assert "DO_NOT_TRACK" not in os.environ
    configure()
    assert os.environ["DO_NOT_TRACK"] == "1"


# ---------------------------------------------------------------- paths and homes


def test_a_tilde_is_resolved_in_every_path_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ERRATA_HOME", "~/state")
    monkeypatch.setenv("ERRATA_STORE", "~/store")
    Path("errata.toml").write_text(
        'policy = "~/p.yaml"\ntemplates = "~/t.yaml"\nproperties = "~/p"\n[model]\nname = "~/m"\n'
        '[source]\nkind = "requests"\npath = "~/u"\n[signing]\nprivate_key = "~/k"\ntrusted = ["~/a.pub", "PEM"]\n'
    )
    settings = configure()
    found = [settings.store_url, settings.policy, settings.templates, settings.properties, settings.model.name,
             settings.source.path, settings.signing.private_key, *settings.signing.trusted]  # fmt: skip
    assert found == [str(tmp_path / name) for name in ("store", "p.yaml", "t.yaml", "p", "m", "u", "k", "a.pub")] + ["PEM"]
    # Prefect's state and the warehouse lie in one place.
    assert Path(os.environ["PREFECT_HOME"]).parent == settings.warehouse_path.parent == tmp_path / "state"
    assert not Path("~").exists()


def test_a_tilde_inside_a_path_is_a_letter() -> None:
    assert configure({"store": "s3://b/~x", "source": {"kind": "requests", "path": "a~b/~"}}).source.path == "a~b/~"


@pytest.mark.parametrize("own", ["", "relative", None])
def test_a_home_folder_that_nobody_knows_is_one_line(own: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if own is None:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError()))
    else:
        monkeypatch.setenv("HOME", own)
    for values in ({"home": "~/x"}, {"signing": {"trusted": ["~/k"]}}):
        with pytest.raises(NoHomeFolder, match=r"the setting '~/.*give the whole path") as caught:
            configure(values)
        assert "\n" not in str(caught.value)
    with pytest.raises(NoHomeFolder, match="~nobody-of-that-name"):
        configure({"home": "~nobody-of-that-name/x"})


def test_without_a_home_folder_caches_go_into_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    for name in ("HF_HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "kept")
        monkeypatch.delenv(name)
    configure({"home": str(tmp_path / "state")})
    assert os.environ["HF_HOME"] == str(tmp_path / "state" / "huggingface")


@pytest.mark.parametrize("name", ["file/home", "quest?ion/home"])
def test_a_home_that_cannot_be_used_is_one_line_and_only_for_those_who_need_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("no folder")
    home = str(tmp_path / name)
    with pytest.raises(ValueError, match=r"the home .*(cannot be written|has a '\?').*set ERRATA_HOME") as caught:
        configure({"home": home})
    assert "\n" not in str(caught.value)
    assert configure({"home": home}, writes=False).home == Path(home)
    assert not (tmp_path / "quest?ion").exists()


@pytest.mark.parametrize("name", ["quest?ion", "a#b", "100% sure"])
def test_other_paths_may_have_any_sign_and_an_address_says_how_it_is_written(tmp_path: Path, name: str) -> None:
    store = open_store(str(tmp_path / name))
    store.create("a", b"one")
    assert open_store((tmp_path / name).as_uri()).read("a") == b"one"
    for address in (f"file://{tmp_path}/a?b", "s3://bucket/a?b", "s3://bucket/a#b"):
        with pytest.raises(ValueError, match=r"has a '\?' or '#'"):
            open_store(address)


# ---------------------------------------------------------------- the file


def test_a_mark_before_the_file_is_not_part_of_it() -> None:
    Path("errata.toml").write_bytes(b'\xef\xbb\xbflineage = "x"\r\n')
    settings = configure()
    assert settings.lineage == "x" and origins(settings)["lineage"] == "errata.toml"


@pytest.mark.parametrize(
    ("data", "said"),
    [('lineage = "x"'.encode("utf-16"), "UTF-16"), (b'lineage = "x', "Unterminated|line 1"), (b'lineage = "\xff"', "utf-8")],
)
def test_a_file_that_cannot_be_read_is_named(data: bytes, said: str) -> None:
    Path("errata.toml").write_bytes(data)
    with pytest.raises(ValueError, match=rf"errata\.toml cannot be read: .*(?:{said})"):
        configure()


# ---------------------------------------------------------------- proxies


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for spelling in (name, name.upper()):
            monkeypatch.setenv(spelling, "x")  # so that it is put back afterwards
            monkeypatch.delenv(spelling)
    return monkeypatch


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"])
def test_this_machine_is_spoken_to_without_the_proxy(no_proxies: pytest.MonkeyPatch, name: str) -> None:
    no_proxies.setenv(name, "http://proxy.example:3128")
    no_proxies.setenv("NO_PROXY", "corp.example, localhost")
    configure()
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "corp.example,localhost,127.0.0.1,::1"
    assert proxy_bypass_environment("127.0.0.1:4200") and not proxy_bypass_environment("stream.wikimedia.org")
    configure()
    assert os.environ["NO_PROXY"].count("127.0.0.1") == 1


def test_without_a_proxy_and_with_everything_exempt_nothing_changes(no_proxies: pytest.MonkeyPatch) -> None:
    configure()
    assert "NO_PROXY" not in os.environ
    no_proxies.setenv("HTTP_PROXY", "http://proxy.example:3128")
    no_proxies.setenv("no_proxy", "*")
    configure()
    assert os.environ["no_proxy"] == "*"
