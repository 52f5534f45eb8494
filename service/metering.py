"""What a sequence's way through the engine adds to the record of its request.

Reads vLLM's outputs by their names, so that it needs no vLLM.
"""

from dataclasses import dataclass
from time import perf_counter
from typing import Any

from service.record import Record


@dataclass(frozen=True, slots=True)
class Pass:
    """One sequence, or the choices of one prompt, through the engine; times in seconds."""

    started: float
    """When it was handed to the engine, as `perf_counter` says."""
    ended: float
    queued_s: float
    prefill_s: float
    decode_s: float
    """From its first token to its last."""
    tokens: int
    """That were decoded after the prompt, the first one included."""

    @property
    def between_tokens_s(self) -> float | None:
        """The mean; None where there is no second token."""
        return self.decode_s / (self.tokens - 1) if self.tokens > 1 else None


class Meter:
    """Counts one call of the engine into a record, as its outputs come.

    Args:
        deltas: each output has the new tokens alone, not all so far.
        whole: there is one output, at the end.
    """

    def __init__(self, record: Record, *, deltas: bool, whole: bool) -> None:
        self._record, self._deltas, self._whole = record, deltas, whole
        self._started = perf_counter()
        self._prompted = False
        self._written: dict[int, int] = {}

    def count(self, output: Any) -> None:
        """Add one of vLLM's `RequestOutput`."""
        record = self._record
        if record.first_token is None and output.outputs:
            record.first_token = self._first_token(output)
        if not self._prompted and output.prompt_token_ids:
            record.prompt_tokens += len(output.prompt_token_ids)
            record.cached_tokens += output.num_cached_tokens or 0
            self._prompted = True
        for choice in output.outputs:  # as they come: a caller may go away in between
            new = len(choice.token_ids)
            if not self._deltas:
                before = self._written.get(choice.index, 0)
                self._written[choice.index], new = new, new - before
            record.completion_tokens += new
            if choice.finish_reason is not None:
                record.finish_reasons.append(choice.finish_reason)
                # of a request that the engine refuses as it ends, or lets go of
                record.aborted |= choice.finish_reason == "abort"
        if output.finished:
            record.answered = True
            self._finish(output.metrics)

    def _first_token(self, output: Any) -> float:
        if self._whole and output.metrics is not None:  # it was there long before this output
            return self._started + float(output.metrics.first_token_latency)
        return perf_counter()

    def _finish(self, times: Any) -> None:
        """Keep the engine's own times; vLLM gives none under `--disable-log-stats`."""
        if times is None or not times.first_token_ts:
            return
        self._record.passes.append(
            Pass(
                started=self._started,
                ended=perf_counter(),
                queued_s=max(0.0, times.scheduled_ts - times.queued_ts),
                prefill_s=max(0.0, times.first_token_ts - times.scheduled_ts),
                decode_s=max(0.0, times.last_token_ts - times.first_token_ts),
                tokens=times.num_generation_tokens,
            )
        )
