"""A load as data: who arrives how often, what they ask, and the limits the answers must keep."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from loadtests.shapes import Seconds, Shape, Stage, Table

Kind = Literal[
    "chat",
    "chat_stream",
    "completion",
    "completion_stream",
    "generate",
    "generate_stream",
    "translate",
    "translate_stream",
    "translate_list",
    "answer",
    "answer_many",
    "classify",
    "classify_list",
]
OPENAI: frozenset[Kind] = frozenset({"chat", "chat_stream", "completion", "completion_stream"})
"""Kinds that any OpenAI-compatible server answers."""
SCENARIOS = Path(__file__).parent / "scenarios"

Milliseconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0)]


class ScenarioError(Exception):
    """A scenario that cannot be run; the message lists every mistake."""


class Good(Table):
    """What makes one answer a good one, for goodput. What is not given is not asked."""

    ttft_ms: Milliseconds | None = None
    token_gap_ms: Milliseconds | None = None
    """The mean of the answer's gaps."""
    end_to_end_ms: Milliseconds | None = None


class Slo(Table):
    """Limits. Each is an upper bound but the rates and `goodput_ratio` and `cached_ratio`.

    `ttft` is the time to the first token, `token_gap` the time between two pieces of a stream,
    `end_to_end` the time to the whole answer. All count from the planned arrival.
    """

    error_ratio: Share = 0.01
    requests_per_s: Annotated[float, Field(gt=0)] | None = None
    ttft_p50_ms: Milliseconds | None = None
    ttft_p95_ms: Milliseconds | None = None
    ttft_p99_ms: Milliseconds | None = None
    token_gap_p50_ms: Milliseconds | None = None
    token_gap_p95_ms: Milliseconds | None = None
    token_gap_p99_ms: Milliseconds | None = None
    end_to_end_p50_ms: Milliseconds | None = None
    end_to_end_p95_ms: Milliseconds | None = None
    end_to_end_p99_ms: Milliseconds | None = None
    good: Good = Good()
    goodput_ratio: Share | None = None
    """The least share of all requests whose answers are good."""
    goodput_per_s: Annotated[float, Field(gt=0)] | None = None
    cached_ratio: Share | None = None
    """The least share of prompt tokens that the server's prefix cache had."""
    drift_ratio: Annotated[float, Field(gt=0)] | None = None
    """Median end-to-end time of the last quarter over that of the first."""


class Schedule(Table):
    """How well the load generator must keep its own schedule, in an open loop."""

    late_ms: Milliseconds = 50.0
    """A request that is sent later than this after its planned moment is late."""
    late_ratio: Share = 0.01


class Batches(Table):
    """Batches beside the requests, through /v1/files and /v1/batches."""

    lines: Annotated[int, Field(gt=0, le=50_000)] = 100
    kind: Literal["chat", "completion"] = "chat"
    at_s: Annotated[float, Field(ge=0)] = 0.0
    count: Count = 1
    """One after the other."""
    timeout_s: Seconds = 600.0


class Promotions(Table):
    """An alias that moves between versions during the load. Needs a key with the scope admin."""

    adapter: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    versions: Annotated[tuple[Count, ...], Field(min_length=2)]
    """Promoted in turn, over and over."""
    alias: str = "production"
    every_s: Seconds = 10.0


class FineTuning(Table):
    """A fine-tuning job beside the requests. Needs a key with the scope train."""

    model: str | None = None
    """None: the server's first, its base."""
    training_file: str | None = None
    """JSONL of chats. None: made of the scenario's prompts."""
    examples: Annotated[int, Field(ge=10, le=100_000)] = 40
    epochs: Count = 1
    at_s: Annotated[float, Field(ge=0)] = 0.0
    settings: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Of `method.modiste.settings`."""
    cancel_at_end: bool = True
    """A job that is still at work when the load ends is cancelled; else it is waited for."""
    timeout_s: Seconds = 3600.0


class Beside(Table):
    """What goes on beside the requests."""

    batches: Batches | None = None
    promotions: Promotions | None = None
    fine_tuning: FineTuning | None = None


class Replay(Table):
    """Arrivals, lengths and shared prefixes of a recorded trace, in place of a shape."""

    file: str
    format: Literal["mooncake", "azure"]
    speed: Annotated[float, Field(gt=0)] = 1.0
    """10: ten times as fast as it was recorded."""
    length_scale: Annotated[float, Field(gt=0)] = 1.0
    """All lengths are multiplied by it, input and output."""
    begin_s: Annotated[float, Field(ge=0)] = 0.0
    """Of the recording, before `speed`."""
    duration_s: Seconds | None = None
    """Of the load, after `speed`."""
    max_requests: Count | None = None
    max_input_tokens: Count | None = None
    """Longer inputs are cut to it, after scaling."""
    max_output_tokens: Count | None = None
    block_tokens: Count = 512
    """Tokens that one hash of the trace stands for, before scaling."""


class Scenario(Table):
    """One load: `shape`, `arrivals` or `replay` (open loop), or `users` (closed loop)."""

    description: str
    shape: Shape | None = None
    arrivals: tuple[Stage, ...] = ()
    replay: Replay | None = None
    max_in_flight: Count = 256
    """Open loop: an arrival beyond this many unanswered ones counts as failed, never as later."""
    users: Count | None = None
    duration_s: Seconds | None = None
    think_s: Annotated[float, Field(ge=0)] = 0.0
    """Closed loop: pause between a user's answer and their next request."""
    warmup_s: Annotated[float, Field(ge=0)] = 0.0
    """Requests that arrive in this time are sent and not judged."""
    timeout_s: Seconds = 120.0
    mix: dict[Kind, Annotated[int, Field(ge=0)]]
    """Weights: shares of the arrivals (open loop) or of the users (closed loop)."""
    models: tuple[str, ...] | dict[Kind, tuple[str, ...]] = ()
    """Names, `name-{1..64}`, or patterns such as `menus*` of what the server lists. None: its
    first for OpenAI's kinds and generate, and for the task routes the server's own choice."""
    zipf: Annotated[float, Field(ge=0, le=5)] = 0.0
    """The model at place r of the list is asked in proportion to 1 / r ** zipf; 0: all alike."""
    prompts: str = "python"
    """`python`, `package:NAME/PATH`, or a file (.txt: passages apart by blank lines; .jsonl)."""
    prompt_words: tuple[int, int] = (3, 250)
    list_size: Annotated[int, Field(ge=1, le=256)] = 16
    """Items of a request of the kinds `…_list` and `answer_many`."""
    max_tokens: Count = 64
    ignore_eos: bool = False
    """OpenAI's kinds: answers have exactly max_tokens, where the server knows the field."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    source_lang: str = "en"
    target_lang: str = "fr"
    labels: tuple[str, ...] = ("description", "instruction", "example")
    seed: int = 0
    beside: Beside = Beside()
    schedule: Schedule = Schedule()
    slo: Slo

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        mistakes = list(self._mistakes())
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    def _mistakes(self) -> Iterator[str]:
        opened = [self.shape is not None, bool(self.arrivals), self.replay is not None]
        if sum(opened) + (self.users is not None) != 1:
            yield "give one of shape, arrivals or replay (open loop), or users (closed loop)"
        if (self.users is None) != (self.duration_s is None):
            yield "duration_s belongs to users; a shape has its own"
        if sum(self.mix.values()) == 0:
            yield "mix: at least one weight must be above 0"
        if not 0 < self.prompt_words[0] <= self.prompt_words[1]:
            yield "prompt_words: give the least and the most words, least first"
        if self.replay is None and self.warmup_s >= self.length_s:
            yield "warmup_s must be shorter than the load itself"
        if self.replay is not None and not self.kinds <= OPENAI:
            yield f"mix: a replay sends {', '.join(sorted(OPENAI))} alone"

    @property
    def kinds(self) -> set[Kind]:
        """What is really sent."""
        return {kind for kind, weight in self.mix.items() if weight > 0}

    @property
    def open_loop(self) -> bool:
        return self.users is None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Of the shape, or of the table of arrivals; none in a closed loop or a replay."""
        return self.arrivals if self.shape is None else self.shape.stages()

    @property
    def length_s(self) -> float:
        """How long requests go on arriving, in seconds; of a replay 0: its file says."""
        if self.duration_s is not None:
            return self.duration_s
        return sum(stage.duration_s for stage in self.stages)

    def at_rate(self, rate_per_s: float, duration_s: float, seed: int) -> "Scenario":
        """The same requests at one steady rate."""
        table = self.model_dump(exclude_unset=True, exclude={"shape", "users", "duration_s"})
        changes = {
            "arrivals": [{"rate_per_s": rate_per_s, "duration_s": duration_s}],
            "replay": None,
            "seed": seed,
        }
        return Scenario.model_validate(table | changes)


def scenario_names() -> list[str]:
    """The scenarios that come with the package."""
    return sorted(path.stem for path in SCENARIOS.glob("*.yaml"))


def scenario_path(name_or_file: str) -> Path:
    """The file of a packaged scenario's name, or the given file. Raises ScenarioError."""
    if name_or_file in scenario_names():
        return SCENARIOS / f"{name_or_file}.yaml"
    path = Path(name_or_file)
    if path.is_file():
        return path
    raise ScenarioError(
        f"no scenario and no file {name_or_file!r}; scenarios: {', '.join(scenario_names())}"
    )


def load_scenario(path: Path, changes: Sequence[str] = ()) -> Scenario:
    """Read a scenario file. Raises ScenarioError with all its mistakes at once.

    changes: `KEY=VALUE` with dotted keys, such as `slo.ttft_p95_ms=500`; values are YAML.
    """
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
        for change in changes:
            _change(table, change)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ScenarioError(f"{path}: {error}") from error
    try:
        return Scenario.model_validate(table)
    except ValidationError as error:
        mistakes = [
            f"{path}: {'.'.join(map(str, item['loc']))}{': ' if item['loc'] else ''}{item['msg']}"
            for item in error.errors()
        ]
        raise ScenarioError("\n".join(mistakes)) from error


def _change(table: object, change: str) -> None:
    """Set one key, and the tables on the way to it. Raises ValueError."""
    path, equals, value = change.partition("=")
    *parents, key = path.split(".")
    for parent in parents:
        table = table.setdefault(parent, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict) or not equals:
        raise ValueError(f"--set {change!r}: give KEY=VALUE, with dots: slo.ttft_p95_ms=500")
    table[key] = yaml.safe_load(value)
