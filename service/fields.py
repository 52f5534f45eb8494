"""Whose each field of vLLM's request types is, and what becomes of the others.

    CALLER    passed on
    IGNORED   OpenAI's own, without an effect on this server's answers: passed over
    UNSERVED  the caller's by right, but not served: refused with what goes instead
    OPERATOR  steers the engine or its templates: refused
    SERVER    set by this server: refused

A test compares the tables with vLLM's own types: a field that a new release adds is refused until
somebody has decided whose it is. A field that stands in no table is refused, as OpenAI does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from service.errors import BadRequest


class Owner(Enum):
    CALLER = "caller"
    IGNORED = "ignored"
    UNSERVED = "unserved"
    OPERATOR = "operator"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Field:
    """One field; values in `neutral` ask for nothing and are never refused."""

    owner: Owner
    hint: str = ""
    neutral: tuple[Any, ...] = (None, False)

    def asks_for_nothing(self, value: object) -> bool:
        # 0 == False, but a truncation to 0 tokens is not the same as none
        return any(type(value) is type(one) and value == one for one in self.neutral)


Table = Mapping[str, Field]

_SAMPLING = frozenset(
    {
        "frequency_penalty", "ignore_eos", "include_stop_str_in_output", "logit_bias", "min_p",
        "presence_penalty", "repetition_penalty", "seed", "skip_special_tokens", "stop",
        "stop_token_ids", "structured_outputs", "temperature", "top_k", "top_p",
    }
)  # fmt: skip
"""The caller's on all three routes."""

_CHOICES = frozenset(
    {
        "add_special_tokens", "allowed_token_ids", "bad_words", "logprob_token_ids", "logprobs",
        "max_tokens", "min_tokens", "n", "repetition_detection", "response_format",
        "return_token_ids", "return_tokens_as_token_ids", "spaces_between_special_tokens",
        "stream_interval", "stream_options", "thinking_token_budget",
    }
)  # fmt: skip
"""The caller's in chats and completions."""

_OPERATORS = frozenset(
    {
        "ec_transfer_params", "kv_transfer_params", "mm_payload", "request_id", "return_mm_kwargs",
        "session_id", "vllm_xargs", "watermarking",
    }
)  # fmt: skip

_OPERATORS_OF_PROMPTS = frozenset(
    {
        "prompt_logprobs", "return_token_offsets", "truncate_prompt_tokens", "truncation_side",
        "use_beam_search",
    }
)  # fmt: skip
"""Those that would read or cut the prompt otherwise, in chats and completions."""

_TEMPLATES = frozenset({"chat_template_kwargs", "media_io_kwargs", "mm_processor_kwargs"})

_SERVERS = {
    "cache_salt": Field(Owner.SERVER),
    "priority": Field(Owner.SERVER, neutral=(None, 0)),
}
_BEAMS = {
    "length_penalty": Field(Owner.OPERATOR, neutral=(None, 1, 1.0)),
    "routed_experts_prompt_start": Field(Owner.OPERATOR, neutral=(None, 0)),
}
_ANY_USER = frozenset({"model", "stream"})

_OPENAIS = frozenset(
    {
        "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier",
        "service_tier", "user",
    }
)  # fmt: skip
"""They choose a cache or a price class of OpenAI's, or name the user to it."""

_MODERATION = Field(Owner.UNSERVED, "leave it out; nothing is moderated here")
_STORE = Field(Owner.UNSERVED, "leave it out: answers are not kept, and say `store: false`")


def _unserved(hint: str, *neutral: Any) -> Field:
    return Field(Owner.UNSERVED, hint, (None, False, *neutral))


def _all(owner: Owner, names: frozenset[str]) -> dict[str, Field]:
    return {name: Field(owner) for name in sorted(names)}


CHAT: Table = {
    **_all(Owner.CALLER, _ANY_USER | _SAMPLING | _CHOICES | {
        "add_generation_prompt", "continue_final_message", "include_reasoning",
        "max_completion_tokens", "messages", "parallel_tool_calls", "reasoning_effort",
        "return_prompt_text", "tool_choice", "tools", "top_logprobs",
    }),
    **_all(Owner.IGNORED, _OPENAIS | {"metadata", "prediction"}),
    **_all(Owner.OPERATOR, _OPERATORS | _OPERATORS_OF_PROMPTS | _TEMPLATES | {
        "chat_template", "documents",
    }),
    **_SERVERS,
    **_BEAMS,
    # it would ask for the prompt's log-probabilities, which end the engine on a CPU
    "echo": _unserved("leave it out"),
    "audio": _unserved("leave it out; answers are text"),
    "modalities": _unserved("leave it out; answers are text", ["text"]),
    "functions": _unserved("give them as tools"),
    "function_call": _unserved("use tools and tool_choice"),
    "web_search_options": _unserved("leave it out; put what was found into messages"),
    "verbosity": _unserved("leave it out; say it in a message", "medium"),
    "moderation": _MODERATION,
    "store": _STORE,
}  # fmt: skip

COMPLETIONS: Table = {
    **_all(Owner.CALLER, _ANY_USER | _SAMPLING | _CHOICES | {"echo", "prompt", "suffix"}),
    **_all(Owner.IGNORED, frozenset({"user"})),
    **_all(Owner.OPERATOR, _OPERATORS | _OPERATORS_OF_PROMPTS | {"prompt_embeds"}),
    **_SERVERS,
    **_BEAMS,
    "best_of": _unserved("ask for n answers and choose", 1),
}

RESPONSES: Table = {
    **_all(Owner.CALLER, _ANY_USER | _SAMPLING | {
        "include", "include_reasoning", "input", "instructions", "max_output_tokens",
        "max_tool_calls", "metadata", "parallel_tool_calls", "reasoning", "text", "tool_choice",
        "tools", "top_logprobs",
    }),
    # the options are about the padding of events, and which event is the last is told in the docs
    **_all(Owner.IGNORED, _OPENAIS | {"stream_options"}),
    **_all(Owner.OPERATOR, _OPERATORS | _TEMPLATES | {
        "enable_response_messages", "previous_input_messages",
    }),
    **_SERVERS,
    "store": _STORE,
    "background": _unserved("leave it out, and wait for the answer or stream it"),
    "background_options": _unserved("leave it out, and wait for the answer or stream it"),
    "previous_response_id": _unserved("send the earlier turns in input"),
    "conversation": _unserved("send the earlier turns in input"),
    "prompt": _unserved("send its text in instructions and input"),
    "context_management": _unserved("send only the turns that shall be read"),
    "truncation": _unserved("shorten the input; nothing is cut silently", "disabled"),
    "access_programs": _unserved("leave it out"),
    "image": _unserved("leave it out; answers are text"),
    "moderation": _MODERATION,
}  # fmt: skip


def check_fields(body: Mapping[str, Any], table: Table) -> None:
    """Whether all fields of a request's body are the caller's to set.

    Raises:
        BadRequest: the first that is not, with the remedy.
    """
    for name, value in body.items():
        field = table.get(name)
        if field is None:
            raise _unknown(name)
        if field.owner in (Owner.CALLER, Owner.IGNORED) or field.asks_for_nothing(value):
            continue
        if field.owner is Owner.UNSERVED:
            message, hint = f"{name} is not served", field.hint
        else:
            whose = "operator" if field.owner is Owner.OPERATOR else "server"
            message = f"{name} is set by the {whose}, not in a request"
            hint = f"leave {name} out"
        raise BadRequest(message, param=name, hint=hint, code="unsupported_field")


def _unknown(name: str) -> BadRequest:
    shown = name[:80]
    hint = "check its spelling against docs/api.md"
    if name.startswith("guided_"):
        hint = "use response_format or structured_outputs"
    return BadRequest(f"there is no field {shown!r}", param=shown, hint=hint, code="unknown_field")
