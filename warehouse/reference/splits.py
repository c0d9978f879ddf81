"""Who learns and who is measured: every subject's split, a stable draw by its id, the same over nights and releases."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from warehouse.digests import digest_of

FactSplit = Literal["calibration", "development", "report"]
#: Share of subjects whose facts stand in the second moment; the others are free for probes. A few thousand tokens a
#: layer are enough for the moment (arXiv:2506.04226: 0.3% of the usual sample), and the more subjects stay free the better.
CALIBRATION_SHARE = 0.3


@lru_cache(1 << 17)
def is_calibration_subject(subject_id: str) -> bool:
    """Do preparations and demonstrations learn from the subject? Then it is never measured."""
    return int(digest_of("calibration", subject_id)[:8], 16) / 16**8 < CALIBRATION_SHARE


def half_of(subject_id: str) -> Literal["development", "report"]:
    """The half that a subject would be measured in: numbers are chosen on one, and what is reported is of the other."""
    return "development" if int(digest_of("benchmark-split", subject_id)[:8], 16) % 2 else "report"


def split_of(subject_id: str) -> FactSplit:
    """The split of a subject with all of its facts."""
    return "calibration" if is_calibration_subject(subject_id) else half_of(subject_id)
