"""Probes and sets of them by their content: what is the same question has the same id, wherever it is asked."""

from __future__ import annotations

from collections.abc import Iterable

from warehouse.digests import digest_of
from warehouse.records import Probe, ProbeKind, ProbeSet

#: Raise it when the same facts and requests would give other probes.
PROBE_SET_VERSION = 1


def make_probe(kind: ProbeKind, prompt: str, targets: Iterable[str], request_id: str | None = None) -> Probe:
    answers = tuple(targets)
    probe_id = digest_of(kind, prompt, answers)
    return Probe(probe_id=probe_id, kind=kind, prompt=prompt, targets=answers, request_id=request_id)


def make_probe_set(name: str, probes: Iterable[Probe]) -> ProbeSet:
    """A set that asks each question once (its first owner keeps it), in an order that depends on content alone."""
    unique: dict[str, Probe] = {}
    for probe in probes:
        unique.setdefault(probe.probe_id, probe)
    ordered = tuple(sorted(unique.values(), key=order_of))
    return ProbeSet(name=name, version=PROBE_SET_VERSION, probes=ordered, digest=probe_set_digest(ordered))


def probe_set_digest(probes: Iterable[Probe]) -> str:
    """Identity of a set: which questions are asked, and for which request; order and name do not matter."""
    return digest_of(sorted([probe.probe_id, probe.request_id or ""] for probe in probes))


def order_of(probe: Probe) -> tuple[str, str, str]:
    """What a set's probes are sorted by."""
    return (probe.kind, probe.request_id or "", probe.probe_id)
