"""What each of several workers does: the first runs the training loop, the others follow it."""

from rich.console import Console

from adapters.errors import AdapterError
from finetune.checkpoint import Interrupted, checkpoints
from finetune.group import Group, Workers
from finetune.plan import Job
from finetune.progress import Progress
from finetune.train import Learner, learning_rate, train

LOG = "ray.log"
"""In the run's folder: what the loop says; whoever started the workers shows it."""
STOP = ".stop"
"""In the run's folder: written to ask for a checkpoint and the end."""


def lead(job: Job, group: Group) -> Exception | None:
    """Run the loop from the last checkpoint on, and write all that is written.

    Returns:
        Why it ended before its last step, None where it did not. As an exception it would be
        taken for a lost worker, and tried again.
    """
    outcome: Exception | None = None
    again = (job.folder / LOG).is_file()
    with (job.folder / LOG).open("a", buffering=1, encoding="utf-8") as log:
        if again:
            log.write("a worker was lost, so all of them were started again\n")
        progress = Progress(job.plan.tokens, Console(file=log, soft_wrap=True))
        stop = (job.folder / STOP).exists
        try:
            train(job, resume=True, stop=stop, progress=progress, group=group)
        except (AdapterError, Interrupted) as ended:
            outcome = ended
    group.end()
    return outcome


def follow(job: Job, group: Workers) -> None:
    """Do this worker's share of each step that the leader begins.

    Raises:
        RuntimeError: it can't read the checkpoint that the leader goes on from.
    """
    options, plan = job.recipe.training, job.plan
    try:
        learner = Learner.of(job, group)
        known = checkpoints(job.folder / "checkpoints")
        done = learner.load(known[-1]).step if known else 0
    except AdapterError:
        if group.next_step() is None:
            return  # the leader met it as well, and tells of it
        raise
    learner.model.train()
    while (step := group.next_step()) is not None:
        if step != done:
            raise RuntimeError(
                f"the first worker goes on after step {step}, this one found step {done}: "
                f"{job.folder} must be on a file system that all machines share"
            )
        learner.take(step, learner.batches.at(step), learning_rate(step, plan.steps, options))
        done += 1
