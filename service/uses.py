"""Who needs the files of the file store."""

from service.batches import queue as batches
from service.jobs import queue as jobs

USES = (jobs.uses_file, batches.uses_file)
"""Asked before a file goes."""
