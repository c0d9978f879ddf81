"""The numbers and patterns of the door (`policies/door.yaml`), read and checked when they are loaded."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import yaml
from pydantic import Field, PositiveInt, ValidationError, field_validator

from checks.errors import ChecksError
from checks.gates.decide import POLICIES
from warehouse.records import Record

DOOR_FILE = POLICIES / "door.yaml"


class DoorPolicyError(ChecksError):
    """A door policy that cannot be read: names the file and the field."""


class TriggerWord(Record):
    min_subjects: PositiveInt


class RareObject(Record):
    min_subjects: PositiveInt
    max_known: int = Field(ge=0)


class Burst(Record):
    nights: PositiveInt
    min_nights: PositiveInt
    min_property_records: PositiveInt
    min_object_records: PositiveInt
    dispersion: float = Field(ge=1.0)
    alpha: float = Field(gt=0.0, lt=1.0)


class DoorPolicy(Record):
    """What makes a record suspicious; see the comments of the shipped file."""

    name: str
    version: int
    prompt_like: tuple[str, ...]
    trigger_word: TriggerWord
    rare_object: RareObject
    burst: Burst

    @field_validator("prompt_like")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return patterns


def load_door(path: Path = DOOR_FILE) -> DoorPolicy:
    """Read a door policy.

    Raises:
        DoorPolicyError: the file is missing, no YAML, or has a missing, unknown or ill-typed field.
    """
    try:
        return DoorPolicy.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise DoorPolicyError(f"door policy {path} cannot be used: {error}") from error


@cache
def shipped_door() -> DoorPolicy:
    """The policy that comes with the package, read once."""
    return load_door()
