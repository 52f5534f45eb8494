"""Schemas, patterns and grammars on trial, with xgrammar and a small vocabulary."""

import asyncio
import json
import string
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import xgrammar

from service.compiler import dialect
from service.constraints import Constraint, Kind
from service.errors import BadRequest, NotReady
from service.grammar_server import Limits
from service.grammars import Compiler, Grammars
from service.record import Record, set_record

LIMIT_S = 1.0
DOUBLING = "\n".join(
    ["root ::= r0"] + [f"r{n} ::= r{n + 1} r{n + 1} | [a-z]* r{n + 1}" for n in range(200)]
    + ["r200 ::= [a-z ]+"]
)  # fmt: skip
"""Read in milliseconds; its compilation never ends."""


def describe() -> Compiler:
    words = [*string.printable, "</s>", *(a + b for a in string.ascii_letters for b in "aeiou n")]
    info = xgrammar.TokenizerInfo(words, stop_token_ids=[words.index("</s>")])
    return Compiler(info.serialize_json(), any_whitespace=True, dialect=dialect)


class Bench:
    """One event loop, as the server has; the process of the trials lives as long as it."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.described = 0
        self.grammars = self.do(self.make)

    async def make(self, limit_s: float = LIMIT_S) -> Grammars:
        def counted() -> Compiler:
            self.described += 1
            return describe()

        return Grammars(limit_s, counted)

    def do(self, work: Callable[[], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            return await work()

        return self.runner.run(run())

    def check(self, kind: Kind, text: str, param: str = "field") -> None:
        self.do(lambda: self.grammars.check([Constraint(kind, text, param)]))


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    bench.check("regex", "a")  # the process starts
    yield bench
    bench.grammars.close()
    bench.runner.close()


SCHEMA = {"type": "object", "properties": {"unit": {"enum": ["c", "f"]}}, "required": ["unit"]}
TAG = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": SCHEMA}}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json", json.dumps(SCHEMA)), ("regex", r"[a-z]{2,10}@[a-z]+\.(com|org)"),
        ("regex", r"(a+)+b"), ("choice", '["yes", "no \\"quoted\\""]'),
        ("grammar", 'root ::= "yes" | "no"'), ("grammar", 'start: "yes" | "no"'),
        ("structural_tag", json.dumps(TAG)),
    ],
)  # fmt: skip
def test_what_is_quick_passes(bench: Bench, kind: Kind, text: str) -> None:
    bench.check(kind, text)


def test_what_takes_too_long_is_refused_in_time(bench: Bench) -> None:
    begun = time.monotonic()
    with pytest.raises(BadRequest) as caught:
        bench.check("grammar", DOUBLING, "structured_outputs.grammar")
    assert (caught.value.code, caught.value.param) == ("too_complex", "structured_outputs.grammar")
    assert "grammar_wait_s" in caught.value.hint
    assert time.monotonic() - begun < 20 * LIMIT_S
    begun = time.monotonic()
    with pytest.raises(BadRequest):  # what was found is kept
        bench.check("grammar", DOUBLING, "other")
    assert time.monotonic() - begun < 0.2


def test_what_is_slow_to_follow_is_refused_however_quickly_it_compiles(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'root ::= [a-z]{3,9} "."'
    monkeypatch.setattr(bench.grammars, "_limits", Limits(LIMIT_S, LIMIT_S, step_s=-1))
    with pytest.raises(BadRequest) as caught:
        bench.check("grammar", text)
    assert caught.value.code == "too_complex"
    monkeypatch.undo()
    bench.check("grammar", f"{text} ")  # another: what was found of the first is kept


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", "("), ("regex", "[b-a]"), ("grammar", "root ::= nothing"),
        ("grammar", "::= ::="), ("json", "{"), ("structural_tag", "{}"),
        ("structural_tag", '{"structures": [{}]}'),
    ],
)  # fmt: skip
def test_what_can_not_be_compiled_is_told(bench: Bench, kind: Kind, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        bench.check(kind, text)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "field")


def test_a_grammar_that_no_text_fits_is_refused(bench: Bench) -> None:
    with pytest.raises(BadRequest, match="there is no text that fits it") as caught:
        bench.check("grammar", "root ::= root")
    assert (caught.value.code, caught.value.param) == ("invalid_value", "field")


@pytest.mark.parametrize("depth", [1000, 30_000])
def test_no_nesting_ends_more_than_its_own_trial(bench: Bench, depth: int) -> None:
    for kind, text in (("regex", "(" * depth + "a" + ")" * depth),
                       ("grammar", "root ::= " + "(" * depth + '"a"' + ")" * depth)):  # fmt: skip
        with suppress(BadRequest):
            bench.check(kind, text)  # type: ignore[arg-type]
    bench.check("regex", "b")
    assert bench.described == 1


def test_a_slow_one_of_a_project_holds_up_no_others_and_not_the_event_loop(bench: Bench) -> None:
    async def ask(project: str, text: str) -> None:
        set_record(Record("r", "/v1/chat/completions", project=project))
        kind: Kind = "grammar" if "::=" in text else "regex"
        await bench.grammars.check([Constraint(kind, text, "field")])

    async def all_of_them() -> tuple[float, float]:
        slow = [asyncio.create_task(ask("greedy", f"{DOUBLING}\nx{n} ::= [a-z]")) for n in range(3)]
        longest, begun = 0.0, time.monotonic()
        modest = asyncio.create_task(ask("modest", "[0-9]{3}"))
        while not modest.done():
            last = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - last)
        taken = time.monotonic() - begun
        for task in slow[1:]:
            task.cancel()
        ended = await asyncio.gather(*slow, return_exceptions=True)
        assert isinstance(ended[0], BadRequest)
        return taken, longest

    taken, longest = bench.do(all_of_them)
    assert taken < 3 * LIMIT_S
    assert longest < LIMIT_S / 4


def test_a_process_that_was_killed_is_started_again(bench: Bench) -> None:
    server: Any = bench.grammars._server
    server._process.kill()
    server._process.join(5)
    try:
        bench.check("regex", "killed{1,2}")
    except NotReady:  # it was given to the one that had gone
        bench.check("regex", "killed{1,2}")
    assert bench.grammars._server is not server


def test_where_the_engine_has_another_compiler_nothing_is_tried(bench: Bench) -> None:
    async def check() -> None:
        grammars = Grammars(LIMIT_S, lambda: None)
        await grammars.check([Constraint("grammar", DOUBLING, "field")])

    bench.do(check)


HICCUP = """
import string, sys, time
import xgrammar
from service import grammar_server as tried
from service.grammar_server import Limits, Trial

words = [*string.printable, "</s>"]
info = xgrammar.TokenizerInfo(words, stop_token_ids=[words.index("</s>")])
read, slow = tried._read, int(sys.argv[1])

def sometimes(kind, text):
    global slow
    read(kind, text)
    ends = time.process_time() + (0.3 if slow > 0 else 0)
    slow -= 1
    while time.process_time() < ends:
        pass

tried._read = sometimes
print(tried._tried(Trial(1, "regex", "a", Limits(5.0, 0.2, 5.0)), info, any_whitespace=True).fault)
"""


@pytest.mark.parametrize(("slow", "fault"), [(0, ""), (1, ""), (2, "slow")])
def test_what_was_slow_once_is_tried_again(slow: int, fault: str) -> None:
    told = subprocess.run(
        [sys.executable, "-c", HICCUP, str(slow)], capture_output=True, text=True, check=True,
        timeout=60,
    )  # fmt: skip
    assert told.stdout.strip() == fault
