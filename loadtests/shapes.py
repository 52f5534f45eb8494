"""Shapes of a load as tables, and the moments at which requests arrive.

An open loop doesn't wait for the server. Callers of a service don't know of each other. A closed
loop (a fixed number of users, each waiting for an answer before asking again) slows down with the
server, so that a stall delays few requests and hides its own length: coordinated omission. Here the
moments of arrival are drawn beforehand, and every time counts from the planned moment, also when
the load generator itself was late.
"""

import math
import random
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Rate = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


class Table(BaseModel):
    """A table of a scenario file: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage(Table):
    """A stretch of Poisson arrivals at one rate."""

    rate_per_s: Rate
    duration_s: Seconds


class Steady(Table):
    """One rate all the time."""

    kind: Literal["steady"]
    rate_per_s: Rate
    duration_s: Seconds

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(rate_per_s=self.rate_per_s, duration_s=self.duration_s),)


class Soak(Steady):
    """One rate for hours. `slo.drift_ratio` compares its end with its beginning."""

    kind: Literal["soak"]  # type: ignore[assignment]


class Ramp(Table):
    """Steps of equal length from one rate to another, to find where the server saturates."""

    kind: Literal["ramp"]
    from_per_s: Rate
    to_per_s: Rate
    steps: Annotated[int, Field(ge=2, le=1000)] = 8
    duration_s: Seconds

    def stages(self) -> tuple[Stage, ...]:
        climb = (self.to_per_s - self.from_per_s) / (self.steps - 1)
        length_s = self.duration_s / self.steps
        return tuple(
            Stage(rate_per_s=self.from_per_s + climb * step, duration_s=length_s)
            for step in range(self.steps)
        )


class Burst(Table):
    """A calm rate, with bursts that come again and again."""

    kind: Literal["burst"]
    rate_per_s: Rate
    burst_per_s: Rate
    burst_s: Seconds
    every_s: Annotated[float, Field(gt=0, description="from the beginning of one to the next")]
    bursts: Annotated[int, Field(gt=0, le=1000)] = 1

    @model_validator(mode="after")
    def _leaves_calm_between(self) -> Self:
        if self.every_s <= self.burst_s:
            raise ValueError("every_s must be longer than burst_s")
        return self

    def stages(self) -> tuple[Stage, ...]:
        calm = Stage(rate_per_s=self.rate_per_s, duration_s=self.every_s - self.burst_s)
        burst = Stage(rate_per_s=self.burst_per_s, duration_s=self.burst_s)
        return (*(calm, burst) * self.bursts, calm)


class Spike(Table):
    """A calm rate, one sudden peak, and the calm in which the server should recover."""

    kind: Literal["spike"]
    rate_per_s: Rate
    peak_per_s: Rate
    before_s: Seconds
    peak_s: Seconds
    after_s: Seconds

    def stages(self) -> tuple[Stage, ...]:
        return (
            Stage(rate_per_s=self.rate_per_s, duration_s=self.before_s),
            Stage(rate_per_s=self.peak_per_s, duration_s=self.peak_s),
            Stage(rate_per_s=self.rate_per_s, duration_s=self.after_s),
        )


class Diurnal(Table):
    """Days as a sine between two rates, a day as long as `day_s`; it begins at the lowest."""

    kind: Literal["diurnal"]
    low_per_s: Rate
    high_per_s: Rate
    day_s: Seconds
    days: Annotated[int, Field(gt=0, le=1000)] = 1
    steps: Annotated[int, Field(ge=4, le=1000)] = 24

    def stages(self) -> tuple[Stage, ...]:
        middle = (self.low_per_s + self.high_per_s) / 2
        swing = (self.high_per_s - self.low_per_s) / 2
        day = tuple(
            Stage(
                rate_per_s=middle - swing * math.cos(2 * math.pi * (step + 0.5) / self.steps),
                duration_s=self.day_s / self.steps,
            )
            for step in range(self.steps)
        )
        return day * self.days


Shape = Annotated[Steady | Soak | Ramp | Burst | Spike | Diurnal, Field(discriminator="kind")]


def poisson_arrivals(stages: Iterable[Stage], seed: int) -> Iterator[float]:
    """Moments of arrival, in seconds from the start, ascending."""
    generator = random.Random(seed)  # noqa: S311  # draws a load
    begin = 0.0
    for stage in stages:
        moment = begin
        end = begin + stage.duration_s
        while (moment := moment + generator.expovariate(stage.rate_per_s)) < end:
            yield moment
        begin = end
