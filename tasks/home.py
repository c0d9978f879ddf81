"""Where state lies on this machine, and what the libraries that we start are told about it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tasks.errors import TasksError
from warehouse.errors import UsageError

#: Hosts that are this machine.
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


class NoHomeFolder(TasksError):
    """A setting begins with `~`, and nobody says where that is. No ValueError: pydantic would wrap it in lines of its own."""


class HomeUnusable(UsageError):
    """The folder for state cannot be written, or its name cannot be used; says which setting to change."""


def expanded(path: str) -> str:
    """A path setting with its `~` or `~user` resolved; anything else as it is.

    Raises:
        NoHomeFolder: there is no such home folder.
    """
    if not path.startswith("~"):
        return path
    own = os.environ.get("HOME")
    try:
        if path.partition("/")[0] == "~" and own is not None and not Path(own).is_absolute():
            raise RuntimeError
        return str(Path(path).expanduser())
    except RuntimeError:
        raise NoHomeFolder(
            f"the setting {path!r} begins with a home folder that is not known here (HOME is {own!r}); give the whole path"
        ) from None


def ensure_home(home: Path) -> None:
    """Make the folder for state, and see that it can be written.

    Raises:
        HomeUnusable: it cannot be made or written, or Prefect could not keep its database there.
    """
    advice = "set ERRATA_HOME, or `home` in errata.toml, to another folder"
    whole = home.absolute()
    if "?" in str(whole):
        # Prefect keeps its state in an SQLite database whose address would end at the question mark.
        raise HomeUnusable(
            f"the home {whole} has a '?' in its name, which the address of Prefect's database cannot hold; {advice}"
        )
    try:
        (whole / "prefect").mkdir(parents=True, exist_ok=True)
        for folder in (whole, whole / "prefect"):
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise HomeUnusable(f"the home {whole} cannot be written ({error.strerror or error}); {advice}") from error


def exempt_loopback() -> None:
    """Behind a proxy, speak to this machine directly: the server that Prefect starts for a night is here."""
    names = {name: os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES}
    if not any(names.values()):
        return
    # Where both spellings are set, the lower case one is what the libraries read.
    kept = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in kept.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in LOOPBACK if host not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)


def place_caches(home: Path) -> None:
    """Where this user has no home folder, caches of libraries go into ours and not into a folder called `~`."""
    try:
        expanded("~/x")
    except NoHomeFolder:
        for name, folder in (("HF_HOME", "huggingface"), ("MPLCONFIGDIR", "matplotlib"), ("XDG_CACHE_HOME", "cache")):
            os.environ.setdefault(name, str(home.absolute() / folder))
