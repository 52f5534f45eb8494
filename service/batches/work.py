"""One batch at work in this server: read its file, ask line after line, keep what comes."""

import asyncio
import json
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from uuid import uuid4

from adapters.errors import AdapterError, StoreFailed
from service.batches.gate import Gate
from service.batches.lines import Fault, Index, index_lines
from service.batches.parts import ERROR, OUTPUT, Parts, Result
from service.batches.queue import (
    CANCELLED,
    CANCELLING,
    COMPLETED,
    EXPIRED,
    FAILED,
    MOST_LOST,
    Batches,
    LeaseLost,
)
from service.children import Children
from service.database import BatchRow
from service.errors import BadRequest, FileNotFound
from service.files import About, Files, derived_id
from service.inside import Answer
from service.record import PRIORITY_BATCH, Record
from service.telemetry import Metrics

logger = logging.getLogger("modiste.batches")

KEEP_EVERY_S = 1.0
"""What a crash repeats at most: a line that is kept is never asked again."""
IN_PROCESS_BYTES = 2**20
"""Smaller files are read by the server itself: a process would take longer to start."""
TRIES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Pauses before a line is asked again that the server had no room for."""
_PASSING = frozenset({429, 503})

_LOST = {
    "code": "servers_lost", "param": None, "line": None,
    "message": f"{MOST_LOST} servers ended one after the other at this batch",
}  # fmt: skip

T = TypeVar("T")
Ask = Callable[[str, bytes, Record], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Bench:
    """What all batches of a server share."""

    batches: Batches
    files: Files
    parts: Parts
    children: Children
    gate: Gate
    ask: Ask
    server: str
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Lines:
    """The file that is asked, open."""

    descriptor: int
    index: Index

    def read(self, at: int) -> dict[str, Any]:
        """A line that was found to be a request."""
        offset, length = self.index.place(at)
        raw = os.pread(self.descriptor, length, offset)
        line: dict[str, Any] = json.loads(raw.decode("utf-8-sig"))
        return line


class Work:
    """A batch that this server leased."""

    def __init__(self, bench: Bench, batch: BatchRow) -> None:
        self._bench, self._batch = bench, batch
        self._results: list[Result] = []

    async def run(self) -> None:
        """To its end, or until the server ends or another has the batch."""
        try:
            with ExitStack() as stack:
                await self._work(stack)
        except LeaseLost:
            logger.warning("%s is another server's now", self._batch.id)
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back())
            raise
        except AdapterError as error:  # the store or the database is away: the lease runs out
            logger.warning("%s waits: %s", self._batch.id, error)

    async def _work(self, stack: ExitStack) -> None:
        bench, id_ = self._bench, self._batch.id
        try:
            place = await self._content(stack)
            index = await self._index(place)
        except (BadRequest, FileNotFound) as error:
            told = {"code": error.code, "message": error.message, "param": error.param}
            await self._end(FAILED, errors=[{**told, "line": None}])
            return
        keys = await asyncio.to_thread(bench.batches.parts, id_)
        done = await self._renewing(asyncio.to_thread(bench.parts.numbers, keys))
        batch = await asyncio.to_thread(bench.batches.begin, id_, bench.server, index.total)
        self._results += [_refused(f) for f in index.faults if f.number not in done]
        lines = Lines(os.open(place, os.O_RDONLY), index)
        stack.callback(os.close, lines.descriptor)
        left = [at for at in index.order if index.numbers[at] not in done]
        logger.info("%s: %d of %d lines are left", id_, len(left), index.total)
        status = _overdue(batch) if left else COMPLETED
        if status is None:
            status = FAILED if batch.lost >= MOST_LOST else await self._follow(lines, left)
        await self._finish(lines, status)

    async def _content(self, stack: ExitStack) -> Path:
        file = await asyncio.to_thread(
            self._bench.files.find, self._batch.input_file, self._batch.project, "input_file_id"
        )
        return await asyncio.to_thread(stack.enter_context, self._bench.files.content(file))

    async def _index(self, place: Path) -> Index:
        endpoint = self._batch.endpoint
        if (await asyncio.to_thread(place.stat)).st_size <= IN_PROCESS_BYTES:
            return await asyncio.to_thread(index_lines, place, endpoint)
        with TemporaryDirectory(dir=self._bench.files.scratch) as folder:
            out = Path(folder) / "index"
            await self._renewing(
                self._bench.children.run("service.batches.lines", str(place), endpoint, str(out))
            )
            return await asyncio.to_thread(Index.read, out)

    # on the way

    async def _follow(self, lines: Lines, left: list[int]) -> str:
        """Ask all lines that are left; how the batch ends."""
        asking = asyncio.create_task(self._ask_all(lines, left))
        try:
            while not asking.done():
                await asyncio.wait({asking}, timeout=KEEP_EVERY_S)
                batch = await self._keep()
                if batch is not None and not asking.done() and (status := _overdue(batch)):
                    return status
            await asking
        finally:
            asking.cancel()
            await asyncio.wait({asking})
        return COMPLETED

    async def _ask_all(self, lines: Lines, left: list[int]) -> None:
        gate = self._bench.gate
        async with asyncio.TaskGroup() as group:
            for at in left:
                await gate.enter()
                task = group.create_task(self._line(lines, at))
                task.add_done_callback(lambda _: gate.leave())

    async def _line(self, lines: Lines, at: int) -> None:
        asked = lines.read(at)
        answer = await self._answer(json.dumps(asked["body"]).encode())
        result = _result(lines.index.numbers[at], asked["custom_id"], answer)
        self._results.append(result)
        outcome = "answered" if result.kind == OUTPUT else "failed"
        self._bench.metrics.batch_lines.labels(outcome).inc()

    async def _answer(self, body: bytes) -> Answer:
        for pause in (*TRIES_S, None):
            record = Record(
                uuid4().hex, self._batch.endpoint, project=self._batch.project,
                caller=self._batch.caller, priority=PRIORITY_BATCH,
            )  # fmt: skip
            answer = await self._bench.ask(self._batch.endpoint, body, record)
            if answer.status not in _PASSING or pause is None:
                break
            await asyncio.sleep(pause)
        return answer

    async def _keep(self) -> BatchRow | None:
        """Store what came since the last time; None where the database or the store is away."""
        bench, results = self._bench, self._results
        try:
            if not results:
                return await self._renew()
            self._results = []
            place = await asyncio.to_thread(bench.parts.write, self._batch.id, results)
            failed = sum(result.kind == ERROR for result in results)
            return await asyncio.to_thread(
                bench.batches.keep, self._batch.id, bench.server, place,
                len(results) - failed, failed,
            )  # fmt: skip
        except StoreFailed as error:
            logger.warning("%s: answers are kept in memory: %s", self._batch.id, error)
            if results is not self._results:
                self._results = results + self._results
            return None

    async def _renewing(self, work: Coroutine[Any, Any, T]) -> T:
        """Keep the lease while something takes its time."""
        task = asyncio.create_task(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=self._bench.batches.lease_s / 5)
                await self._renew()
            return await task
        finally:
            task.cancel()

    async def _renew(self) -> BatchRow:
        bench = self._bench
        return await asyncio.to_thread(bench.batches.renew, self._batch.id, bench.server)

    # the end

    async def _finish(self, lines: Lines, status: str) -> None:
        """Join the parts into the files that the caller gets."""
        batch, bench = self._batch, self._bench
        while self._results:
            if await self._keep() is None:
                await asyncio.sleep(KEEP_EVERY_S)
        await asyncio.to_thread(bench.batches.finalize, batch.id, bench.server)
        keys = await asyncio.to_thread(bench.batches.parts, batch.id)
        more: list[Result] = []
        if status == EXPIRED:
            done = await asyncio.to_thread(bench.parts.numbers, keys)
            more = [
                _expired(number, lines.read(at)["custom_id"])
                for at, number in enumerate(lines.index.numbers)
                if number not in done
            ]
        output, errors = await self._renewing(asyncio.to_thread(self._join, keys, more))
        reasons = [_LOST] if status == FAILED else None
        await self._end(status, output_file=output, error_file=errors, errors=reasons)
        with suppress(StoreFailed):
            await asyncio.to_thread(bench.parts.remove, keys)

    def _join(self, keys: list[str], more: list[Result]) -> tuple[str | None, str | None]:
        """Ids of the output file and the file of errors."""
        batch, files = self._batch, self._bench.files
        with TemporaryDirectory(dir=files.scratch) as folder:
            joined = self._bench.parts.join(keys, more, Path(folder))
            ids: list[str | None] = [None, None]
            for at, kind in enumerate(("output", "error")):
                if (place := joined[at]) is not None:
                    about = About(
                        batch.project, f"{batch.id}_{kind}.jsonl", "batch_output",
                        batch.output_expires_after_s,
                    )  # fmt: skip
                    ids[at] = files.add(place, about, derived_id(batch.id, kind)).id
        return ids[0], ids[1]

    async def _end(self, status: str, **more: Any) -> None:
        bench = self._bench
        await asyncio.to_thread(bench.batches.end, self._batch.id, bench.server, status, **more)
        logger.info("%s is %s", self._batch.id, status)

    async def _give_back(self) -> None:
        """This server ends: keep what came, and let another go on."""
        with suppress(LeaseLost, AdapterError):
            await self._keep()
            bench = self._bench
            await asyncio.to_thread(bench.batches.give_back, self._batch.id, bench.server)


def _overdue(batch: BatchRow) -> str | None:
    """How a batch ends that asks no more lines; None: it goes on."""
    if batch.status == CANCELLING:
        return CANCELLED
    return EXPIRED if datetime.now(UTC) >= batch.expires else None


def _told(custom_id: str | None, response: dict[str, Any] | None, error: Any) -> dict[str, Any]:
    """OpenAI's line of an output file."""
    id_ = f"batch_req_{secrets.token_hex(12)}"
    return {"id": id_, "custom_id": custom_id, "response": response, "error": error}


def _result(number: int, custom_id: str, answer: Answer) -> Result:
    response = {
        "status_code": answer.status, "request_id": answer.headers.get("x-request-id", ""),
        "body": json.loads(answer.body),
    }  # fmt: skip
    if (receipt := answer.headers.get("x-modiste-receipt")) is not None:
        response["receipt"] = receipt
    kind = OUTPUT if answer.status == 200 else ERROR
    return Result(number, kind, _told(custom_id, response, None))


def _refused(fault: Fault) -> Result:
    error = {
        "code": fault.code, "message": f"line {fault.number}: {fault.message}",
        "param": fault.param, "line": fault.number,
    }  # fmt: skip
    return Result(fault.number, ERROR, _told(fault.custom_id, None, error))


def _expired(number: int, custom_id: str) -> Result:
    error = {
        "code": "batch_expired", "param": None, "line": number,
        "message": "this request could not be executed before the completion window expired",
    }  # fmt: skip
    return Result(number, ERROR, _told(custom_id, None, error))
