"""Fixtures of the whole suite; no telemetry and no network in any test."""

from __future__ import annotations

import os

os.environ.update(
    {"GX_ANALYTICS_ENABLED": "False", "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
     "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
)  # fmt: skip

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from editors.model import EditableModel
from tests import elsewhere
from tests.support import tiny_model

# One is fastest beside other workers; laws are also run with two (`make laws`).
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Two workers begin with what takes long: flows, whose fixtures the first then makes alone, and quality.

    Each is given one half of the list, and who has done its own takes from the end of the other's.
    """
    if not hasattr(config, "workerinput"):
        return
    flows, quality = ([i for i in items if i.nodeid.startswith(f"tests/{room}/")] for room in ("flows", "quality"))
    rest = [i for i in items if not i.nodeid.startswith(("tests/flows/", "tests/quality/"))]
    beside = max(0, len(items) // 2 - len(flows))
    items[:] = [*flows, *rest[:beside], *quality, *rest[beside:]]


REAL = [*(["cuda"] if torch.cuda.is_available() else []), *(["mps"] if torch.backends.mps.is_available() else [])]


@pytest.fixture(params=[*([elsewhere.NAME] if elsewhere.possible() else []), *REAL])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Each device that this machine has beside its CPU, real or pretended."""
    if request.param == elsewhere.NAME:
        with elsewhere.at_work() as pretended:
            yield pretended
    else:
        yield torch.device(request.param)


@pytest.fixture(params=["gpt2", "llama"])
def tiny(request: pytest.FixtureRequest) -> EditableModel:
    """A fresh tiny model of each architecture."""
    return tiny_model(request.param)


@pytest.fixture(scope="session")
def prepared_home(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Makes homes on the reference model that have one folder of preparations, which are kept by what they depend on.

    Both workers of a run have the same folder: a preparation that takes twenty seconds is made once.
    """
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "reference-preparations"
    shared.mkdir(exist_ok=True)

    def make(home: Path) -> Path:
        home.mkdir(parents=True, exist_ok=True)
        (home / "preparations").symlink_to(shared)
        return home

    return make


@pytest.fixture
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of moto's HTTP server, found by boto3 as any other: from the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    values = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
              "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=values["AWS_ENDPOINT_URL"]).create_bucket(Bucket="nights")
    yield "nights"
    server.stop()
