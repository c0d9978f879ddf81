"""A checkpoint's weights are the same on every machine: another instruction set, other threads, another place in memory."""

from __future__ import annotations

import pytest

from tests.machines import SETTINGS, checkpoints, run

#: Recorded on an AMD EPYC with AVX-512.
RECORDED = {
    "gpt2, weights": "ff0ca68944355853", "gpt2, slots": "3f587de0d222bf76", "gpt2, slots of before": "2bb7027361a239e1",
    "gpt2, neurons of before": "490d8e2df6661156",
    "llama, weights": "1bbd67c1945d24cd", "llama, slots": "b831b07bb2cd259d", "llama, slots of before": "6a11fd91a7d8445e",
    "llama, neurons of before": "c06fb0e8e536d025",
}  # fmt: skip


@pytest.mark.law
@pytest.mark.parametrize("bad", [False, True], ids=["well laid", "badly laid"])
def test_checkpoints_are_those_of_every_other_machine(bad: bool) -> None:
    assert checkpoints(bad) == RECORDED


@pytest.mark.parametrize("setting", sorted(SETTINGS))
def test_a_process_under_other_settings_makes_the_same_checkpoints(setting: str) -> None:
    assert run(setting, "checkpoints") == RECORDED
