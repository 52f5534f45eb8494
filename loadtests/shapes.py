"""When requests arrive: an open loop, that doesn't wait for the server.

Callers of a service don't know of each other. A closed loop (a fixed number of users, each waiting
for an answer before asking again) slows down with the server, so that a stall delays few requests
and hides its own length: coordinated omission. Here the moments of arrival are drawn beforehand,
and every time counts from the planned moment, also when the load generator itself was late.
"""

import random
from collections.abc import Iterable, Iterator

from loadtests.scenario import Stage


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
