"""Whether the engine may be given a schema, pattern or grammar: compiled on trial first.

vLLM reads them in the event loop of all requests, compiles them in the engine's process, where
nothing ends it, and follows them within the engine's steps. So each is tried in a process of its
own (`service/grammar_server.py`), and what was found is kept.
"""

import asyncio
import logging
import multiprocessing
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from weakref import WeakValueDictionary

from service.constraints import Constraint
from service.errors import BadRequest, NotReady, Overloaded
from service.grammar_server import GrammarServer, Limits, Trial, Verdict
from service.record import current_record

logger = logging.getLogger("modiste.grammars")

AT_ONCE = 2
"""Trials; one of each project, so that its slow ones hold up no other's."""
KEPT = 8192
"""Verdicts; of a few dozen bytes each."""
READING, STEP = 0.05, 0.02
"""Parts of the limit: what holds up the event loop, and what holds up a step of the engine."""
WAIT_S = 60.0
"""For a verdict, the start of the process included."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """What trials need to know of the engine's."""

    vocabulary: str
    """As xgrammar writes it."""
    any_whitespace: bool
    dialect: Callable[[Constraint], tuple[str, str]]
    """Kind and text of a constraint, as the engine compiles it."""


class Grammars:
    """Verdicts, and the process that finds them; it starts with the first trial."""

    def __init__(self, limit_s: float, compiler: Callable[[], Compiler | None]) -> None:
        """Args:
        compiler: makes the description of the engine's, in a thread; None where it has another
            that can't be tried.
        """
        self._limits = Limits(limit_s, limit_s * READING, limit_s * STEP)
        self._describe, self._described = compiler, False
        self._compiler: Compiler | None = None
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._start = asyncio.Lock()
        self._server: _Server | None = None

    async def check(self, constraints: Sequence[Constraint]) -> None:
        """Raises BadRequest: one that can't be compiled, or takes too long; it names the field."""
        taken_s = 0.0
        for constraint in constraints:
            key = sha256(f"{constraint.kind}\0{constraint.text}".encode()).digest()
            verdict = self._verdicts.get(key)
            if verdict is None:
                verdict = await self._try(constraint)
                if verdict.fault:
                    told = (constraint.param, verdict.fault, verdict.taken_s)
                    logger.info("%s is refused: %s after %.1f s", *told)
                taken_s += verdict.taken_s
                self._keep(key, verdict)
            if verdict.fault or taken_s > 2 * self._limits.whole_s:
                raise self._refused(constraint, verdict)

    def close(self) -> None:
        """End the process."""
        if self._server is not None:
            self._server.close()

    async def _try(self, constraint: Constraint) -> Verdict:
        record = current_record()
        project = "" if record is None else record.project
        turn = self._turns.setdefault(project, asyncio.Lock())
        try:
            async with asyncio.timeout(WAIT_S), turn, self._slots:
                server = await self._running()
                if server is None or self._compiler is None:
                    return Verdict(0)
                return await server.ask(*self._compiler.dialect(constraint), self._limits)
        except TimeoutError:
            raise Overloaded(
                f"{constraint.param} could not be tried in {WAIT_S:.0f} s", param=constraint.param,
                hint="send fewer new schemas, patterns and grammars at once",
            ) from None  # fmt: skip
        except OSError as error:
            raise NotReady(str(error), param=constraint.param, hint="try again") from error

    async def _running(self) -> "_Server | None":
        async with self._start:
            if self._server is None or self._server.gone:
                loop = asyncio.get_running_loop()
                if not self._described:
                    self._compiler = await loop.run_in_executor(None, self._describe)
                    self._described = True
                if self._compiler is None:
                    return None
                self._server = await loop.run_in_executor(None, _Server, self._compiler)
                self._server.listen()
            return self._server

    def _keep(self, key: bytes, verdict: Verdict) -> None:
        self._verdicts[key] = verdict
        if len(self._verdicts) > KEPT:
            self._verdicts.popitem(last=False)

    def _refused(self, constraint: Constraint, verdict: Verdict) -> BadRequest:
        param = constraint.param
        if verdict.fault == "invalid":
            return BadRequest(
                f"{param} can't be compiled: {verdict.told}", param=param, hint="correct it"
            )
        return BadRequest(
            f"{param} is too complex: compiling or following it takes too long", param=param,
            code="too_complex",
            hint="bound repetitions, and nest fewer of them; the operator's limit is "
            f"grammar_wait_s, now {self._limits.whole_s:g} s",
        )  # fmt: skip


class _Server:
    """The process, as the event loop sees it."""

    def __init__(self, compiler: Compiler) -> None:
        """Start it: takes seconds where no fork server runs yet."""
        context = multiprocessing.get_context("forkserver")
        self._pipe, its = context.Pipe()
        self._process = context.Process(
            target=GrammarServer.run,
            args=(its, compiler.vocabulary, compiler.any_whitespace),
            name="grammars",
            daemon=True,
        )
        self._process.start()
        its.close()
        self.gone = False
        self._number = 0
        self._awaited: dict[int, asyncio.Future[Verdict]] = {}

    def listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._read)

    async def ask(self, kind: str, text: str, limits: Limits) -> Verdict:
        """Raises OSError: the process has ended."""
        loop = asyncio.get_running_loop()
        self._number += 1
        number = self._number
        self._awaited[number] = loop.create_future()
        try:
            # while nobody reads the pipe yet, it would hold up the event loop
            await loop.run_in_executor(None, self._pipe.send, Trial(number, kind, text, limits))
            return await self._awaited[number]
        finally:
            del self._awaited[number]

    def _read(self) -> None:
        try:
            verdict: Verdict = self._pipe.recv()
        except (EOFError, OSError):
            self.close()
            return
        future = self._awaited.get(verdict.number)  # none: whoever asked has gone
        if future is not None and not future.done():
            future.set_result(verdict)

    def close(self) -> None:
        if self.gone:
            return
        self.gone = True
        with suppress(RuntimeError):  # the loop has ended before
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
        self._pipe.close()  # at which it ends
        for future in self._awaited.values():
            if not future.done():
                future.set_exception(ConnectionError("the process that tries grammars has ended"))
