"""Which language a text is in, by the library py3langid (offline, its model inside)."""

import functools
import re
from collections.abc import Sequence

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from adapters import placeholders
from adapters.languages import parse_tag, same_language

READ = 2_000  # characters: more do not change the verdict

# Its rarer languages and dialects would take many short texts from these.
LANGUAGES = tuple(
    re.findall(
        r"\w+",
        """
        af am ar az be bg bn bs ca cs cy da de el en es et eu fa fi fr ga gl gu he hi hr hu hy id
        is it ja ka kk km kn ko lo lt lv mk ml mn mr ms my ne nl no pa pl ps pt ro ru si sk sl sq
        sr sv sw ta te th tl tr uk ur uz vi zh zu
        """,
    )
)

# How likely the expected language must be, next to the likeliest one, by letters.
_NEEDED = ((16, 0.05), (40, 0.2))
_NEEDED_LONG = 0.5


@functools.lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES)
    return identifier


@functools.lru_cache(maxsize=256)
def _known(tag: str) -> str | None:
    """The identifier's own code for a tag, None when it does not know that language."""
    if same_language(tag, "nb"):
        return "no"
    return next((code for code in LANGUAGES if same_language(tag, code)), None)


def letters(text: str) -> int:
    """How many letters a text has outside its placeholders."""
    return sum(map(str.isalpha, placeholders.blank(text)))


def likeliest_language(text: str) -> tuple[str, float] | None:
    """The BCP 47 tag of the likeliest language and how likely it is; None without letters."""
    words = placeholders.blank(text[:READ])
    if not any(map(str.isalpha, words)):
        return None
    code, likelihood = _identifier().classify(words)
    return parse_tag(code), float(likelihood)


def detect_language(text: str, candidates: Sequence[str] | None = None) -> str | None:
    """The BCP 47 tag of a text's language; None when there is nothing to tell it by.

    The first of `candidates` is what a translator expects. It is taken unless the text
    speaks against it; a few words must speak clearly, a paragraph need not.
    """
    words = placeholders.blank(text[:READ])
    expected = candidates[0] if candidates else None
    count = sum(map(str.isalpha, words))
    if not count:
        return expected
    likelihoods: dict[str, float] = dict(_identifier().rank(words))
    best = max(likelihoods, key=lambda code: likelihoods[code])
    if expected is not None:
        code = _known(expected)
        needed = next((share for most, share in _NEEDED if count < most), _NEEDED_LONG)
        if code is None or likelihoods[code] >= needed * likelihoods[best]:
            return expected
    return parse_tag(best)
