"""What can be known of the container files without an engine: names that meet, commands that can be typed, values used.

Against their public schemas they were held by hand (DECISIONS.md): `check-jsonschema --builtin-schema vendor.compose-spec` and
`kubernetes-validate`.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from tests.documents import wrong_in

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deployments"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
MANIFESTS: list[dict[str, Any]] = list(yaml.safe_load_all((FOLDER / "kubernetes" / "errata.yaml").read_text(encoding="utf-8")))
POOL: dict[str, Any] = json.loads((FOLDER / "kubernetes" / "work-pool.json").read_text(encoding="utf-8"))
CONTAINERFILE = (FOLDER / "Containerfile").read_text(encoding="utf-8")


def pods() -> dict[str, dict[str, Any]]:
    """The pod of each workload, by name."""
    return {
        one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in MANIFESTS if one["kind"] in ("Deployment", "Job")
    }


def shell_lines() -> list[str]:
    """What containers run."""
    lines = [service["command"] for service in COMPOSE["services"].values() if "command" in service]
    return lines + [shlex.join(c["args"]) for pod in pods().values() for c in pod["containers"]]


def test_every_command_of_a_container_can_be_typed() -> None:
    typed = [found for line in shell_lines() for found in re.findall(r"errata (?:[a-z-]+ ?)+(?:--[a-z]+ \w+)*", line)]
    assert len(typed) >= 3
    assert not {line: why for line in typed if (why := wrong_in(line))}


def test_services_wait_for_and_mount_what_there_is() -> None:
    services = COMPOSE["services"]
    for name, service in services.items():
        for other, wanted in service.get("depends_on", {}).items():
            assert other in services, name
            assert wanted["condition"] != "service_healthy" or "healthcheck" in services[other], (
                f"{name} waits for {other} for ever"
            )
        assert {volume.split(":")[0] for volume in service.get("volumes", ())} <= set(COMPOSE["volumes"]), name


def test_what_has_no_login_is_reached_from_this_machine_alone() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    assert not [
        one for one in MANIFESTS if one["kind"] == "Ingress" or one.get("spec", {}).get("type") in ("LoadBalancer", "NodePort")
    ]


def test_no_secret_stands_in_a_file() -> None:
    text = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
    given = re.findall(r"^\s*\w*(?:PASSWORD|SECRET|ACCESS_KEY_ID|PRIVATE_KEY)\w*:[ ]*(.*)$", text, re.MULTILINE)
    assert given and all(value == "" or value.startswith("${") for value in given)
    assert not [one for one in MANIFESTS if one["kind"] == "Secret"]


def test_images_of_others_are_pinned() -> None:
    names = [service["image"] for service in COMPOSE["services"].values()] + [
        c["image"] for p in pods().values() for c in p["containers"]
    ]
    assert all(re.search(r":[\w.-]*\d", name) and "latest" not in name for name in names if name != "errata")


def test_the_image_has_every_package_and_brings_no_telemetry() -> None:
    copied = set(re.findall(r"^COPY (\w+) \w+$", CONTAINERFILE, re.MULTILINE))
    assert copied == {"flows", "tasks", "editors", "checks", "warehouse", "deployments"}
    assert {"DO_NOT_TRACK=1", "PREFECT_SERVER_ANALYTICS_ENABLED=false"} <= set(re.findall(r"[A-Z_]+=\w+", CONTAINERFILE))
    assert "USER errata" in CONTAINERFILE


def test_the_worker_and_its_jobs_run_one_image() -> None:
    images = {container["image"] for pod in pods().values() for container in pod["containers"]}
    assert images == {POOL["variables"]["properties"]["image"]["default"]}


def test_pods_run_as_the_images_user_on_volumes_that_are_claimed() -> None:
    (user,) = {int(number) for number in re.findall(r"--uid (\d+)", CONTAINERFILE)}
    job = POOL["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    claimed = {one["metadata"]["name"] for one in MANIFESTS if one["kind"] == "PersistentVolumeClaim"}
    for pod in (*pods().values(), job):
        assert pod["securityContext"] == {"runAsNonRoot": True, "runAsUser": user, "fsGroup": user}
        mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", ())}
        assert mounted == {volume["name"] for volume in pod.get("volumes", ())}
    assert POOL["variables"]["properties"]["claim"]["default"] in claimed


def test_the_worker_may_make_jobs_and_nothing_else() -> None:
    (role,) = [one for one in MANIFESTS if one["kind"] == "Role"]
    rights = {resource: set(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}
    assert {"create", "delete"} <= rights["jobs"] and not rights["pods"] - {"get", "list", "watch"}
    assert "secrets" not in rights and not [one for one in MANIFESTS if one["kind"].startswith("Cluster")]


def test_every_value_of_the_work_pool_is_declared_and_used() -> None:
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(POOL["job_configuration"])))
    assert used == set(POOL["variables"]["properties"])


def test_a_job_of_the_pool_asks_for_a_node_with_a_gpu() -> None:
    from prefect.utilities.templating import apply_values

    defaults = {name: one["default"] for name, one in POOL["variables"]["properties"].items() if "default" in one}
    filled: dict[str, Any] = apply_values(POOL["job_configuration"]["job_manifest"], defaults | {"command": ["x"], "name": "n"})
    pod = filled["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["containers"][0]["env"]["ERRATA_HOME"] == pod["containers"][0]["volumeMounts"][0]["mountPath"]
