"""Where SmolLM2-135M-Instruct lies, the real model that some tests ask: `make real` makes it; without it they are skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks.serving.fetch import MODELS

REAL = Path(
    os.environ.get("ERRATA_REAL_MODEL")
    or Path(__file__).parent.parent / ".errata" / "models" / MODELS["smollm2"].folder
)  # fmt: skip
#: For `pytestmark`.
NEEDS_REAL = [
    pytest.mark.real,
    pytest.mark.skipif(
        not (REAL / "config.json").exists(),
        reason=f"no SmolLM2 in {REAL}: run `make real`, or set ERRATA_REAL_MODEL to its folder",
    ),
]
