"""How fast the engine gets on, and what a request will take: both measured."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

HALF_LIFE_S = 10.0
LEAST_S = 1.0
"""So long requests must have waited in all before the pace is told."""
LONGEST_STEP_S = 5.0
"""What lies longer apart are no two steps in a row."""


class Pace:
    """Tokens a second, read and written, while requests wait; the last seconds count most.

    What an engine does that is not full says nothing of what it can.
    """

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0
        self._last: float | None = None

    def step(self, tokens: int, now: float, *, waiting: bool) -> None:
        """A step of the engine has ended.

        Args:
            now: seconds of any clock that only goes on.
            waiting: a request waits, so the next step is one of a full engine.
        """
        last, self._last = self._last, now if waiting else None
        if last is None or not 0 <= now - last < LONGEST_STEP_S:
            return
        fade = 0.5 ** ((now - last) / HALF_LIFE_S)
        self._tokens = self._tokens * fade + tokens
        self._seconds = self._seconds * fade + now - last

    @property
    def rate(self) -> float | None:
        """None: not known yet, or nothing got on."""
        if self._seconds < LEAST_S or self._tokens <= 0:
            return None
        return self._tokens / self._seconds

    def wait_s(self, tokens: float) -> float | None:
        """How long so many tokens take; None: not known yet."""
        rate = self.rate
        return None if rate is None else tokens / rate


LEARN = 0.1
"""How much one request changes what is expected of the next."""
PROMPT_TOKENS_A_BYTE = 0.25
ANSWER_TOKENS = 64.0
MOST_KINDS = 2048


@dataclass(slots=True)
class _Kind:
    a_byte: float = PROMPT_TOKENS_A_BYTE
    answer: float = ANSWER_TOKENS


@dataclass(frozen=True, slots=True)
class Size:
    """What is known of a request before it is tokenised.

    Attributes:
        body: bytes.
        sequences: answers that it asks for, all together.
        most: tokens of one of them; None: no limit was given.
    """

    body: int
    sequences: int = 1
    most: int | None = None


class Forecast:
    """Tokens of a request, from what others of its kind took: a moving average."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()

    def expect(self, kind: Hashable, size: Size) -> int:
        """Tokens read and written, 1 at least."""
        known = self._kinds.get(kind) or _Kind()
        answer = known.answer if size.most is None else min(known.answer, size.most)
        return max(1, round(known.a_byte * size.body + answer * size.sequences))

    def learn(self, kind: Hashable, size: Size, prompt: int, answer: int) -> None:
        """What a request took."""
        known = self._kinds.get(kind)
        if known is None:
            known = self._kinds[kind] = _Kind(
                prompt / max(1, size.body), answer / max(1, size.sequences)
            )
        else:
            known.a_byte += LEARN * (prompt / max(1, size.body) - known.a_byte)
            known.answer += LEARN * (answer / max(1, size.sequences) - known.answer)
        self._kinds.move_to_end(kind)
        if len(self._kinds) > MOST_KINDS:
            self._kinds.popitem(last=False)
