"""Where the training loop runs: in this process, or in workers that Ray starts.

It is no key of the recipe. The digest of a recipe names its run, and says what a version learned,
not on how many machines; so a run may go on with other workers than it began with.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adapters.errors import InvalidInput
from finetune.plan import Job
from finetune.progress import Progress
from finetune.train import train

Kind = Literal["local", "ray"]
MOST_WORKERS = 1024
"""More would take each other's seeds."""


@dataclass(frozen=True, slots=True)
class Executor:
    """See the module.

    Args:
        kind: local or ray.
        workers: of Ray; None: one a GPU, or one a machine where there is none.

    Raises:
        InvalidInput: the two don't go together, or Ray is not installed.
    """

    kind: Kind = "local"
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.kind == "local" and self.workers is not None:
            raise InvalidInput(
                "--workers is for several processes, and this run has one",
                hint="add --executor ray",
                param="--workers",
            )
        if self.workers is not None and not 1 <= self.workers <= MOST_WORKERS:
            raise InvalidInput(
                f"--workers {self.workers}: from 1 to {MOST_WORKERS}", param="--workers"
            )
        if self.kind == "ray" and importlib.util.find_spec("ray") is None:
            raise InvalidInput(
                "--executor ray needs Ray, which is not installed",
                hint="install it: pip install 'modiste[ray]', or leave out --executor",
                param="--executor",
            )

    def train(
        self,
        job: Job,
        *,
        resume: bool,
        stop: Callable[[], bool],
        progress: Progress,
        follow: Callable[[dict[str, Any]], None] | None = None,
    ) -> Path:
        """Train as `finetune.train.train` does, with the same files and errors.

        Args:
            follow: in this process alone.

        Raises:
            WorkersFailed: Ray's workers were lost too often.
        """
        if self.kind == "local":
            return train(job, resume=resume, stop=stop, progress=progress, follow=follow)
        from finetune.ray_run import train_on_ray

        return train_on_ray(job, self.workers, resume=resume, stop=stop, console=progress.console)


LOCAL = Executor()
