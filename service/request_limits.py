"""How much one request of OpenAI's routes may ask for.

Looked at before vLLM reads the body, as the caller wrote it. What has another type than it should
is left to vLLM's types, which name it; what depends on the model (its window, its vocabulary, the
number of log-probabilities) is left to vLLM, which knows it.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from service.errors import BadRequest
from service.settings import Settings

MAX_STOP_CHARACTERS = 256
MAX_BIASES = 1024
MAX_TOKEN_IDS = 65_536
MAX_BAD_WORDS, MAX_BAD_WORD_CHARACTERS = 128, 256
MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512
"""OpenAI's."""
MAX_PATTERN, MAX_PATTERN_COUNT = 256, 1024
"""Of `repetition_detection`, which compares that many tokens in each step of the engine."""

TEXT_PARTS = frozenset(
    {
        "text", "refusal", "input_text", "output_text", "thinking", "summary_text",
        "reasoning_text",
    }
)  # fmt: skip
MEDIA = frozenset(
    {
        "image_url", "image_pil", "image_embeds", "audio_url", "input_audio", "audio_embeds",
        "video_url", "video_embeds", "prompt_embeds", "tool_reference", "file", "file_id",
        "file_url", "uuid",
    }
)  # fmt: skip
"""Keys by which vLLM takes a part for another kind than its type says, and would fetch a URL."""
ITEMS = frozenset(
    {
        "message", "function_call", "function_call_output", "custom_tool_call",
        "custom_tool_call_output", "reasoning",
    }
)  # fmt: skip
"""Items of a response's input that are text."""


def check_limits(body: Mapping[str, Any], settings: Settings) -> None:
    """Raises BadRequest: more of something than one request may have, or a part that is no text."""
    _check_choices(body, settings)
    _at_most("messages", body.get("messages"), settings.max_messages, "max_messages")
    _at_most("input", body.get("input"), settings.max_messages, "max_messages")
    _at_most("tools", body.get("tools"), settings.max_tools, "max_tools")
    _check_stops(body)
    _at_most("logit_bias", body.get("logit_bias"), MAX_BIASES)
    for name in ("stop_token_ids", "allowed_token_ids", "logprob_token_ids"):
        _at_most(name, body.get(name), MAX_TOKEN_IDS)
    _at_most("bad_words", body.get("bad_words"), MAX_BAD_WORDS)
    _check_lengths("bad_words", body.get("bad_words"), MAX_BAD_WORD_CHARACTERS)
    _check_metadata(body.get("metadata"))
    _check_repetition(body.get("repetition_detection"))
    for where, part in _parts(body):
        _check_part(where, part)


def _check_choices(body: Mapping[str, Any], settings: Settings) -> None:
    wanted, prompt = body.get("n"), body.get("prompt")
    number = wanted if isinstance(wanted, int) else 1
    # a list of numbers is one prompt of token ids
    several = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    prompts = len(prompt) if isinstance(prompt, list) and several else 1
    if number * prompts > settings.max_choices:
        param = "n" if number > 1 else "prompt"
        raise BadRequest(
            f"{number * prompts} answers are asked for", param=param,
            hint=f"at most {settings.max_choices} (n times the prompts); "
            "send several requests, or raise max_choices",
        )  # fmt: skip


def _at_most(name: str, value: object, most: int, setting: str = "") -> None:
    if isinstance(value, list | dict) and len(value) > most:
        remedy = f", or raise {setting}" if setting else ""
        raise BadRequest(
            f"{name} has {len(value)} items", param=name, hint=f"at most {most}{remedy}"
        )


def _check_lengths(name: str, value: object, most: int) -> None:
    for index, text in enumerate(value if isinstance(value, list) else []):
        if isinstance(text, str) and len(text) > most:
            raise BadRequest(
                f"item {index} of {name} has {len(text)} characters",
                param=f"{name}.{index}", hint=f"at most {most}",
            )  # fmt: skip


def _check_stops(body: Mapping[str, Any]) -> None:
    stop = body.get("stop")  # their number is vLLM's to bound
    _check_lengths("stop", [stop] if isinstance(stop, str) else stop, MAX_STOP_CHARACTERS)


def _check_metadata(metadata: object) -> None:
    _at_most("metadata", metadata, MAX_METADATA)
    for key, value in metadata.items() if isinstance(metadata, dict) else ():
        if len(key) > MAX_METADATA_KEY:
            raise BadRequest(
                f"a key of metadata has {len(key)} characters", param="metadata",
                hint=f"at most {MAX_METADATA_KEY}",
            )  # fmt: skip
        if not isinstance(value, str) or len(value) > MAX_METADATA_VALUE:
            raise BadRequest(
                f"metadata.{key} must be text of at most {MAX_METADATA_VALUE} characters",
                param=f"metadata.{key}", hint="shorten it",
            )  # fmt: skip


def _check_repetition(detection: object) -> None:
    if not isinstance(detection, dict):
        return
    for name, most in (("max_pattern_size", MAX_PATTERN), ("min_count", MAX_PATTERN_COUNT)):
        value = detection.get(name)
        if isinstance(value, int) and value > most:
            raise BadRequest(
                f"{name} is {value}", param=f"repetition_detection.{name}", hint=f"at most {most}"
            )


def _parts(body: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Parts of messages and of a response's items, each with its path."""
    for name in ("messages", "input"):
        for index, item in _numbered(body.get(name)):
            if not isinstance(item, dict):
                continue
            where = f"{name}.{index}"
            kind = item.get("type") or "message"
            if name == "input" and (not isinstance(kind, str) or kind not in ITEMS):
                raise _no_text(where, kind)
            if item.get("audio") is not None:
                raise _no_text(f"{where}.audio", "audio")
            for field in ("content", "output", "summary"):
                parts = item.get(field)
                if isinstance(parts, dict):  # vLLM would take its keys for parts
                    raise BadRequest(
                        f"{where}.{field} must be text or a list of parts",
                        param=f"{where}.{field}", hint="give text",
                    )  # fmt: skip
                for place, part in _numbered(parts):
                    yield f"{where}.{field}.{place}", part


def _numbered(value: object) -> Iterable[tuple[int, Any]]:
    return enumerate(value) if isinstance(value, list) else ()


def _check_part(where: str, part: object) -> None:
    if isinstance(part, str):
        return
    if not isinstance(part, dict):
        raise BadRequest(f"{where} must be a part with its type", param=where, hint="give text")
    kind = part.get("type") or "text"
    if not isinstance(kind, str) or kind not in TEXT_PARTS:
        raise _no_text(where, kind)
    if hidden := sorted(MEDIA & part.keys()):
        raise _no_text(f"{where}.{hidden[0]}", hidden[0])


def _no_text(where: str, kind: object) -> BadRequest:
    return BadRequest(
        f"{where} is {str(kind)[:40]!r}, and only text is read", param=where,
        hint="send its text", code="unsupported_content",
    )  # fmt: skip
