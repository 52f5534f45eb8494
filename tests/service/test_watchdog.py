"""When an engine counts as stuck, and how rarely one that works is asked."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from service.ending import Ending
from service.watchdog import LOOK_S, Pulse, Watchdog

INTERVAL_S, PATIENCE_S = 30.0, 10.0
Act = Callable[["Engine", float], None]


class Engine:
    """Answers a question at the next look, unless it is `silent`; `waiting` requests wait."""

    def __init__(self) -> None:
        self.pulse: Any = SimpleNamespace(beats=0, asked=False, last_words=lambda: "it was killed")
        self.dead, self.silent, self.waiting = False, False, 0
        self.questions: list[int] = []

    async def probe(
        self, prompt_ids: list[int], token_ids: list[int], request: Any, *, priority: int
    ) -> list[float]:
        self.questions.append(priority)
        self.waiting += 1
        while self.silent:  # noqa: ASYNC110 - as the test says it
            await asyncio.sleep(0)
        self.waiting -= 1
        self.pulse.beats += 1
        return [0.0]


def watched(act: Act, seconds: float, every_s: float = LOOK_S) -> tuple[Engine, Watchdog, Ending]:
    """An engine that was looked at for so long; `act` happens before each look."""

    async def main() -> tuple[Engine, Watchdog, Ending]:
        engine, ending = Engine(), Ending()
        watchdog = Watchdog(engine, ending, INTERVAL_S, PATIENCE_S)
        at = 0.0
        while at < seconds:
            at += every_s
            act(engine, at)
            engine.pulse.asked = engine.waiting > 0
            watchdog.look(every_s)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        if watchdog._question is not None:
            watchdog._question.cancel()
        return engine, watchdog, ending

    return asyncio.run(main())


def test_an_idle_engine_is_asked_once_in_the_interval_ahead_of_all_requests() -> None:
    engine, watchdog, _ = watched(lambda *_: None, 10 * INTERVAL_S)
    assert 9 <= len(engine.questions) <= 10
    assert all(priority < 0 for priority in engine.questions)
    assert not watchdog.stuck


def test_an_engine_that_answers_anybody_is_never_asked_nor_stuck() -> None:
    def act(engine: Engine, at: float) -> None:
        engine.waiting = 1  # a request waits for ever, while others get their tokens
        engine.pulse.beats += at % 4 == 0

    engine, watchdog, _ = watched(act, 3 * INTERVAL_S)
    assert engine.questions == []
    assert not watchdog.stuck


def test_an_engine_that_answers_the_question_is_not_stuck_though_a_request_waits() -> None:
    def act(engine: Engine, at: float) -> None:
        engine.waiting = max(1, engine.waiting)

    engine, watchdog, _ = watched(act, 3 * PATIENCE_S)
    assert len(engine.questions) >= 4
    assert not watchdog.stuck


@pytest.mark.parametrize("silence_s", [PATIENCE_S - 1, PATIENCE_S + 1])
def test_an_engine_that_is_asked_is_stuck_when_patience_has_passed(silence_s: float) -> None:
    def act(engine: Engine, at: float) -> None:
        engine.silent = True
        engine.waiting = max(1, engine.waiting)

    engine, watchdog, _ = watched(act, silence_s)
    assert watchdog.stuck == (silence_s > PATIENCE_S)
    assert len(engine.questions) == 1


def test_an_idle_engine_that_gives_no_token_is_found_out() -> None:
    def act(engine: Engine, at: float) -> None:
        engine.silent = True

    _, before, _ = watched(act, INTERVAL_S + PATIENCE_S - 1)
    _, after, _ = watched(act, INTERVAL_S + PATIENCE_S + 1)
    assert (before.stuck, after.stuck) == (False, True)


def test_a_stuck_engine_stays_so_when_callers_give_up_and_recovers_by_a_token() -> None:
    def act(engine: Engine, at: float) -> None:
        engine.silent = at < 40
        engine.waiting = int(at < 20)

    _, before, _ = watched(act, 39)
    _, after, _ = watched(act, 45)
    assert (before.stuck, after.stuck) == (True, False)


def test_looks_that_come_late_blame_themselves() -> None:
    def act(engine: Engine, at: float) -> None:
        engine.silent, engine.waiting = True, 1

    _, watchdog, _ = watched(act, 5 * PATIENCE_S, every_s=PATIENCE_S)
    assert not watchdog.stuck


def test_a_dead_engine_begins_the_end_with_its_last_words() -> None:
    def act(engine: Engine, at: float) -> None:
        engine.dead = True

    _, _, ending = watched(act, 1)
    assert ending.begun
    assert (ending.outcome.asked, ending.outcome.failure) == (False, "it was killed")


class Core:
    """Gives these outputs."""

    def __init__(self, *outputs: tuple[int, float | None]) -> None:
        self._outputs = iter(outputs)
        self.resources = SimpleNamespace(engine_manager=None)

    async def get_output_async(self) -> Any:
        tokens, usage = next(self._outputs)
        stats = None if usage is None else SimpleNamespace(kv_cache_usage=usage)
        return SimpleNamespace(outputs=[0] * tokens, scheduler_stats=stats)


def test_tokens_and_a_growing_cache_are_beats_and_empty_steps_are_not() -> None:
    core = Core((1, None), (0, None), (0, 0.1), (0, 0.1), (0, 0.2), (3, 0.2))
    client = SimpleNamespace(engine_core=core, get_num_unfinished_requests=lambda: 2)
    pulse, beats = Pulse(client), []
    for _ in range(6):
        asyncio.run(core.get_output_async())
        beats.append(pulse.beats)
    assert beats == [1, 1, 2, 2, 3, 4]
    assert pulse.asked


@pytest.mark.parametrize(
    ("code", "words"),
    [(-9, "the engine was killed by signal 9"), (3, "the engine ended with 3"), (None, "failed")],
)
def test_last_words_tell_how_the_engine_ended(code: int | None, words: str) -> None:
    core = Core()
    core.resources.engine_manager = SimpleNamespace(processes=[SimpleNamespace(exitcode=code)])
    assert words in Pulse(SimpleNamespace(engine_core=core)).last_words()


@pytest.mark.parametrize(
    ("told", "waiting", "raised"),
    [(True, 0, asyncio.CancelledError), (True, 1, EOFError), (False, 0, EOFError)],
)
def test_an_engine_that_stops_as_it_was_told_is_no_failure_for_the_log(
    told: bool, waiting: int, raised: type[BaseException]
) -> None:
    class Gone(Core):
        async def get_output_async(self) -> Any:
            raise EOFError  # as vLLM raises EngineDeadError

    core = Gone()
    pulse = Pulse(SimpleNamespace(engine_core=core, get_num_unfinished_requests=lambda: waiting))
    pulse.may_stop = lambda: told
    with pytest.raises(raised):
        asyncio.run(core.get_output_async())
