"""Rules: when a canary ends by itself, and what the two sides' answers say about that.

A side is compared with the other one at most once for each growth by a fifth of the canary's
answers, and the k-th look spends 1/(k(k+1)) of the allowed chance of a false alarm (a union
bound; the shares sum to one). So a canary that is as good as the live version is ended
wrongly with at most that chance for each criterion, however long it runs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

FALSE_ALARM = 0.01
"""Chance for each criterion that a canary as good as the live version is rolled back."""

GROWTH = 1.2
SLOW_SHARE = 0.05
"""Latencies are compared at the 95th percentile."""

BUCKET_S, BUCKET_GROWTH = 0.001, 1.1


class Rule(BaseModel):
    """What a canary must not be worse in, and when it is promoted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    least_answers: int = Field(
        default=50, ge=10, description="answers of each side before anything is compared"
    )
    max_error_increase: float | None = Field(
        default=0.0, ge=0, lt=1,
        description="by how much its share of failed answers may be larger; none: not compared",
    )  # fmt: skip
    max_latency_ratio: float | None = Field(
        default=1.5, ge=1, description="its 95th percentile over the live version's; none: not"
    )
    max_score_drop: float | None = Field(
        default=0.0, ge=0, lt=1,
        description="by how much its mean score may be lower; none: not compared",
    )  # fmt: skip
    least_scores: int = Field(
        default=30, ge=10, description="scores of each side before they are compared"
    )
    promote_after: int | None = Field(
        default=None, ge=10,
        description="answers after which it is promoted if it was never worse; none: by hand",
    )  # fmt: skip


@dataclass(slots=True)
class Side:
    """What one version answered since its canary started."""

    answers: int = 0
    errors: int = 0
    seconds: dict[int, int] = field(default_factory=dict)
    """Histogram of whole answers: number of a bucket (see `bucket`) to how many."""
    scores: int = 0
    score_sum: float = 0.0
    score_squares: float = 0.0

    def observe(self, seconds: float, *, failed: bool) -> None:
        """Count one answer; a failed one says nothing about speed."""
        self.answers += 1
        if failed:
            self.errors += 1
            return
        number = bucket(seconds)
        self.seconds[number] = self.seconds.get(number, 0) + 1

    def add(self, answers: int, errors: int, seconds: Mapping[Any, int]) -> None:
        """Count what another server answered; keys may be strings, as JSON has them."""
        self.answers += answers
        self.errors += errors
        for number, count in seconds.items():
            self.seconds[int(number)] = self.seconds.get(int(number), 0) + count

    def score(self, score: float) -> None:
        """Count one score."""
        self.scores += 1
        self.score_sum += score
        self.score_squares += score * score

    @property
    def error_rate(self) -> float:
        return self.errors / self.answers if self.answers else 0.0

    @property
    def mean_score(self) -> float | None:
        return self.score_sum / self.scores if self.scores else None

    @property
    def score_variance(self) -> float:
        """Of one score, unbiased; that of a coin at worst is 0.25."""
        if self.scores < 2:
            return 0.25
        spread = self.score_squares - self.score_sum**2 / self.scores
        return max(0.0, spread / (self.scores - 1))

    def quantile(self, share: float) -> float | None:
        """Seconds that this share of the answers stayed within: the bound of its bucket."""
        left = share * sum(self.seconds.values())
        for number in sorted(self.seconds):
            left -= self.seconds[number]
            if left <= 1e-9:
                return seconds_of(number)
        return None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to happen with a canary, and why."""

    promote: bool
    reason: str


def bucket(seconds: float) -> int:
    """The histogram's bucket of a time; bounds grow by a tenth from 1 ms."""
    return max(0, math.ceil(math.log(max(seconds, BUCKET_S) / BUCKET_S, BUCKET_GROWTH) - 1e-9))


def seconds_of(number: int) -> float:
    """A bucket's upper bound."""
    return float(BUCKET_S * BUCKET_GROWTH**number)


def is_due(rule: Rule, answers: int, judged_at: int) -> bool:
    """Whether the canary's answers have grown enough for another look."""
    if answers < rule.least_answers:
        return False
    if rule.promote_after is not None and judged_at < rule.promote_after <= answers:
        return True
    return judged_at == 0 or answers >= judged_at * GROWTH


def judge(rule: Rule, live: Side, canary: Side, look: int) -> Verdict | None:
    """Compare the two sides; None when nothing is to be done yet.

    Args:
        look: which comparison of this canary it is, from 1.
    """
    z = NormalDist().inv_cdf(1 - FALSE_ALARM / (look * (look + 1)))
    if live.answers >= rule.least_answers:
        found = (_errors(rule, live, canary, z), _latency(rule, live, canary, z))
        worse = [reason for reason in (*found, _scores(rule, live, canary, z)) if reason]
        if worse:
            return Verdict(promote=False, reason="; ".join(worse))
    if rule.promote_after is not None and canary.answers >= rule.promote_after:
        return Verdict(promote=True, reason=f"not worse in {canary.answers} answers")
    return None


def _errors(rule: Rule, live: Side, canary: Side, z: float) -> str | None:
    """Newcombe's hybrid score interval of a difference of shares (Stat. Med. 1998, method 10)."""
    if rule.max_error_increase is None or canary.answers < rule.least_answers:
        return None
    low, _ = wilson(canary.errors, canary.answers, z)
    _, high = wilson(live.errors, live.answers, z)
    difference = canary.error_rate - live.error_rate
    least = difference - math.hypot(canary.error_rate - low, high - live.error_rate)
    if least <= rule.max_error_increase:
        return None
    return (
        f"{canary.errors} of {canary.answers} answers failed, "
        f"{live.errors} of {live.answers} of the live version"
    )


def _latency(rule: Rule, live: Side, canary: Side, z: float) -> str | None:
    """Whether surely more than 5 % are slower than the live version's 95th percentile allows."""
    if rule.max_latency_ratio is None:
        return None
    of_live = _high_quantile(live, z)
    total = sum(canary.seconds.values())
    if of_live is None or total < rule.least_answers:
        return None
    limit = of_live * rule.max_latency_ratio
    slow = sum(count for number, count in canary.seconds.items() if seconds_of(number) > limit)
    if wilson(slow, total, z)[0] <= SLOW_SHARE:
        return None
    return f"{slow} of {total} answers took over {limit:.3g} s, the live version's 95 % times " + (
        f"{rule.max_latency_ratio:g}"
    )


def _high_quantile(side: Side, z: float) -> float | None:
    """An upper confidence limit of the 95th percentile, seconds: at worst the slowest answer."""
    total, below, slowest = sum(side.seconds.values()), 0, None
    for number in sorted(side.seconds):
        below += side.seconds[number]
        slowest = seconds_of(number)
        if wilson(below, total, z)[0] >= 1 - SLOW_SHARE:
            break
    return slowest


def _scores(rule: Rule, live: Side, canary: Side, z: float) -> str | None:
    """Welch's comparison of means, by its normal approximation."""
    if rule.max_score_drop is None or min(live.scores, canary.scores) < rule.least_scores:
        return None
    means = live.score_sum / live.scores, canary.score_sum / canary.scores
    # a side whose scores are all equal is no surer than half a score's worth of doubt
    doubt = [max(side.score_variance, 0.25 / side.scores) / side.scores for side in (live, canary)]
    if means[0] - means[1] - z * math.sqrt(sum(doubt)) <= rule.max_score_drop:
        return None
    return (
        f"mean score {means[1]:.3g} of {canary.scores}, "
        f"{means[0]:.3g} of {live.scores} of the live version"
    )


def wilson(successes: int, trials: int, z: float) -> tuple[float, float]:
    """Wilson's score interval of a share (J. Am. Stat. Assoc. 1927)."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2) / scale
    return max(0.0, centre - half), min(1.0, centre + half)
