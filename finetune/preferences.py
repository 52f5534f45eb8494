"""Preferences as OpenAI's fine-tuning files have them: one input, a better and a worse answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.chats import Chat, parse_chat
from finetune.reading import BadLine, check_text

PREFERRED, REJECTED = "preferred_output", "non_preferred_output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference(Chat):
    """A conversation whose last message was preferred to another answer.

    Only the two answers are learned from, never what the assistant said before.
    """

    rejected: str

    @property
    def rejected_messages(self) -> list[dict[str, Any]]:
        """The same conversation with the answer that was not preferred."""
        return [*self.messages[:-1], {"role": "assistant", "content": self.rejected}]

    @property
    def asked(self) -> dict[str, Any]:
        """What stands before the answers, and the one that was not preferred."""
        return {**Chat(self.messages, self.tools).asked, "rejected": self.rejected}


def parse_preference(fields: dict[str, Any], columns: Mapping[str, str]) -> Preference:
    """Make a preference of a record.

    Args:
        columns: our name of a column: its name in the record.

    Raises:
        BadLine: says what is wrong.
    """
    names = {name: columns.get(name, name) for name in ("input", PREFERRED, REJECTED)}
    missing = [column for column in names.values() if column not in fields]
    if missing:
        there = ", ".join(map(str, fields)) or "nothing"
        raise BadLine(f"{missing[0]!r} is missing (there: {there[:200]})", "missing_field")
    given = fields[names["input"]]
    if not isinstance(given, dict) or not isinstance(given.get("messages"), list):
        raise BadLine(f"{names['input']!r} has no list of messages")
    preferred, rejected = (_answer(fields[names[n]], names[n]) for n in (PREFERRED, REJECTED))
    if preferred == rejected:
        raise BadLine("the preferred and the other answer are the same")
    messages = [*given["messages"], {"role": "assistant", "content": preferred}]
    chat = parse_chat({**given, "messages": messages}, "messages")
    earlier = ({**m, "weight": 0} if m["role"] == "assistant" else m for m in chat.messages[:-1])
    return Preference((*earlier, chat.messages[-1]), chat.tools, rejected=rejected)


def _answer(output: Any, column: str) -> str:
    """The text of an output, which is a list of one message of the assistant."""
    message = output[0] if isinstance(output, list) and len(output) == 1 else None
    if not isinstance(message, dict) or message.get("role") != "assistant":
        raise BadLine(f"{column!r} is no list of one message of the assistant")
    if message.get("tool_calls"):
        raise BadLine(f"{column!r} has tool_calls: preferences are between texts")
    text = message.get("content")
    if not isinstance(text, str) or not text.strip():
        raise BadLine(f"{column!r} has no text as its content", "empty_field")
    return check_text(text)
