"""The embedded default world: real facts, our own templates, recorded update nights, a small model that knows them."""

from pathlib import Path

HERE = Path(__file__).parent
