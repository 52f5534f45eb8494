"""Language tags (BCP 47, RFC 5646), through the library langcodes."""

import functools

import langcodes

from adapters.errors import InvalidInput


@functools.lru_cache(maxsize=1024)
def parse_tag(tag: str, param: str = "language") -> str:
    """Normalise a BCP 47 tag: `EN_us` -> `en-US`, `zh-cmn-Hans` -> `cmn-Hans`.

    Raises:
        InvalidInput: not well-formed, or no language of the IANA registry.
    """
    hint = "use a BCP 47 tag such as 'en', 'fr-CA' or 'zh-Hans'"
    if len(tag) > 64 or not langcodes.tag_is_valid(tag):
        raise InvalidInput(
            f"{param} {tag[:64]!r} is not a valid language tag", hint=hint, param=param
        )
    normalised = langcodes.standardize_tag(tag)
    if normalised == "und" or langcodes.Language.get(normalised).language in (None, "und"):
        raise InvalidInput(f"{param} {tag!r} names no language", hint=hint, param=param)
    return normalised


@functools.lru_cache(maxsize=1024)
def language_name(tag: str) -> str:
    """English name of a language, as prompts spell it: `fr-CA` -> `French (Canada)`."""
    return langcodes.Language.get(tag).display_name("en")


def same_language(one: str, other: str) -> bool:
    """Whether two tags name one language, whatever the region or script."""
    return langcodes.Language.get(one).language == langcodes.Language.get(other).language
