"""A correction of vLLM's sampler, installed in every vLLM process.

In vLLM 0.32, when one request of a step names the tokens whose log-probabilities it
wants (`logprob_token_ids`: classification and proofs do), the other requests of that
step lose the top log-probabilities that they asked for: they get token 0 with -inf.
Here those rows keep their top tokens.
"""

from typing import Any

TOP_LOGPROBS = 20
"""The most that a request may ask for (`--max-logprobs`, OpenAI's limit too)."""


def install() -> None:
    """Correct vLLM's class."""
    from vllm.v1.sample.sampler import Sampler

    original = Sampler.gather_specific_token_logprobs
    if getattr(original, "_keeps_other_rows", False):
        return

    def gather(
        self: Any, logprobs: Any, logprob_token_ids: dict[int, list[int]], sampled: Any
    ) -> Any:
        """As the original; rows without token ids get their most likely tokens."""
        others = [row for row in range(logprobs.shape[0]) if row not in logprob_token_ids]
        found = original(self, logprobs, logprob_token_ids, sampled)
        if found is None or not others:
            return found
        return _with_top(found, logprobs, others)

    gather._keeps_other_rows = True  # type: ignore[attr-defined]
    Sampler.gather_specific_token_logprobs = gather


def _with_top(found: Any, logprobs: Any, rows: list[int]) -> Any:
    """Put the top tokens of `rows` behind their sampled one; columns grow to fit."""
    import torch

    top = logprobs[rows].topk(min(TOP_LOGPROBS, logprobs.shape[1]), dim=-1)
    columns = max(found.logprobs.shape[1], top.values.shape[1] + 1)
    missing = columns - found.logprobs.shape[1]
    values = torch.nn.functional.pad(found.logprobs, (0, missing), value=float("-inf"))
    ids = torch.nn.functional.pad(found.logprob_token_ids, (0, missing), value=0)
    end = top.values.shape[1] + 1
    index = torch.tensor(rows, device=values.device)
    values[index, 1:end] = top.values.to(values.dtype)
    ids[index, 1:end] = top.indices.to(ids.dtype)
    return found._replace(logprobs=values, logprob_token_ids=ids)
