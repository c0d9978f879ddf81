"""Facts in two times at once: what the store believed on a night about a moment of the world."""

from __future__ import annotations

from datetime import datetime

import pandas as pd

from warehouse.frames import utc
from warehouse.store import Warehouse


def believed(wh: Warehouse, night: str, about: datetime | None = None) -> pd.DataFrame:
    """What the store believed at the end of `night` to hold at the moment `about`; None: at any time.

    `known_*` is the night in which the store began and ceased to believe a fact, `valid_*` when it holds in the world;
    both begin with their first moment and end before their last. A fact without a start holds from ever, one without
    an end still holds.
    """
    return wh.query(
        """SELECT * FROM facts
           WHERE known_from_night <= $night AND (known_to_night IS NULL OR known_to_night > $night)
             AND ($about IS NULL OR ((valid_from IS NULL OR valid_from <= $about) AND (valid_to IS NULL OR valid_to > $about)))
           ORDER BY subject_id, relation, object_id, fact_id""",
        {"night": night, "about": utc(about)},
    )
