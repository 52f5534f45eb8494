"""Compiles schemas, patterns and grammars on trial: `GrammarServer.run` in a process of its own.

It holds the vocabulary and forks for each trial, so that the kernel can end one that takes too
long, wherever in the compiler it is, and what it took of memory is gone with it. What is counted is
processor time: a busy machine refuses nothing that an idle one takes.
"""

import json
import os
import resource
import select
import signal
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

NICENESS = 10
MAX_GROWTH_BYTES = 2**30
"""Of memory, for one trial."""
STEPS = 48
"""Tokens that a trial writes twice, as the engine would: some grammars are cheap to compile and
dear to follow."""
IDLE_S = 30.0
_TICK_S = 0.02


@dataclass(frozen=True, slots=True)
class Limits:
    """Processor time, in seconds."""

    whole_s: float
    reading_s: float
    """vLLM reads in the event loop of all requests."""
    step_s: float
    """The engine takes steps for all requests together."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What to compile: a kind of xgrammar's, and its text."""

    number: int
    kind: str
    text: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a trial.

    Attributes:
        fault: none, `invalid` (with what the compiler told), `slow` or `crash`.
    """

    number: int
    fault: str = ""
    told: str = ""
    taken_s: float = 0.0


class Slow(Exception):
    """Reading or a step took too long."""


@dataclass(slots=True)
class GrammarServer:
    """Started with the engine's vocabulary, as xgrammar writes it."""

    pipe: Connection
    vocabulary: str
    any_whitespace: bool
    _running: dict[int, tuple[Trial, float]] = field(default_factory=dict)
    """Trials by the process that does them, with when it began."""

    @classmethod
    def run(cls, pipe: Connection, vocabulary: str, any_whitespace: bool) -> None:
        """Serve until the other end is closed."""
        os.nice(NICENESS)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent ends it
        cls(pipe, vocabulary, any_whitespace)._serve()

    def _serve(self) -> None:
        import xgrammar

        info = xgrammar.TokenizerInfo.deserialize_json(self.vocabulary)
        while True:
            ready, _, _ = select.select([self.pipe], [], [], _TICK_S if self._running else None)
            if ready:
                try:
                    trial: Trial = self.pipe.recv()
                except (EOFError, OSError):
                    return
                self._begin(trial, info)
            self._reap()

    def _begin(self, trial: Trial, info: Any) -> None:
        child = os.fork()
        if child:
            self._running[child] = (trial, time.monotonic())
            return
        code = 1
        try:
            self.pipe.send(_tried(trial, info, any_whitespace=self.any_whitespace))
            code = 0
        finally:
            os._exit(code)

    def _reap(self) -> None:
        for child, (trial, begun) in list(self._running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended:
                if time.monotonic() - begun > IDLE_S + 20 * trial.limits.whole_s:
                    os.kill(child, signal.SIGKILL)  # it waits for something that never comes
                continue
            del self._running[child]
            if status != 0:  # it sent no verdict
                late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
                fault, taken_s = ("slow", trial.limits.whole_s) if late else ("crash", 0.0)
                self.pipe.send(Verdict(trial.number, fault, taken_s=taken_s))


def _tried(trial: Trial, info: Any, *, any_whitespace: bool) -> Verdict:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, trial.limits.whole_s)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most, (_, hard) = pages * resource.getpagesize(), resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > most + MAX_GROWTH_BYTES:
        resource.setrlimit(resource.RLIMIT_AS, (most + MAX_GROWTH_BYTES, hard))
    begun, fault, told = time.process_time(), "", ""
    try:
        try:
            _try(trial, info, any_whitespace=any_whitespace)
        except Slow:
            # once more: where a host takes the core away, its time is counted as the process's
            _try(trial, info, any_whitespace=any_whitespace)
    except (Slow, MemoryError):
        fault = "slow"
    except Exception as error:  # noqa: BLE001 - of the compiler: its words are the answer
        told = (str(error).strip() or type(error).__name__)[-400:]
        fault = "slow" if "bad_alloc" in told else "invalid"
    return Verdict(trial.number, fault, told, time.process_time() - begun)


def _try(trial: Trial, info: Any, *, any_whitespace: bool) -> None:
    """Read it, compile it, follow it. Raises Slow; and what the compiler raises."""
    import xgrammar

    begun = time.process_time()
    _read(trial.kind, trial.text)
    if time.process_time() - begun > trial.limits.reading_s:
        raise Slow
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    compiled = _compile(compiler, trial.kind, trial.text, any_whitespace=any_whitespace)
    _follow(compiled, info, trial.limits.step_s)


def _read(kind: str, text: str) -> None:
    """What vLLM does in the front end."""
    import xgrammar

    grammar = xgrammar.Grammar
    if kind == "structural_tag":
        grammar.from_structural_tag(*_tags(text))
        return
    readers: dict[str, Any] = {
        "json": grammar.from_json_schema, "regex": grammar.from_regex, "lark": grammar.from_lark,
        "ebnf": grammar.from_ebnf,
    }  # fmt: skip
    readers[kind](text)


def _compile(compiler: Any, kind: str, text: str, *, any_whitespace: bool) -> Any:
    """What vLLM does in the engine."""
    if kind == "json":
        separators = None if any_whitespace else (",", ":")
        return compiler.compile_json_schema(
            text, any_whitespace=any_whitespace, separators=separators
        )
    if kind == "structural_tag":
        return compiler.compile_structural_tag(*_tags(text))
    compilers = {
        "regex": compiler.compile_regex, "lark": compiler.compile_lark,
        "ebnf": compiler.compile_grammar,
    }  # fmt: skip
    return compilers[kind](text)


def _tags(text: str) -> tuple[Any, ...]:
    import xgrammar

    given = json.loads(text)
    if "structures" not in given:
        return (text,)
    tags = [
        xgrammar.StructuralTagItem(
            begin=one["begin"], schema=json.dumps(one["schema"]), end=one["end"]
        )
        for one in given["structures"]
    ]
    return tags, given["triggers"]


def _follow(compiled: Any, info: Any, step_s: float) -> None:
    """Write tokens that the grammar allows: once spread over the vocabulary, once the same one
    again and again, which makes an ambiguous grammar slower with each.

    Raises:
        Slow: one took too long, or all of them a quarter of that each.
        ValueError: none is allowed, not even the end.
    """
    import numpy as np
    import xgrammar

    stops = np.array(info.stop_token_ids)
    for repeating in (False, True):
        matcher = xgrammar.GrammarMatcher(compiled)
        mask = xgrammar.allocate_token_bitmask(1, info.vocab_size)
        token, ends = -1, time.process_time() + STEPS * step_s / 4
        for step in range(STEPS):
            begun = time.process_time()
            matcher.fill_next_token_bitmask(mask)
            taken = time.process_time() - begun
            bits = np.unpackbits(mask[0].numpy().view(np.uint8), bitorder="little")
            allowed = np.flatnonzero(bits[: info.vocab_size])
            if not allowed.size:  # the engine would take any token, and fail
                raise ValueError("there is no text that fits it, or only one without an end")
            allowed = np.setdiff1d(allowed, stops)
            if not allowed.size:
                break
            if not (repeating and token in allowed):
                token = int(allowed[step * 7919 % allowed.size])
            begun = time.process_time()
            matcher.accept_token(token)
            taken += time.process_time() - begun
            if taken > step_s or time.process_time() > ends:
                raise Slow
            if matcher.is_terminated():
                break
