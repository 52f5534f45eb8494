"""What batches leave behind: parts of those that have ended, folders of killed servers."""

import asyncio
import logging
from collections import defaultdict

from adapters.errors import AdapterError
from adapters.remote import Remote
from service.batches.bench import Bench
from service.batches.parts import FOLDER
from service.batches.queue import Batches
from service.scratch import sweep

logger = logging.getLogger("modiste.batches")

EVERY_S = 3600.0
OLD_S = 24 * 3600.0
"""A part that is younger may be another attempt's."""


async def keep_sweeping(bench: Bench) -> None:
    """For as long as the server runs."""
    while True:
        try:
            await asyncio.to_thread(sweep, bench.files.scratch)
            await asyncio.to_thread(sweep_parts, bench.files.contents, bench.batches)
        except (AdapterError, OSError) as error:
            logger.warning("what batches left behind is removed later: %s", error)
        except Exception:  # the next time is soon
            logger.exception("what batches left behind is removed later")
        await asyncio.sleep(EVERY_S)


def sweep_parts(contents: Remote, batches: Batches) -> int:
    """Remove old parts of batches that have ended or are not known; returns how many.

    Raises:
        StoreFailed: the rest is left for the next time.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for key in contents.files(FOLDER):
        batch, _, _name = key.partition("/")
        found[batch].append(f"{FOLDER}/{key}")
    removed = 0
    for batch in found.keys() - batches.at_work(list(found)):
        old = [key for key in found[batch] if contents.age_s(key) > OLD_S]
        contents.remove(old)
        contents.remove_folder(f"{FOLDER}/{batch}")
        removed += len(old)
    return removed
