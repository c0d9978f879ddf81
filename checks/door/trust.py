"""How far a record is believed: public signals of Wikidata weighed by a policy file (`policies/trust.yaml`).

To weigh a signal differently, change the file and its version; the digest of the policy in force is on every night.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from pydantic import ValidationError

from checks.errors import ChecksError
from checks.gates.decide import POLICIES
from warehouse.records import Record
from warehouse.world.changes import Change

TRUST_FILE = POLICIES / "trust.yaml"
_UNKNOWN = "unknown"


class TrustPolicyError(ChecksError):
    """A trust policy that cannot be read: names the file and the field."""


class TrustPolicy(Record):
    """Weights of the signals; a record whose sum is below `trusted_from` is untrusted."""

    name: str
    version: int
    trusted_from: int
    patrolled: int
    referenced: int
    reverted_later: int
    editor_class: dict[str, int]
    tags: dict[str, int]
    reverted_tags: tuple[str, ...]


def load_trust(path: Path = TRUST_FILE) -> TrustPolicy:
    """Read a trust policy.

    Raises:
        TrustPolicyError: the file is missing, no YAML, or has a missing, unknown or ill-typed field.
    """
    try:
        policy = TrustPolicy.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise TrustPolicyError(f"trust policy {path} cannot be used: {error}") from error
    if _UNKNOWN not in policy.editor_class:
        raise TrustPolicyError(f"trust policy {path}: editor_class has no '{_UNKNOWN}', the weight of every class not listed")
    return policy


@cache
def shipped_trust() -> TrustPolicy:
    """The policy that comes with the package, read once."""
    return load_trust()


def was_reverted(change: Change, policy: TrustPolicy) -> bool:
    """Whether Wikidata itself marks the edit as taken back later."""
    return any(tag in policy.reverted_tags for tag in change.tags)


def trust_of(change: Change, policy: TrustPolicy) -> int:
    """The sum of the weights of the signals that a change carries."""
    unlisted = policy.editor_class[_UNKNOWN]
    return (
        policy.editor_class.get(change.editor_class, unlisted)
        + policy.patrolled * change.patrolled
        + policy.referenced * (change.references > 0)
        + policy.reverted_later * was_reverted(change, policy)
        + min((policy.tags[tag] for tag in change.tags if tag in policy.tags), default=0)
    )


def is_untrusted(change: Change, policy: TrustPolicy) -> bool:
    return trust_of(change, policy) < policy.trusted_from
