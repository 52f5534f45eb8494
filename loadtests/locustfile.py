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
from locust.runners import MasterRunner, WorkerRunner
from locust.stats import CSV_STATS_INTERVAL_SEC

from loadtests.ahead import Ahead
from loadtests.beside import Companions
from loadtests.load import Load
from loadtests.outcomes import outcome_of, write_outcomes
from loadtests.plan import arrivals
from loadtests.sampler import Sampler
from loadtests.sampling import write_samples
from loadtests.scenario import Kind, Scenario, ScenarioError, load_scenario, scenario_path
from loadtests.streaming import Answer

logger = logging.getLogger(__name__)


class LoadUser(User):  # type: ignore[misc]  # Locust is checked as untyped
    """A user of the run's load."""

    abstract = True
    load: ClassVar[Load]

    def end(self) -> None:
        """Leave; the last one ends the run. Raises StopUser."""
        self.load.user_ended()
        check_end(self.environment)
        raise StopUser


class ClosedLoopUser(LoadUser):
    """Asks, waits for the answer, thinks, asks again."""

    abstract = True
    kind: ClassVar[Kind]

    @task  # type: ignore[untyped-decorator]
    def ask(self) -> None:
        load = self.load
        if time.perf_counter() - load.began >= load.scenario.length_s:
            self.end()
        load.send(load.workload.call(self.kind), time.perf_counter())


class ChatUser(ClosedLoopUser):
    kind = "chat"


class ChatStreamUser(ClosedLoopUser):
    kind = "chat_stream"


class CompletionUser(ClosedLoopUser):
    kind = "completion"


class CompletionStreamUser(ClosedLoopUser):
    kind = "completion_stream"


class GenerateUser(ClosedLoopUser):
    kind = "generate"


class GenerateStreamUser(ClosedLoopUser):
    kind = "generate_stream"


class TranslateUser(ClosedLoopUser):
    kind = "translate"


class TranslateStreamUser(ClosedLoopUser):
    kind = "translate_stream"


class TranslateListUser(ClosedLoopUser):
    kind = "translate_list"


class AnswerUser(ClosedLoopUser):
    kind = "answer"


class AnswerManyUser(ClosedLoopUser):
    kind = "answer_many"


class ClassifyUser(ClosedLoopUser):
    kind = "classify"


class ClassifyListUser(ClosedLoopUser):
    kind = "classify_list"


class OpenLoop(LoadUser):
    """All callers at once: sends each request at its moment, whether or not others are answered."""

    @task  # type: ignore[untyped-decorator]
    def arrive(self) -> None:
        load = self.load
        if load.arriving:  # Locust moves here the user of a worker that was lost
            raise StopUser
        load.arriving = True
        in_flight = gevent.pool.Pool(load.max_in_flight)
        planned = arrivals(load.scenario, load.worker, load.workers)
        calls = Ahead(((arrival, load.call_for(arrival)) for arrival in planned), gevent.sleep)
        load.began = began = time.perf_counter()
        while (made := calls.take()) is not None:
            arrival, call = made
            arrived = began + arrival.at_s
            calls.make_until(arrived)
            gevent.sleep(max(0.0, arrived - time.perf_counter()))
            if in_flight.full():
                error = f"not sent: {load.max_in_flight} requests were unanswered"
                load.record(call.kind, arrived, Answer(0, 0.0, error=error))
            else:
                in_flight.spawn(load.send, call, arrived)
        in_flight.join()
        self.end()


class Run:
    """The run as its leader sees it: the only process, or the master of several."""

    def __init__(self, environment: Environment, load: Load, users: int) -> None:
        self.load, self._users, self._environment = load, users, environment
        options = environment.parsed_options
        client_of = (environment.host, options.api_key)
        self.sampler = Sampler(*client_of, load, interval_s=options.sample_s)
        self._companions = Companions(*client_of, load)
        self.ending = False

    def start(self) -> None:
        self.sampler.start()
        self._companions.start()
        if self.load.workers > 1:
            gevent.spawn(self._watch_workers)

    def check_end(self) -> None:
        """End the run once the last user has left."""
        if self.load.users_ended >= self._users and not self.ending:
            self.ending = True
            # In a greenlet of its own: quit waits for users to end, so a user cannot wait for it.
            gevent.spawn(self._end)

    def _end(self) -> None:
        self._companions.end()
        self.sampler.end()
        leave(self._environment)

    def _watch_workers(self) -> None:
        while not self.ending:
            if self._environment.runner.worker_count < self.load.workers:
                logger.error("a worker was lost: the load ends here")
                self.ending = True
                self._end()
            gevent.sleep(1)


RUNS: dict[int, Run] = {}
"""The one at work, by its environment; empty in a worker."""


def check_end(environment: Environment) -> None:
    """Let the leader look whether all is done."""
    run = RUNS.get(id(environment))
    if run is not None:
        run.check_end()


def leave(environment: Environment) -> None:
    """End this process; with Locust's page, the run alone."""
    if environment.parsed_options.headless:
        environment.runner.quit()
    else:
        environment.runner.stop()


def add_arguments(parser: LocustArgumentParser) -> None:
    """Our options, beside Locust's own."""
    add = parser.add_argument
    add("--scenario", default="chat", help="a scenario's name, or its file")
    add("--scenario-json", default=None, include_in_web_ui=False, help="what workers are told")
    add("--model", default=None, help="for chat and generate; default: the first")
    add("--outcomes", default=None, help="write every request's outcome here")
    add("--samples", default=None, help="write what the server says of itself here")
    add("--sample-s", type=float, default=2.0, help="how often it is asked, s; 0: never")
    add(
        "--api-key",
        default=None,
        env_var="MODISTE_API_KEY",
        is_secret=True,
        help="sent as a bearer token",
    )


def choose_users(environment: Environment, **_: Any) -> None:
    """Keep the user classes that the scenario asks for; a worker is told by its master."""
    closed = ClosedLoopUser.__subclasses__()
    options = environment.parsed_options
    if isinstance(environment.runner, WorkerRunner):
        environment.user_classes = [OpenLoop, *closed]
        return
    try:
        scenario = load_scenario(scenario_path(options.scenario))
    except ScenarioError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error
    options.scenario_json = scenario.model_dump_json(exclude_unset=True)
    if scenario.open_loop:
        OpenLoop.fixed_count = _workers(environment)
        environment.user_classes = [OpenLoop]
    else:
        for user in closed:
            user.weight = scenario.mix.get(user.kind, 0)
        environment.user_classes = [user for user in closed if user.weight > 0]
    if isinstance(environment.runner, MasterRunner):
        environment.runner.register_message("outcomes", take_outcomes)


def _workers(environment: Environment) -> int:
    if isinstance(environment.runner, MasterRunner | WorkerRunner):
        return int(environment.parsed_options.expect_workers)
    return 1


def start_load(environment: Environment, **_: Any) -> None:
    """Begin a run with fresh outcomes."""
    runner, workers = environment.runner, _workers(environment)
    is_worker = isinstance(runner, WorkerRunner)
    try:
        scenario = Scenario.model_validate_json(environment.parsed_options.scenario_json)
        worker = runner.worker_index if is_worker else 0
        LoadUser.load = load = Load(environment, scenario, worker, workers)
    except (OSError, ValueError, ScenarioError) as error:
        logger.error("%s: %s", environment.host, error)  # noqa: TRY400  # it says enough
        environment.process_exit_code = 1
        gevent.spawn(runner.quit)
        return
    ClosedLoopUser.wait_time = constant(scenario.think_s)
    if is_worker:
        load.ship = lambda rows: runner.send_message("outcomes", rows)
        return
    users = scenario.users if scenario.users is not None else workers
    RUNS[id(environment)] = run = Run(environment, load, users)
    run.start()


def take_outcomes(environment: Environment, msg: Any, **_: Any) -> None:
    """In the master: keep what a worker sends."""
    run = RUNS.get(id(environment))
    if run is not None:
        run.load.outcomes += [outcome_of(row) for row in msg.data["rows"]]
        run.load.users_ended += msg.data["users_ended"]
        run.check_end()


def keep_outcomes(environment: Environment, **_: Any) -> None:
    """Write the outcomes where the caller asked for them."""
    run = RUNS.pop(id(environment), None)
    if run is None:
        return
    options = environment.parsed_options
    if options.outcomes is not None:
        write_outcomes(Path(options.outcomes), run.load.outcomes)
    if options.samples is not None:
        write_samples(Path(options.samples), run.sampler.samples)


def finish_table(environment: Environment, **_: Any) -> None:
    """Let the CSV writer, which writes now and then, see the last requests."""
    if environment.parsed_options.csv_prefix is not None:
        gevent.sleep(1.2 * CSV_STATS_INTERVAL_SEC)


events.init_command_line_parser.add_listener(add_arguments)
events.init.add_listener(choose_users)
events.test_start.add_listener(start_load)
events.test_stop.add_listener(keep_outcomes)
events.quitting.add_listener(finish_table)
