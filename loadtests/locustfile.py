"""The Locust side: one user class a kind of request, and one that is an open loop.

Runs headless under `python -m loadtests`, or by itself with Locust's page:
`locust -f loadtests/locustfile.py --scenario chat --host http://127.0.0.1:8321`.
"""

import logging
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import gevent  # type: ignore[import-untyped]
import gevent.pool  # type: ignore[import-untyped]
from locust import User, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser
from locust.stats import CSV_STATS_INTERVAL_SEC

from loadtests.report import Outcome, write_outcomes
from loadtests.scenario import Kind, Scenario, ScenarioError, load_scenario, scenario_path
from loadtests.shapes import poisson_arrivals
from loadtests.streaming import Answer, Client
from loadtests.workload import Call, Workload

logger = logging.getLogger(__name__)


class Load:
    """What all users of a run share: the scenario, the client, and the outcomes."""

    def __init__(self, environment: Environment, scenario: Scenario, host: str) -> None:
        options = environment.parsed_options
        self.scenario = scenario
        connections = scenario.users if scenario.users is not None else scenario.max_in_flight
        self.client = Client(
            host,
            api_key=options.api_key,
            connections=connections,
            timeout_s=scenario.timeout_s,
        )
        model = options.model if options.model is not None else self.client.first_model()
        self.workload = Workload(scenario, model)
        self.outcomes: list[Outcome] = []
        self._environment = environment
        self._began = time.perf_counter()

    def send(self, call: Call, arrived: float) -> None:
        """Send one request, planned for `arrived`, and record it."""
        late_ms = (time.perf_counter() - arrived) * 1000
        self.record(call.kind, call.path, arrived, self.client.send(call, arrived), late_ms)

    def record(
        self, kind: Kind, path: str, arrived: float, answer: Answer, late_ms: float = 0.0
    ) -> None:
        """Keep an outcome, and show it on Locust's page."""
        self.outcomes.append(Outcome(kind, arrived - self._began, late_ms, answer))
        self._environment.events.request.fire(
            request_type="POST",
            name=f"{path} {kind}",
            response_time=answer.end_to_end_ms,
            response_length=answer.size,
            exception=None if answer.error is None else RuntimeError(answer.error),
            context={},
        )
        # Entered as rows of their own, not as requests: Locust's total counts requests only.
        entries = self._environment.stats.entries
        if answer.ttft_ms is not None:
            entries[f"{kind}: time to first token", "TTFT"].log(round(answer.ttft_ms), 0)
        for gap_ms in answer.gaps_ms:
            entries[f"{kind}: time between tokens", "TBT"].log(round(gap_ms), 0)


class LoadUser(User):  # type: ignore[misc]  # Locust is checked as untyped
    """A user of the run's load."""

    abstract = True
    load: ClassVar[Load]


class ClosedLoopUser(LoadUser):
    """Asks, waits for the answer, thinks, asks again."""

    abstract = True
    kind: ClassVar[Kind]

    @task  # type: ignore[untyped-decorator]
    def ask(self) -> None:
        self.load.send(self.load.workload.call(self.kind), time.perf_counter())


class ChatUser(ClosedLoopUser):
    kind = "chat"


class ChatStreamUser(ClosedLoopUser):
    kind = "chat_stream"


class GenerateUser(ClosedLoopUser):
    kind = "generate"


class GenerateStreamUser(ClosedLoopUser):
    kind = "generate_stream"


class TranslateUser(ClosedLoopUser):
    kind = "translate"


class TranslateStreamUser(ClosedLoopUser):
    kind = "translate_stream"


class AnswerUser(ClosedLoopUser):
    kind = "answer"


class ClassifyUser(ClosedLoopUser):
    kind = "classify"


class OpenLoop(LoadUser):
    """All callers at once: sends each request at its moment, whether or not others are answered."""

    @task  # type: ignore[untyped-decorator]
    def arrive(self) -> None:
        load = self.load
        in_flight = gevent.pool.Pool(load.scenario.max_in_flight)
        began = time.perf_counter()
        arrivals = poisson_arrivals(load.scenario.arrivals, load.scenario.seed)
        for moment, kind in zip(arrivals, load.workload.kinds(), strict=False):
            arrived = began + moment
            gevent.sleep(max(0.0, arrived - time.perf_counter()))
            call = load.workload.call(kind)
            if in_flight.full():
                error = f"not sent: {load.scenario.max_in_flight} requests were unanswered"
                load.record(kind, call.path, arrived, Answer(0, 0.0, error=error))
            else:
                in_flight.spawn(load.send, call, arrived)
        in_flight.join()
        # In a greenlet of its own: quit waits for users to end, so a user cannot wait for it.
        gevent.spawn(self.environment.runner.quit)
        raise StopUser


def add_arguments(parser: LocustArgumentParser) -> None:
    """Our options, beside Locust's own."""
    parser.add_argument("--scenario", default="chat", help="a scenario's name, or its file")
    parser.add_argument("--model", default=None, help="for chat and generate; default: the first")
    parser.add_argument("--outcomes", default=None, help="write every request's outcome here")
    parser.add_argument(
        "--api-key",
        default=None,
        env_var="MODISTE_API_KEY",
        is_secret=True,
        help="sent as a bearer token",
    )


def choose_users(environment: Environment, **_: Any) -> None:
    """Keep the user classes that the scenario asks for."""
    try:
        scenario = load_scenario(scenario_path(environment.parsed_options.scenario))
    except ScenarioError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error
    if scenario.arrivals:
        OpenLoop.fixed_count = 1
        environment.user_classes = [OpenLoop]
        return
    ClosedLoopUser.wait_time = constant(scenario.think_s)
    chosen: list[type[User]] = []
    for user in ClosedLoopUser.__subclasses__():
        user.weight = scenario.mix.get(user.kind, 0)
        if user.weight > 0:
            chosen.append(user)
    environment.user_classes = chosen


def start_load(environment: Environment, **_: Any) -> None:
    """Begin a run with fresh outcomes."""
    scenario = load_scenario(scenario_path(environment.parsed_options.scenario))
    try:
        LoadUser.load = Load(environment, scenario, environment.host)
    except (OSError, ValueError, ScenarioError) as error:
        logger.error("%s: %s", environment.host, error)  # noqa: TRY400  # it says enough
        environment.process_exit_code = 1
        gevent.spawn(environment.runner.quit)


def keep_outcomes(environment: Environment, **_: Any) -> None:
    """Write the outcomes where the caller asked for them."""
    if environment.parsed_options.outcomes is not None:
        write_outcomes(Path(environment.parsed_options.outcomes), LoadUser.load.outcomes)


def finish_table(environment: Environment, **_: Any) -> None:
    """Let the CSV writer, which writes now and then, see the last requests."""
    if environment.parsed_options.csv_prefix is not None:
        gevent.sleep(1.2 * CSV_STATS_INTERVAL_SEC)


events.init_command_line_parser.add_listener(add_arguments)
events.init.add_listener(choose_users)
events.test_start.add_listener(start_load)
events.test_stop.add_listener(keep_outcomes)
events.quitting.add_listener(finish_table)
