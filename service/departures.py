"""Versions that were taken out of use leave this server, so that their files can go.

Else one that is loaded would keep its lease until another needs its place.
"""

import asyncio
import logging

from adapters.errors import AdapterError
from adapters.registry import Registry
from service.residency import Residency

logger = logging.getLogger("modiste.departures")

EVERY_S = 5.0


async def follow_retirements(registry: Registry, residency: Residency) -> None:
    """For as long as the server runs."""
    while True:
        await asyncio.sleep(EVERY_S)
        try:
            held = residency.leasing.held()
            gone = await asyncio.to_thread(registry.out_of_use, held) if held else []
            await asyncio.gather(*(residency.let_go(version) for version in gone))
        except AdapterError as error:
            logger.warning("retired versions stay loaded: %s", error)
        except Exception:  # the loop must outlive any one failure
            logger.exception("retired versions stay loaded")
