"""Every check of `errata doctor`, in order; one that breaks is a fault with its reason, and the others go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from tasks.doctor.health import Health, fault, warning
from tasks.doctor.machine import check_clock, check_device, check_disk, check_memory, check_model
from tasks.doctor.nights import check_keys, check_nights
from tasks.doctor.orchestration import check_alerts, check_prefect
from tasks.doctor.services import check_servers, check_source, check_the_store
from tasks.doctor.versions import check_versions
from tasks.settings import Settings
from warehouse.database.connection import WarehouseBusy

log = logging.getLogger(__name__)
Check = Callable[[Settings], Health | list[Health]]
#: Cheap and telling ones first. `model` takes the seconds that loading takes.
CHECKS: dict[str, Check] = {
    "versions": check_versions,
    "disk": check_disk,
    "keys": check_keys,
    "store": check_the_store,
    "clock": check_clock,
    "source": check_source,
    "nights": check_nights,
    "serving": check_servers,
    "prefect": check_prefect,
    "alerts": check_alerts,
    "device": check_device,
    "memory": check_memory,
    "model": check_model,
}


def examine(settings: Settings, *, leave_out: tuple[str, ...] = ()) -> Iterator[Health]:
    """The lines of all checks, each as soon as it is known.

    Args:
        leave_out: names of checks that are not made.
    """
    for name, check in CHECKS.items():
        if name in leave_out:
            continue
        try:
            found = check(settings)
        except WarehouseBusy as error:
            yield warning(name, f"not looked at: {error}", "a night may be under way; ask again when it has ended")
        except Exception as error:
            log.debug("check %s", name, exc_info=True)
            yield fault(name, f"{type(error).__name__}: {error}", "mend what it names; ERRATA_LOG=debug shows where")
        else:
            yield from found if isinstance(found, list) else [found]
