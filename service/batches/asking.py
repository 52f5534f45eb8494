"""The lines of one batch, asked of the server itself."""

import asyncio
import json
import logging
import os
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from service.batches.bench import Bench
from service.batches.gate import Turn, Want
from service.batches.keeping import Keeping
from service.batches.lines import Index
from service.batches.results import OUTPUT, Teller
from service.database import BatchRow
from service.errors import RateLimited
from service.inside import Answer
from service.record import PRIORITY_BATCH, Record

logger = logging.getLogger("modiste.batches")

TRIES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Pauses before a line is asked again that the server had no room for."""
LIMITED_S = 60.0
"""Longest pause of a line whose caller has used up its limits."""
_LARGE_BYTES = 2**18
"""Longer lines would hold up other requests."""
_PASSING = frozenset({429, 503})


class EngineGone(Exception):
    """The engine has stopped, maybe by a line."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Lines:
    """The file that is asked, open."""

    descriptor: int
    index: Index

    @classmethod
    def open(cls, place: Path, index: Index) -> Self:
        """Raises OSError."""
        lines = cls(os.open(place, os.O_RDONLY), index)
        # a thread may read on when its work was cancelled
        weakref.finalize(lines, os.close, lines.descriptor)
        return lines

    def read(self, at: int) -> dict[str, Any]:
        """A line that was found to be a request."""
        offset, length = self.index.place(at)
        raw = os.pread(self.descriptor, length, offset)
        line: dict[str, Any] = json.loads(raw.decode("utf-8-sig"))
        return line

    async def request(self, at: int) -> tuple[str, bytes]:
        """A line's own id and the body to ask."""

        def made() -> tuple[str, bytes]:
            line = self.read(at)
            return line["custom_id"], json.dumps(line["body"]).encode()

        large = self.index.place(at)[1] > _LARGE_BYTES
        return await asyncio.to_thread(made) if large else made()


class Asking:
    """Asks the lines that are left.

    Attributes:
        left: those that have no result yet, in their order.
    """

    def __init__(
        self, bench: Bench, batch: BatchRow, lines: Lines, left: Iterable[int], kept: Keeping
    ) -> None:
        self._bench, self._batch, self._lines, self._kept = bench, batch, lines, kept
        self._tell = Teller(batch.id)
        self.left = dict.fromkeys(left)
        self._first = next(iter(self.left))

    async def run(self) -> None:
        """To the last line; cancelling it frees the engine.

        Raises:
            EngineGone: what came from then on is no answer.
        """
        # some lines pause for want of room, and leave their places to others
        open_ = asyncio.Semaphore(2 * self._bench.gate.most)
        try:
            async with asyncio.TaskGroup() as group:
                for at in list(self.left):
                    await self._kept.room()
                    await open_.acquire()
                    task = group.create_task(self._line(at))
                    task.add_done_callback(lambda _: open_.release())
        except* EngineGone:
            raise EngineGone from None

    async def _line(self, at: int) -> None:
        number = self._lines.index.numbers[at]
        custom_id: str | None = None
        try:
            custom_id, body = await self._lines.request(at)
            answer = await self._answer(at, body)
            result = self._tell.answered(number, custom_id, answer)
        except EngineGone:
            raise
        except Exception:  # a line that nobody expected must not end the others
            logger.exception("line %d of %s failed", number, self._batch.id)
            result = self._tell.failed(number, custom_id)
        del self.left[at]
        self._kept.add(result)
        self._kept.moved |= at == self._first
        outcome = "answered" if result.kind == OUTPUT else "failed"
        self._bench.metrics.batch_lines.labels(outcome).inc()

    async def _answer(self, at: int, body: bytes) -> Answer:
        index, tries = self._lines.index, 0
        model = index.names[index.models[at]] or self._batch.endpoint
        want = Want(self._batch.project, model, index.weights[at])
        while True:
            answer = await self._bench.gate.run(want, lambda turn: self._ask(want, body, turn))
            if answer is not None and (wait_s := _limited_s(answer)) is not None:
                await asyncio.sleep(min(wait_s, LIMITED_S))  # however often: it is no failure
                continue
            last = tries == len(TRIES_S)
            if answer is not None and (answer.status not in _PASSING or last):
                return answer
            await asyncio.sleep(TRIES_S[min(tries, len(TRIES_S) - 1)])
            tries = min(tries + 1, len(TRIES_S))

    async def _ask(self, want: Want, body: bytes, turn: Turn) -> Answer | None:
        """An answer; None: the engine let go of the request."""
        bench, batch = self._bench, self._batch
        few = turn.places < want.weight
        record = Record(
            uuid4().hex, batch.endpoint, project=batch.project, caller=batch.caller,
            priority=PRIORITY_BATCH, on_enter=turn.entered,
            sequences=asyncio.Semaphore(turn.places) if few else None,
        )  # fmt: skip
        await self._unless_ending()
        answer = await bench.ask(batch.endpoint, body, record)
        await self._unless_ending()
        if bench.dead():
            raise EngineGone
        if (model := record.model) is not None:
            adapter = None if model.version is None else model.engine_name
            bench.gate.learn(want.model, adapter)
        return None if record.aborted else answer

    async def _unless_ending(self) -> None:
        """Once the engine drains its answers are none: keep the place until all is cancelled."""
        if self._bench.ending.begun:
            await asyncio.get_running_loop().create_future()


def _limited_s(answer: Answer) -> int | None:
    """How long to wait where the limits of the batch's caller are used up."""
    if answer.status != RateLimited.status:
        return None
    code = json.loads(answer.body)["error"]["code"]
    return int(answer.headers["retry-after"]) if code == RateLimited.default_code else None
