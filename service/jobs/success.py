"""What follows when a job's version is published: its checkpoints, its result file, its promotion.

Each part may be done again, as where the worker dies in between: a file has an id that follows
from the job, and what the job promoted once it doesn't promote again. Promotion comes last.
"""

import json

from adapters.audit import CALLER, Actor, acting
from adapters.errors import AdapterError
from adapters.names import PRODUCTION
from adapters.registry import Registry, Version
from service.database import JobRow
from service.files import About, Files, derived_id
from service.jobs.attempt import Attempt, step_entries
from service.jobs.leased import LeasedJobs
from service.jobs.results import checkpoint_metrics, metrics_csv
from service.jobs.states import CANCEL, CANCELLED, SUCCEEDED, Outcome, Told


class Success:
    """Brings jobs of one worker to their good end."""

    def __init__(self, registry: Registry, files: Files, jobs: LeasedJobs, worker: str) -> None:
        self._registry, self._files, self._jobs = registry, files, jobs
        self._worker = worker

    def tell(self, attempt: Attempt) -> None:
        """Tell what came of a job.

        Raises:
            LeaseLost: it is another worker's.
            StoreFailed, OSError: the rest is to be done again.
        """
        job = attempt.job
        marker = attempt.folder / "run" / "published.json"
        if not marker.is_file():
            raise RuntimeError("the trainer ended well and published nothing")
        published = json.loads(marker.read_text())
        version = self._registry.find(published["version"])
        for kept in published.get("checkpoints", []):
            figures = checkpoint_metrics(kept["step"], kept["metrics"])
            model = kept["fine_tuned_model"]
            self._jobs.add_checkpoint(job.id, self._worker, kept["step"], model, figures)
        made = self._result_file(attempt)
        if self._jobs.renew(job.id, self._worker) == CANCEL:
            cancelled = Outcome(CANCELLED, result_file=made)
            self._jobs.end(job.id, self._worker, cancelled)
            return
        events = [self._promote(job, version)] if job.order["promote"] else []
        events.append(Told("model", f"New fine-tuned model created: {version.fine_tuned_model}"))
        outcome = Outcome(SUCCEEDED, model=version.fine_tuned_model, result_file=made)
        self._jobs.end(job.id, self._worker, outcome, events)

    def _promote(self, job: JobRow, version: Version) -> Told:
        """Let the version go live; what its gate forbids is told, and the job succeeds."""
        why = f"job {job.id}"
        live = self._registry.aliases(version.name).get(PRODUCTION) == version.number
        # before: an operator may have gone back to another version since
        if not live and why not in (m.why for m in self._registry.alias_history(version.name)):
            try:
                with acting(Actor(CALLER, job.caller, job.project)):
                    self._registry.promote(version.reference, who=job.caller, why=why)
            except AdapterError as error:
                if error.retryable:
                    raise
                return Told("promoted", f"Not promoted: {error.message}", level="warn")
        return Told("promoted", f"{version.reference} is promoted")

    def _result_file(self, attempt: Attempt) -> str:
        """The metrics of every step as a CSV file; made once, whatever dies in between."""
        table = attempt.folder / "step_metrics.csv"
        table.write_text(metrics_csv(step_entries(attempt.folder / "run" / "metrics.jsonl")))
        about = About(attempt.job.project, table.name, "fine-tune-results")
        return self._files.add(table, about, derived_id(attempt.job.id, "step_metrics")).id
