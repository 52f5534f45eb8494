"""What is wrong with the texts of examples: each fault is counted, with the places of some.

Rows pass one by one; nothing of their texts is kept.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from string import Formatter
from typing import Any

from adapters.languages import same_language
from finetune.config import Recipe
from finetune.data import Row
from finetune.findings import SAMPLES, Finding, finding
from finetune.sensitive import SECRETS, find_sensitive, mask

FOREIGN_MARKS = (
    "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<<SYS>>", "### Instruction:",
    "### Response:", "### Input:", "<|user|>", "<|assistant|>", "<|system|>", "<start_of_turn>",
    "<end_of_turn>", "<|start_header_id|>", "<|eot_id|>", "<|endoftext|>", "<|begin_of_text|>",
    "<｜User｜>", "<｜Assistant｜>",
)  # fmt: skip
"""Of ChatML, Llama 2 and 3, Alpaca, Zephyr, Gemma, GPT-2 and DeepSeek."""

_ROLES = re.compile(
    r"^(?:Human|User|Assistant|AI|Bot) ?: .*^(?:Assistant|AI|Bot) ?:", re.MULTILINE | re.DOTALL
)
_BLANK = frozenset({"", "n a", "na", "none", "null", "nan", "nil", "todo", "tbd", "undefined"})
_CONTROL = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u2060\ufeff]")
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{1,6}|#x[0-9A-Fa-f]{1,5});")
# bytes of UTF-8 read as Windows-1252: a lead byte, then bytes from 0x80 to 0xBF
_MISREAD = re.compile("[ÂÃÄÅâðÐÑ][\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]{1,3}")
_NO_TEXT = frozenset({"role", "id", "type", "tool_call_id", "source_lang", "target_lang"})
_SHARE, _FEW_UNTRANSLATED = 0.1, 0.05
_LEAST_ANSWER = 20
_SAME_ANSWERS, _LEAST_ANSWERS = 0.5, 10


def texts_of(value: Any) -> Iterator[str]:
    """Every text inside a row's input, names and the like aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in _NO_TEXT:
                yield from texts_of(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_of(inner)


class TextChecks:
    """Counts faults of the rows that pass."""

    def __init__(self, recipe: Recipe, special_tokens: tuple[str, ...] = ()) -> None:
        self.sensitive: Counter[str] = Counter()
        self._recipe = recipe
        self._special = special_tokens
        self._marks = tuple(mark for mark in FOREIGN_MARKS if mark not in special_tokens)
        self._instruction = _instruction(recipe)
        self._rows = 0
        self._counts: Counter[str] = Counter()
        self._samples: dict[str, list[str]] = {}
        self._answers: Counter[int] = Counter()
        self._about_answer = _ABOUT_ANSWER.get(recipe.task, _nothing)

    def add(self, row: Row) -> None:
        """Look at one row."""
        self._rows += 1
        whole = "\n".join([*texts_of(row.input), *row.references])
        for code in self._faults(row, whole):
            self._count(code, row.origin)
        for match in find_sensitive(whole):
            value = mask(whole[match.start : match.end])
            self.sensitive[match.kind] += 1
            self._count(match.kind, f"{row.origin}: {value}")
        if row.split == "train":
            self._answers[hash(row.references[0])] += 1

    def findings(self) -> Iterator[Finding]:
        """What was found, in the order of the table of codes."""
        for code, message in _MESSAGES.items():
            count = self._counts[code]
            if count > self._rows * _TOLERATED.get(code, 0):
                yield finding(code, f"{count} {message}", count, self._samples[code])
        yield from self._constant_answer()
        for kind, message in _SENSITIVE.items():
            if count := self._counts[kind]:
                what = "secrets" if kind in SECRETS else "personal data"
                told = f"{count} {message} ({what}): data.redact: true replaces them"
                yield finding(kind, told, count, self._samples[kind])

    def _constant_answer(self) -> Iterator[Finding]:
        if self._recipe.task == "classify" or self._answers.total() < _LEAST_ANSWERS:
            return
        self._answers[hash(self._recipe.template.unanswerable)] = 0  # meant to be common
        count, total = self._answers.most_common(1)[0][1], self._answers.total()
        if count >= _SAME_ANSWERS * total:
            told = f"{count} of {total} training examples have the same answer"
            yield finding("constant_answer", told, count)

    def _count(self, code: str, sample: str) -> None:
        self._counts[code] += 1
        samples = self._samples.setdefault(code, [])
        if len(samples) < SAMPLES:
            samples.append(sample)

    def _faults(self, row: Row, whole: str) -> Iterator[str]:
        if any(mark in whole for mark in self._special):
            yield "special_tokens"
        if any(mark in whole for mark in self._marks) or _ROLES.search(whole):
            yield "foreign_template"
        if self._instruction and self._instruction in whole:
            yield "prompt_in_text"
        if "\ufffd" in whole:
            yield "replacement_characters"
        if is_mojibake(whole):
            yield "mojibake"
        if _CONTROL.search(whole):
            yield "control_characters"
        if _ENTITY.search(whole):
            yield "html_entities"
        answer = row.references[0]
        if self._recipe.task != "classify" and _says_nothing(answer):
            yield "blank_answers"
        yield from self._about_answer(row, answer, self._recipe)


def is_mojibake(text: str) -> bool:
    """Whether a part of the text is UTF-8 that was read as Windows-1252, such as `Ã©`."""
    for match in _MISREAD.finditer(text):
        try:
            raw = b"".join(_byte(character) for character in match[0])
            raw.decode("utf-8", "strict")
        except UnicodeError:
            continue
        return True
    return False


def _byte(character: str) -> bytes:
    return bytes([ord(character)]) if ord(character) < 0x100 else character.encode("cp1252")


def _says_nothing(answer: str) -> bool:
    if len(answer) > 20:
        return False
    words = re.findall(r"\w+", answer.lower())
    symbols = any(ord(c) > 0x2100 for c in answer)  # an emoji or a sign may be the answer
    return " ".join(words) in _BLANK and not symbols


def _instruction(recipe: Recipe) -> str:
    """The first words of the task's own instruction, up to a field."""
    system = recipe.template.system
    if recipe.task == "generate" or system is None:
        return ""
    start = next(iter(Formatter().parse(system)), ("",))[0]
    return start.strip() if len(start.strip()) >= 16 else ""


def _about_translation(row: Row, answer: str, _: Recipe) -> Iterator[str]:
    source = str(row.input.get("text", ""))
    if answer.strip() == source.strip() and sum(map(str.isalpha, source)) >= 10:
        yield "untranslated"


def _about_question(row: Row, answer: str, recipe: Recipe) -> Iterator[str]:
    context = row.input.get("context")
    if context and answer != recipe.template.unanswerable:
        known = " ".join(str(context).casefold().split())
        if " ".join(answer.casefold().split()) not in known:
            yield "answer_not_in_context"


def _about_completion(row: Row, answer: str, _: Recipe) -> Iterator[str]:
    given = {name: value for name, value in row.input.items() if name != "rejected"}
    if len(answer) >= _LEAST_ANSWER and any(answer in text for text in texts_of(given)):
        yield "answer_in_prompt"


def _nothing(_row: Row, _answer: str, _recipe: Recipe) -> Iterator[str]:
    return iter(())


_ABOUT_ANSWER: Mapping[str, Callable[[Row, str, Recipe], Iterator[str]]] = {
    "translate": _about_translation,
    "answer": _about_question,
    "generate": _about_completion,
}
_TOLERATED = {"untranslated": _FEW_UNTRANSLATED, "answer_not_in_context": _SHARE,
              "answer_in_prompt": _SHARE}  # fmt: skip
"""Shares of the examples that honest data has."""
_MESSAGES = {
    "blank_answers": "examples have an answer that says nothing, such as n/a or -",
    "answer_in_prompt": "prompts hold the very answer that is asked for",
    "answer_not_in_context": "answers are not in their context: the model learns to guess them",
    "special_tokens": "examples have control tokens of the base in their texts",
    "foreign_template": "examples have marks of a chat template: give the plain turns, "
    "the base's template is put around them",
    "prompt_in_text": "examples already have the task's instruction, which is put before them",
    "replacement_characters": "examples have replacement characters (U+FFFD): letters are lost",
    "mojibake": "examples have UTF-8 that was read as another encoding, such as Ã©",
    "control_characters": "examples have control or invisible characters",
    "html_entities": "examples have HTML entities such as &amp;",
    "untranslated": "translations are equal to their source",
}
_SENSITIVE = {
    "private_key": "private keys",
    "jwt": "JSON web tokens",
    "aws_key": "access keys of AWS",
    "github_token": "tokens of GitHub",
    "api_key": "API keys",
    "email": "e-mail addresses",
    "iban": "bank accounts",
    "credit_card": "credit card numbers",
    "ip_address": "IP addresses",
    "phone": "telephone numbers",
}


def wrong_languages(recipe: Recipe, found: dict[str, dict[str, int]]) -> Iterator[Finding]:
    """Whether texts of a translator are in the languages that the recipe says.

    Args:
        found: `input` and `answer` -> language -> texts, as `languages_of` gives.
    """
    sides = (("input", recipe.data.source_lang), ("answer", recipe.data.target_lang))
    for side, tag in sides:
        counts = found.get(side, {})
        told = sum(counts.values())
        if tag is None or not told:
            continue
        others = {code: n for code, n in counts.items() if not same_language(code, tag)}
        wrong = sum(others.values())
        if wrong > _SHARE * told:
            which = ", ".join(sorted(others, key=lambda code: -others[code])[:5])
            message = f"{wrong} of {told} {side}s that were looked at are not {tag} but {which}"
            yield finding("wrong_language", message, wrong)
