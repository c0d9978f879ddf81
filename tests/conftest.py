"""Fixtures of the whole suite; no telemetry and no network in any test."""

from __future__ import annotations

import os

os.environ.update(
    {"GX_ANALYTICS_ENABLED": "False", "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
     "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
)  # fmt: skip

import pytest
import torch

from editors.model import EditableModel
from tests.support import tiny_model

# One is fastest beside other workers; laws are also run with two (`make laws`).
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(params=["gpt2", "llama"])
def tiny(request: pytest.FixtureRequest) -> EditableModel:
    """A fresh tiny model of each architecture."""
    return tiny_model(request.param)
