"""Names of models in records that leave this machine."""

from __future__ import annotations

import pytest

from tasks.models import shown_name
from tests.support import tiny_model


@pytest.mark.parametrize("name, shown", [("/home/someone/models/gpt", "gpt"), ("owner/gpt2-xl", "owner/gpt2-xl")])
def test_a_local_folder_shows_its_last_part_and_a_hub_id_itself(name: str, shown: str) -> None:
    model = tiny_model()
    model.name = name
    assert shown_name(model) == shown
