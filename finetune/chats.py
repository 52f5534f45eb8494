"""Conversations as OpenAI's fine-tuning files have them: turns, weights, tools and their calls."""

import json
from dataclasses import dataclass
from typing import Any

from finetune.reading import BadLine, check_text

ROLES = ("system", "developer", "user", "assistant", "tool")
_NO_TEXT = "has no text as its content"


@dataclass(frozen=True, slots=True)
class Chat:
    """A whole conversation; every turn of the assistant is learned, unless its weight is 0."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def last(self) -> int:
        """Position of the message that is asked for in tests: the assistant's last with weight."""
        said = [i for i, m in enumerate(self.messages) if m["role"] == "assistant"]
        return max([i for i in said if self.messages[i].get("weight", 1) != 0] or said)

    @property
    def asked(self) -> dict[str, Any]:
        """What stands before that message, as reports show it."""
        shown: dict[str, Any] = {"messages": list(self.messages[: self.last])}
        return shown | {"tools": list(self.tools)} if self.tools else shown

    def key_parts(self) -> list[str]:
        """The texts that make its input the same as another's."""
        parts = []
        for message in self.messages[: self.last]:
            parts += [message["role"], message["content"]]
            if "tool_calls" in message:
                calls = [call["function"] for call in message["tool_calls"]]
                parts.append(json.dumps(calls, sort_keys=True))
        return [*parts, json.dumps(self.tools, sort_keys=True)] if self.tools else parts


def parse_chat(fields: dict[str, Any], column: str) -> Chat:
    """Make a conversation of a record's messages and tools.

    Raises:
        BadLine: says which message is wrong.
    """
    messages = fields.get(column)
    if not isinstance(messages, list) or not messages:
        there = ", ".join(map(str, fields)) or "nothing"
        code = "unusable_record" if messages else "missing_field"
        raise BadLine(f"{column!r} is no list of messages (there: {there[:200]})", code)
    tools = _tools(fields)
    called: set[str] = set()
    kept = []
    for position, message in enumerate(messages):
        try:
            kept.append(_message(message, called))
        except BadLine as error:
            raise BadLine(f"message {position} {error}", error.code) from error
    _check_calls(kept, tools)
    if not any(m["role"] == "assistant" for m in kept):
        raise BadLine("no message of the assistant")
    chat = Chat(tuple(kept), tuple(tools))
    if chat.last == 0:
        raise BadLine("nothing stands before the assistant's message")
    return chat


def _message(message: Any, called: set[str]) -> dict[str, Any]:
    """One message with what a server would give to the template; adds its calls to `called`."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise BadLine(f"has no role among {', '.join(ROLES)}")
    if message.get("function_call") is not None:
        raise BadLine("has function_call: write tool_calls")
    role, calls = message["role"], message.get("tool_calls") or []
    kept: dict[str, Any] = {"role": role, "content": _content(message.get("content"))}
    kept |= _weight(message.get("weight"))
    if isinstance(message.get("name"), str):
        kept["name"] = message["name"]
    if calls:
        if role != "assistant" or not isinstance(calls, list):
            raise BadLine("has tool_calls, which are a list in a message of the assistant")
        kept["tool_calls"] = [_call(call) for call in calls]
        called.update(call["id"] for call in kept["tool_calls"])
    elif role != "tool" and not kept["content"].strip():
        raise BadLine(_NO_TEXT, "empty_field")
    if role == "tool":
        kept["tool_call_id"] = str(message.get("tool_call_id"))
        if kept["tool_call_id"] not in called:
            raise BadLine(f"answers the call {kept['tool_call_id']!r}, which none before it made")
    return kept


def _weight(weight: Any) -> dict[str, int]:
    if weight is None:
        return {}
    if weight not in (0, 1):
        raise BadLine("has a weight other than 0 and 1")
    return {"weight": int(weight)}


def _content(content: Any) -> str:
    """Text, or the parts of a text, which servers join by line ends too."""
    if content is None:
        return ""
    if isinstance(content, list):
        parts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type") == "text"]
        if len(parts) < len(content):
            raise BadLine("has a part that is not text")
        content = "\n".join(part if isinstance(part, str) else "" for part in parts)
    if not isinstance(content, str):
        raise BadLine(_NO_TEXT)
    return check_text(content)


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadLine("has a tool call without the name of a function")
    if not isinstance(call.get("id"), str):
        raise BadLine("has a tool call without an id")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(check_text(arguments))
        except (ValueError, RecursionError) as error:
            raise BadLine(f"has a tool call whose arguments are not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise BadLine("has a tool call whose arguments are no JSON object")
    # templates get arguments as an object, as vLLM gives them
    made = {"name": function["name"], "arguments": arguments}
    return {"id": call["id"], "type": "function", "function": made}


def _tools(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The functions that the assistant could call; a text holds them as JSON."""
    tools = fields.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(check_text(tools))
        except (ValueError, RecursionError) as error:
            raise BadLine(f"'tools' is not JSON: {error}") from error
    if tools is None:
        if fields.get("functions") is not None:
            raise BadLine("'functions' is not read: write 'tools'")
        return []
    named = isinstance(tools, list) and all(_tool_name(tool) is not None for tool in tools)
    if not named:
        raise BadLine("'tools' is no list of functions with names")
    return list(tools)


def _tool_name(tool: Any) -> str | None:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _check_calls(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> None:
    known = {_tool_name(tool) for tool in tools}
    for position, message in enumerate(messages):
        for call in message.get("tool_calls", ()):
            name = call["function"]["name"]
            if name not in known:
                raise BadLine(f"message {position} calls {name!r}, which 'tools' does not describe")
