"""Which part of a request's way a sampled stack belongs to, and what each part took.

A sample belongs to the innermost of its frames that a stage claims; what libraries do is their
caller's. Stages stand in the order of a request's way.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OURS, VLLMS = "Modiste", "vLLM"


@dataclass(frozen=True)
class Frame:
    """A function on a stack; `file` as it stands in its package, such as service/auth.py."""

    file: str
    function: str


@dataclass(frozen=True)
class Stage:
    """A part of a request's way.

    Attributes:
        whose: who would not spend it where the other ran alone.
        places: beginnings of files, with `:FUNCTION` for one function of a file.
    """

    name: str
    whose: str
    places: tuple[str, ...]

    def claims(self, frame: Frame) -> int:
        """How closely it names the frame, 0: not at all; the closest of all stages has it."""
        return max((len(place) for place in self.places if _is_at(frame, place)), default=0)


def _is_at(frame: Frame, place: str) -> bool:
    file, _, function = place.partition(":")
    name = frame.function.rpartition(".")[2]  # py-spy tells a method's class before it
    return frame.file.startswith(file) and function in ("", name)


STAGES = (
    Stage("HTTP, event loop", VLLMS, (
        "uvicorn/", "starlette/", "uvloop/", "fastapi/middleware/",
        "service/protocol.py:write", "service/protocol.py:flush",
    )),
    Stage("bounds of heads", OURS, ("service/protocol.py",)),
    Stage(
        "edge", OURS,
        ("service/middleware.py", "service/door.py", "service/record.py", "service/ending.py",
         "service/request_text.py"),
    ),
    Stage("auth", OURS, ("service/auth.py", "service/oidc.py", "service/scopes.py",
                         "service/keys.py", "adapters/audit.py")),
    Stage("limits", OURS, ("service/limiting/",)),
    Stage("parse", VLLMS, (
        "fastapi/", "starlette/requests.py", "pydantic/",
        "vllm/entrypoints/openai/chat_completion/protocol.py",
    )),
    Stage("checks of the body", OURS, (
        "service/guard.py", "service/body.py", "service/fields.py", "service/request_limits.py",
        "service/constraints.py", "service/grammars.py",
    )),
    Stage("model", OURS, ("service/models.py", "service/residency.py")),
    Stage("admission", OURS, ("service/admission/", "service/traffic.py", "service/plugin.py")),
    Stage("route", OURS, ("service/routes/",)),
    Stage("template", VLLMS, (
        "vllm/renderers/", "transformers/utils/chat_template_utils.py", "jinja2/", "<template>",
    )),
    Stage("tokenise", VLLMS, (
        "vllm/tokenizers/", "transformers/tokenization", "vllm/utils/async_utils.py",
    )),
    Stage("engine", VLLMS, ("vllm/",)),
    Stage("metering", OURS, (
        "service/metering.py", "service/engine.py", "service/watchdog.py:_noted",
    )),
    Stage("detokenise", VLLMS, (
        "vllm/v1/engine/detokenizer.py", "vllm/tokenizers/detokenizer_utils.py",
    )),
    Stage("serialise", VLLMS, ("vllm/entrypoints/",)),
    Stage("events", OURS, (
        "service/streaming.py", "service/event_stream.py", "service/callers.py",
    )),
    Stage("metrics", OURS, ("service/telemetry.py", "service/series.py")),
    Stage("usage", OURS, ("service/usage.py", "service/trials.py")),
    Stage("traces", OURS, ("service/tracing.py",)),
    Stage("log", OURS, ("service/logs.py", "service/log_lines.py", "service/redaction.py")),
    Stage("beside requests", OURS, ("service/", "adapters/")),
)  # fmt: skip
OTHER = Stage("not told", VLLMS, ())
"""What has no frame of a stage: the interpreter itself, threads of libraries."""

OUR_PACKAGES = ("service", "adapters")


def stage_of(stack: Iterable[Frame]) -> Stage:
    """The stage of a stack, its innermost frame first."""
    for frame in stack:
        found = max(STAGES, key=lambda stage: stage.claims(frame))
        if found.claims(frame):
            return found
    return OTHER


def frame_of(told: Mapping[str, Any]) -> Frame:
    """A frame of a speedscope file; its file from its package on."""
    parts = str(told.get("file") or "").split("/")
    if "site-packages" in parts:
        first = parts.index("site-packages") + 1
    else:
        # the last one: a checkout may lie in a folder of the same name
        first = max((at for at, part in enumerate(parts[:-1]) if part in OUR_PACKAGES), default=-1)
    return Frame("/".join(parts[first:]), str(told["name"]))


def seconds_by_stage(profile: Mapping[str, Any]) -> Counter[Stage]:
    """Sampled seconds of all threads in a speedscope file, by stage."""
    frames = [frame_of(told) for told in profile["shared"]["frames"]]
    found: Counter[Stage] = Counter()
    known: dict[tuple[int, ...], Stage] = {}
    for thread in profile["profiles"]:
        for sample, weight in zip(thread["samples"], thread["weights"], strict=True):
            stack = tuple(sample)
            if stack not in known:
                known[stack] = stage_of(frames[index] for index in reversed(stack))
            found[known[stack]] += weight
    return found


def share_of(found: Mapping[Stage, float], whose: str) -> float:
    """The share of all sampled time that one of the two spent."""
    whole = sum(found.values())
    return sum(seconds for stage, seconds in found.items() if stage.whose == whose) / whole


def in_order(found: Mapping[Stage, float]) -> Sequence[tuple[Stage, float]]:
    """Stages in the order of a request's way, with their shares of the whole."""
    whole = sum(found.values())
    return [(stage, found.get(stage, 0.0) / whole) for stage in (*STAGES, OTHER)]
