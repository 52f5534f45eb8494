"""What all users of one Locust process share: the scenario, the client, and the outcomes.

Imported by loadtests/locustfile.py alone; locust itself is not needed here.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from loadtests.outcomes import BESIDE, Outcome
from loadtests.plan import Arrival
from loadtests.scenario import OPENAI, Scenario
from loadtests.streaming import Answer, Client
from loadtests.synthesis import Synthesis, measure_words
from loadtests.workload import PATHS, Call, Workload

SHIPPED_AT_ONCE = 500


class Load:
    """One process's part of a run."""

    def __init__(
        self, environment: Any, scenario: Scenario, worker: int = 0, workers: int = 1
    ) -> None:
        """Asks the server for its models. Raises OSError, ValueError or ScenarioError."""
        options = environment.parsed_options
        self.scenario, self.worker, self.workers = scenario, worker, workers
        most = scenario.users if scenario.users is not None else scenario.max_in_flight
        self.max_in_flight = -(-most // workers)
        self.client = Client(
            environment.host,
            api_key=options.api_key,
            connections=self.max_in_flight,
            timeout_s=scenario.timeout_s,
        )
        listed = self.client.models()
        self.model = options.model if options.model is not None else listed[0]
        self.workload = Workload(scenario, self.model, listed, worker)
        self._synthesis = self._prepare_synthesis()
        self.outcomes: list[Outcome] = []
        self.arriving = False
        self.users_ended = 0
        self.ship: Callable[[dict[str, Any]], None] | None = None
        """In a worker: sends outcomes to the master."""
        self._environment = environment
        self.began = time.perf_counter()

    def _prepare_synthesis(self) -> Synthesis | None:
        replay = self.scenario.replay
        if replay is None:
            return None
        words = self.workload.words
        kind = next(iter(self.scenario.kinds & OPENAI))
        whole = kind.removesuffix("_stream")

        def count(text: str) -> int:
            return self.client.prompt_tokens(self.workload.call(whole, text, max_tokens=1))  # type: ignore[arg-type]  # a kind without its ending is one

        block_tokens = replay.block_tokens * replay.length_scale
        return Synthesis(words, measure_words(words, count), block_tokens)

    def call_for(self, arrival: Arrival) -> Call:
        """The request of an arrival; made before its moment, so that it is sent in time."""
        recorded = arrival.recorded
        if recorded is None or self._synthesis is None:
            call = self.workload.call(arrival.kind)
        else:
            prompt = self._synthesis.prompt(recorded, arrival.number)
            call = self.workload.call(arrival.kind, prompt, recorded.output_tokens)
        _ = call.payload
        return call

    def send(self, call: Call, arrived: float) -> None:
        """Send one request, planned for `arrived`, and record it."""
        late_ms = (time.perf_counter() - arrived) * 1000
        self.record(call.kind, arrived, self.client.send(call, arrived), late_ms)

    def record(self, kind: str, arrived: float, answer: Answer, late_ms: float = 0.0) -> None:
        """Keep an outcome, and show it on Locust's page."""
        self.outcomes.append(Outcome(kind, arrived - self.began, late_ms, answer))
        self._environment.events.request.fire(
            request_type="POST" if kind not in BESIDE else "BESIDE",
            name=f"{PATHS[kind]} {kind}" if kind in PATHS else kind,
            response_time=answer.end_to_end_ms,
            response_length=answer.size,
            exception=None if answer.error is None else RuntimeError(answer.error),
            context={},
        )
        if kind not in BESIDE:
            self._show_times(kind, answer)
        if self.ship is not None and len(self.outcomes) >= SHIPPED_AT_ONCE:
            self._ship_outcomes(users_ended=0)

    def _show_times(self, kind: str, answer: Answer) -> None:
        # Entered as rows of their own, not as requests: Locust's total counts requests only.
        if answer.ttft_ms is not None:
            self.show(f"{kind}: time to first token", "TTFT", answer.ttft_ms)
        for gap_ms in answer.gaps_ms:
            self.show(f"{kind}: time between tokens", "TBT", gap_ms)
        if answer.output_tokens and answer.error is None:
            tokens_per_s = answer.output_tokens / (answer.end_to_end_ms / 1000)
            self.show(f"{kind}: output tokens/s of an answer", "TOK/S", tokens_per_s)

    def show(self, name: str, kind: str, value: float) -> None:
        """Enter a value into Locust's table, where times are milliseconds."""
        self._environment.stats.entries[name, kind].log(round(value), 0)

    def user_ended(self) -> None:
        """Note that a user has done its part of the load."""
        self.users_ended += 1
        if self.ship is not None:
            self._ship_outcomes(users_ended=1)

    def _ship_outcomes(self, users_ended: int) -> None:
        if self.ship is not None:
            rows, self.outcomes = self.outcomes, []
            self.ship({"rows": [asdict(row) for row in rows], "users_ended": users_ended})
