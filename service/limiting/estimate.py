"""How many tokens a request may use, told from its body before anything is tokenised.

What it reserves is settled when it ends, so an estimate that is too high holds others back for as
long as the request runs, and one that is too low lets a few more in.
"""

from typing import Any

BYTES_PER_TOKEN = 4
"""Of a body in JSON, which has more than the prompt; OpenAI reckons so too."""
_MOST = 2**40
_COMPLETIONS_DEFAULT = 16
_GENERATE_DEFAULT = 256
_ANSWER_DEFAULT = 128


def may_use(route: str, fields: Any, size: int, longest: int) -> int:
    """Tokens of the prompts and of the answers together.

    Args:
        fields: of the body; one that is no JSON object is refused by the route.
        size: of the body in bytes.
        longest: prompt and answer together, of one sequence, tokens.
    """
    count = _ANSWERS.get(route)
    if count is None or not isinstance(fields, dict):
        return 0
    prompt = -(-size // BYTES_PER_TOKEN)
    return min(_MOST, prompt + count(fields, prompt, longest))


def _chat(fields: dict[str, Any], prompt: int, longest: int) -> int:
    most = _first(fields, "max_completion_tokens", "max_tokens")
    rest = max(1, longest - prompt)
    return (rest if most is None else min(most, longest)) * _count(fields, "n")


def _completions(fields: dict[str, Any], _prompt: int, longest: int) -> int:
    most = _first(fields, "max_tokens")
    prompts, given = 1, fields.get("prompt")
    if isinstance(given, list) and given and not isinstance(given[0], int):
        prompts = len(given)
    each = min(_COMPLETIONS_DEFAULT if most is None else most, longest)
    return each * _count(fields, "n") * prompts


def _responses(fields: dict[str, Any], prompt: int, longest: int) -> int:
    most = _first(fields, "max_output_tokens")
    return max(1, longest - prompt) if most is None else min(most, longest)


def _generate(fields: dict[str, Any], _prompt: int, longest: int) -> int:
    most = _first(fields, "max_tokens")
    return min(_GENERATE_DEFAULT if most is None else most, longest) * _items(fields, "prompt")


def _translate(fields: dict[str, Any], prompt: int, longest: int) -> int:
    most = _first(fields, "max_tokens")
    if most is None:
        return 2 * prompt  # a translation is about as long as its text
    return min(most, longest) * _items(fields, "text")


def _answer(fields: dict[str, Any], _prompt: int, longest: int) -> int:
    most = _first(fields, "max_tokens")
    return min(_ANSWER_DEFAULT if most is None else most, longest) * _items(fields, "question")


def _classify(fields: dict[str, Any], _prompt: int, _longest: int) -> int:
    return _items(fields, "text")


_ANSWERS = {
    "/v1/chat/completions": _chat, "/v1/completions": _completions, "/v1/responses": _responses,
    "/v1/generate": _generate, "/v1/translate": _translate, "/v1/answer": _answer,
    "/v1/classify": _classify,
}  # fmt: skip
ROUTES = frozenset(_ANSWERS)
"""Those that use tokens."""


def _first(fields: dict[str, Any], *names: str) -> int | None:
    """The first field that has a count; what is no count the route refuses."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _count(fields: dict[str, Any], name: str) -> int:
    return min(_first(fields, name) or 1, 2**16)


def _items(fields: dict[str, Any], name: str) -> int:
    given = fields.get(name)
    return max(1, len(given)) if isinstance(given, list) else 1
