"""A load as a table: who arrives how often, what they ask, and the limits the answers must keep."""

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Kind = Literal[
    "chat",
    "chat_stream",
    "generate",
    "generate_stream",
    "translate",
    "translate_stream",
    "answer",
    "classify",
]
SCENARIOS = Path(__file__).parent / "scenarios"

Seconds = Annotated[float, Field(gt=0)]
Milliseconds = Annotated[float, Field(gt=0)]


class ScenarioError(Exception):
    """A scenario that cannot be run; the message lists every mistake."""


class Table(BaseModel):
    """A table of a scenario file: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage(Table):
    """A stretch of Poisson arrivals at one rate."""

    rate_per_s: Annotated[float, Field(gt=0)]
    duration_s: Seconds


class Slo(Table):
    """Limits. Each is an upper bound but `requests_per_s`, the least rate of good answers.

    `ttft` is the time to the first token, `token_gap` the time between two pieces of a stream,
    `end_to_end` the time to the whole answer. All count from the planned arrival.
    """

    error_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
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


class Scenario(Table):
    """One load. Either `arrivals` (open loop) or `users` with `duration_s` (closed loop)."""

    description: str
    arrivals: tuple[Stage, ...] = ()
    max_in_flight: Annotated[int, Field(gt=0)] = 256
    """Open loop: an arrival beyond this many unanswered ones counts as failed, never as later."""
    users: Annotated[int, Field(gt=0)] | None = None
    duration_s: Seconds | None = None
    think_s: Annotated[float, Field(ge=0)] = 0.0
    """Closed loop: pause between a user's answer and their next request."""
    warmup_s: Annotated[float, Field(ge=0)] = 0.0
    """Requests that arrive in this time are sent and not judged."""
    timeout_s: Seconds = 120.0
    mix: dict[Kind, Annotated[int, Field(ge=0)]]
    """Weights: shares of the arrivals (open loop) or of the users (closed loop)."""
    models: tuple[str, ...] = ()
    """Asked in turn at random. None: the server's first for chat and generate, and for the task
    routes the server's own choice."""
    prompts: str = "python"
    """`python`, `package:NAME/PATH`, or a file (.txt: passages apart by blank lines; .jsonl)."""
    prompt_words: tuple[int, int] = (3, 250)
    max_tokens: Annotated[int, Field(gt=0)] = 64
    temperature: Annotated[float, Field(ge=0)] = 0.0
    source_lang: str = "en"
    target_lang: str = "fr"
    labels: tuple[str, ...] = ("description", "instruction", "example")
    seed: int = 0
    slo: Slo

    @model_validator(mode="after")
    def _is_one_kind_of_load(self) -> Self:
        if bool(self.arrivals) == (self.users is not None):
            raise ValueError("give either arrivals (open loop) or users (closed loop)")
        if (self.users is None) != (self.duration_s is None):
            raise ValueError("duration_s belongs to users; a stage of arrivals has its own")
        if sum(self.mix.values()) == 0:
            raise ValueError("mix: at least one weight must be above 0")
        if not 0 < self.prompt_words[0] <= self.prompt_words[1]:
            raise ValueError("prompt_words: give the least and the most words, least first")
        if self.warmup_s >= self.length_s:
            raise ValueError("warmup_s must be shorter than the load itself")
        return self

    @property
    def length_s(self) -> float:
        """How long requests go on arriving, in seconds."""
        if self.duration_s is not None:
            return self.duration_s
        return sum(stage.duration_s for stage in self.arrivals)


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


def load_scenario(path: Path) -> Scenario:
    """Read a scenario file. Raises ScenarioError with all its mistakes at once."""
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
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
