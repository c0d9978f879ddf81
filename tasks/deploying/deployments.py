"""The deployments of `deployments/prefect.yaml` for any lineage, put on a server by Prefect's own command."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import TasksError
from warehouse.errors import UsageError

#: From the repository's root, where flow files are found by path.
FILE = Path("deployments") / "prefect.yaml"
#: The lineage whose deployments have the names of the file as they stand.
FIRST_LINEAGE = "main"


class DeployFailed(TasksError):
    """Prefect did not take something; says what, and what Prefect answered."""


def name_for(name: str, lineage: str) -> str:
    """A deployment's name: `nightly` of the lineage `main`, `nightly-trial` of `trial`."""
    return name if lineage == FIRST_LINEAGE else f"{name}-{lineage}"


def read_file(root: Path) -> dict[str, Any]:
    """The document of the repository at `root`.

    Raises:
        UsageError: it is not there; names the folder.
    """
    path = root / FILE
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): run this in the root of Errata's repository") from error


def deployments_for(
    document: Mapping[str, Any], lineages: Sequence[str], pool: str, *, cron: str = "", editor: str = ""
) -> dict[str, Any]:
    """The document with every deployment for each of the lineages.

    Args:
        pool: the work pool whose workers run them.
        cron: when nights begin, in the file's time zone; empty: as the file says.
        editor: of the nights; empty: the settings'.
    """
    made = []
    for lineage in lineages:
        for entry in document["deployments"]:
            parameters = {**entry["parameters"], "lineage": lineage}
            schedules = [dict(schedule) for schedule in entry["schedules"]]
            if entry["name"] == "nightly":
                parameters |= {"editor": editor} if editor else {}
                schedules = [{**schedule, "cron": cron or schedule["cron"]} for schedule in schedules]
            name, work_pool = name_for(entry["name"], lineage), {**entry["work_pool"], "name": pool}
            made.append({**entry, "name": name, "parameters": parameters, "schedules": schedules, "work_pool": work_pool})
    return {**document, "deployments": made}


def put(document: Mapping[str, Any], root: Path) -> list[str]:
    """Deploy them all; the same again changes nothing. Returns their names, each after its flow's.

    Raises:
        DeployFailed: Prefect's command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prefect.yaml"
        path.write_text(yaml.safe_dump(dict(document), sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(path)]
        done = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True)
    if done.returncode:
        raise DeployFailed(f"`prefect deploy` ended with {done.returncode}:\n{(done.stderr or done.stdout).strip()[-2000:]}")
    return [entry["name"] for entry in document["deployments"]]
