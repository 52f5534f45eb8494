"""A text in parts that are translated apart and joined with their own white space."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapters.prompt import PromptTemplate, TranslateInput
from service.tasks import sentences, windows
from service.tasks.sentences import Sentence

if TYPE_CHECKING:
    from service.engine import Engine

PART_TOKENS = 200
"""Of source text in a part: enough for context, few enough to stay close to it."""

_PLAIN = re.compile(r"\S+(?: \S+)*")
_UNSPACED = frozenset({"zh", "cmn", "yue", "ja", "th", "lo", "km", "my"})


@dataclass(frozen=True, slots=True)
class Parts:
    """`lead` is the white space before the first part; each part has its own behind it."""

    lead: str
    parts: Sequence[Sentence]
    target_lang: str

    def gap(self, number: int) -> str:
        """What stands behind a part's translation.

        It is what stood there in the source. Only between sentences that stood close
        comes a space, where the target language has one.
        """
        part = self.parts[number]
        spaced = self.target_lang.partition("-")[0] not in _UNSPACED
        return " " if not part.gap and spaced and number + 1 < len(self.parts) else part.gap

    def join(self, translations: Iterable[str]) -> str:
        texts = (text + self.gap(number) for number, text in enumerate(translations))
        return self.lead + "".join(texts)


async def divide(
    text: str, source_lang: str, target_lang: str, template: PromptTemplate, engine: "Engine"
) -> Parts:
    """Parts of whole sentences that fit into the window together with their translations."""
    core = text.strip()
    start = text.index(core)
    lead, trail = text[:start], text[start + len(core) :]
    # Every token has at least one byte, so a short plain line needs no counting.
    if len(core.encode()) <= PART_TOKENS and _PLAIN.fullmatch(core):
        return Parts(lead, [Sentence(0, core, trail)], target_lang)
    starts = await windows.token_starts(engine, core)
    empty = TranslateInput("", source_lang, target_lang)
    around = len(await engine.prompt_ids(template, empty))
    # A third for the source, the rest for a translation that may be twice as long.
    limit = max(1, (engine.max_model_len - around) // 3)
    parts = sentences.pack(sentences.split(core, source_lang), starts, PART_TOKENS, limit)
    last = parts[-1]
    parts[-1] = Sentence(last.start, last.text, last.gap + trail)
    return Parts(lead, parts, target_lang)
