"""What goes on beside the requests: batches, promotions, a fine-tuning job; all over HTTP."""

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent  # type: ignore[import-untyped]
from gevent.event import Event  # type: ignore[import-untyped]

from loadtests.load import Load
from loadtests.scenario import Batches, FineTuning, Promotions
from loadtests.streaming import Answer, Client
from loadtests.workload import PATHS

POLL_S = 1.0
_BOUNDARY = "modiste-loadtest-4c1d6f"
_BATCH_ENDS = {"completed", "failed", "expired", "cancelled"}
_JOB_ENDS = {"succeeded", "failed", "cancelled"}


class Companions:
    """Greenlets that start with the load and put away what they began when it ends."""

    def __init__(self, host: str, api_key: str | None, load: Load) -> None:
        self._client = Client(host, api_key=api_key, connections=3, timeout_s=120)
        self._load = load
        self._over = Event()
        self._greenlets: list[gevent.Greenlet] = []

    def start(self) -> None:
        beside = self._load.scenario.beside
        if beside.batches is not None:
            self._greenlets.append(gevent.spawn(self._batches, beside.batches))
        if beside.promotions is not None:
            self._greenlets.append(gevent.spawn(self._promotions, beside.promotions))
        if beside.fine_tuning is not None:
            self._greenlets.append(gevent.spawn(self._fine_tuning, beside.fine_tuning))

    def end(self) -> None:
        """Wait until all have come to their end."""
        self._over.set()
        gevent.joinall(self._greenlets)

    def _batches(self, asked: Batches) -> None:
        self._over.wait(asked.at_s)
        for number in range(asked.count):
            if self._over.is_set():
                return
            self._timed("batch", partial(self._one_batch, asked, number))

    def _one_batch(self, asked: Batches, number: int) -> str | None:
        url = PATHS[asked.kind]
        calls = (self._load.workload.call(asked.kind) for _ in range(asked.lines))
        lines = [
            {"custom_id": f"{number}-{line}", "method": "POST", "url": url, "body": call.body}
            for line, call in enumerate(calls)
        ]
        file_id = self._upload("batch.jsonl", "batch", lines)
        order = {"input_file_id": file_id, "endpoint": url, "completion_window": "24h"}
        batch = self._post("/v1/batches", order)
        path = f"/v1/batches/{batch['id']}"
        batch = self._until(path, _BATCH_ENDS, asked.timeout_s)
        if batch["status"] not in _BATCH_ENDS:
            self._post(f"{path}/cancel", {})
        for made in (file_id, batch.get("output_file_id"), batch.get("error_file_id")):
            if made is not None:
                self._client.ask("DELETE", f"/v1/files/{made}")
        failed = (batch.get("request_counts") or {}).get("failed", 0)
        if batch["status"] != "completed" or failed:
            raise ValueError(f"batch {batch['status']}, {failed} of {asked.lines} lines failed")
        return None

    def _promotions(self, asked: Promotions) -> None:
        name = f"/v1/adapters/{asked.adapter}"
        try:
            before = self._client.ask("GET", name).get("aliases", {}).get(asked.alias)
        except (OSError, ValueError) as error:
            self._load.record("promotion", time.perf_counter(), Answer(0, 0.0, error=str(error)))
            return
        turn = 0
        while not self._over.wait(asked.every_s):
            version = asked.versions[turn % len(asked.versions)]
            self._timed("promotion", partial(self._promote, asked, version))
            turn += 1
        if isinstance(before, int) and turn:
            self._timed("promotion", partial(self._promote, asked, before))

    def _promote(self, asked: Promotions, version: int) -> str:
        order = {"version": version, "alias": asked.alias, "why": "load test"}
        self._post(f"/v1/adapters/{asked.adapter}/promote", order)
        return f"{asked.adapter}@{version}"

    def _fine_tuning(self, asked: FineTuning) -> None:
        self._over.wait(asked.at_s)
        self._timed("fine_tuning", partial(self._one_job, asked))

    def _one_job(self, asked: FineTuning) -> str | None:
        file_id = self._upload("chats.jsonl", "fine-tune", self._chats(asked))
        modiste = {"settings": asked.settings} if asked.settings else {}
        method = {
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": asked.epochs}},
            **({"modiste": modiste} if modiste else {}),
        }
        job = self._post(
            "/v1/fine_tuning/jobs",
            {
                "model": asked.model if asked.model is not None else self._load.model,
                "training_file": file_id,
                "suffix": "loadtest",
                "method": method,
            },
        )
        path = f"/v1/fine_tuning/jobs/{job['id']}"
        cut = self._over if asked.cancel_at_end else None
        job = self._until(path, _JOB_ENDS, asked.timeout_s, cut)
        if job["status"] not in _JOB_ENDS:
            self._post(f"{path}/cancel", {})
            job = self._until(path, _JOB_ENDS, POLL_S * 60)
            if job["status"] == "cancelled":
                return None
        if job["status"] != "succeeded":
            raise ValueError(f"job {job['status']}: {job.get('error')}")
        return str(job["fine_tuned_model"])

    def _chats(self, asked: FineTuning) -> list[Any]:
        if asked.training_file is not None:
            with open(asked.training_file, encoding="utf-8") as file:  # noqa: PTH123  # as given
                return [json.loads(line) for line in file if line.strip()]
        passages = [self._load.workload.passage() for _ in range(asked.examples)]
        return [
            {
                "messages": [
                    {"role": "user", "content": f"Example {number}: {passage[:200]}"},
                    {"role": "assistant", "content": passage[:100]},
                ]
            }
            for number, passage in enumerate(passages)
        ]

    def _timed(self, kind: str, act: Callable[[], str | None]) -> None:
        """Do it and record how long it took; `act` gives the model that it was about."""
        began = time.perf_counter()
        error = model = None
        try:
            model = act()
        except (OSError, ValueError, KeyError) as problem:
            error = f"{type(problem).__name__}: {problem}"
        took_ms = (time.perf_counter() - began) * 1000
        status = 200 if error is None else 0
        self._load.record(kind, began, Answer(status, took_ms, model=model, error=error))

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._client.ask("POST", path, json.dumps(body).encode())

    def _until(
        self, path: str, ends: set[str], timeout_s: float, cut: Event | None = None
    ) -> dict[str, Any]:
        """Ask until it has ended, the time is over, or `cut` says so."""
        deadline = time.perf_counter() + timeout_s
        while True:
            found = self._client.ask("GET", path)
            over = time.perf_counter() > deadline or (cut is not None and cut.is_set())
            if found["status"] in ends or over:
                return found
            gevent.sleep(POLL_S)

    def _upload(self, name: str, purpose: str, rows: list[Any]) -> str:
        content = "".join(json.dumps(row) + "\n" for row in rows)
        parts = (
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            f"Content-Type: application/jsonl\r\n\r\n{content}\r\n--{_BOUNDARY}--\r\n"
        )
        content_type = f"multipart/form-data; boundary={_BOUNDARY}"
        uploaded = self._client.ask("POST", "/v1/files", parts.encode(), content_type)
        return str(uploaded["id"])
