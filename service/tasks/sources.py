"""Which language each text is in, and which model translates them all."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapters.detection import detect_language, letters
from adapters.languages import same_language
from service.errors import BadRequest
from service.tasks.responses import Notice

if TYPE_CHECKING:
    from service.models import Models, Resolved

UNDETERMINED = "und"
"""The tag of a text without words, which is not translated but copied."""


@dataclass(frozen=True, slots=True)
class Source:
    """A text's language, a BCP 47 tag."""

    tag: str
    detected: bool


async def resolve(
    texts: Sequence[str],
    source_lang: str | None,
    target_lang: str,
    reference: str | None,
    models: "Models",
) -> tuple["Resolved", list[Source]]:
    """The model for all texts and the source language of each.

    Where the source is not given it is detected; what the asked or live translator
    expects is taken in doubt. One request has one model.

    Raises:
        BadRequest: a language can't be told, or the texts need different models.
    """
    model = await models.resolve(
        reference, task="translate", source_lang=source_lang, target_lang=target_lang
    )
    if source_lang is not None:
        return model, [Source(source_lang, detected=False)] * len(texts)
    tags = await asyncio.to_thread(_detect, texts, model.languages)
    if reference is None:
        model = await _agreed(set(tags) - {UNDETERMINED}, target_lang, model, models)
    return model, [Source(tag, detected=True) for tag in tags]


def _detect(texts: Sequence[str], pair: tuple[str, str] | None) -> list[str]:
    tags: list[str] = []
    for index, text in enumerate(texts):
        tag = detect_language(text, pair)
        if tag is None and letters(text):
            raise BadRequest(
                f"the language of text {index} can't be told",
                param="source_lang",
                hint="give source_lang",
            )
        tags.append(UNDETERMINED if tag is None else tag)
    return tags


async def _agreed(
    tags: set[str], target_lang: str, model: "Resolved", models: "Models"
) -> "Resolved":
    """The one model that is live for all of the languages found."""
    if model.languages is not None and all(same_language(tag, model.languages[0]) for tag in tags):
        return model
    found = {
        tag: await models.resolve(
            None, task="translate", source_lang=tag, target_lang=target_lang
        )
        for tag in sorted(tags)
    }  # fmt: skip
    references = {other.reference for other in found.values()}
    if len(references) > 1:
        served = ", ".join(f"{tag} by {other.reference}" for tag, other in found.items())
        raise BadRequest(
            f"the texts are in different languages, served by different models: {served}",
            param="text",
            hint="name one model, or send one request for each language",
        )
    return next(iter(found.values()), model)


def pair_notice(tag: str, target_lang: str, model: "Resolved") -> Notice | None:
    """A warning when a translator is asked for languages that it was not trained on."""
    pair = model.languages
    if pair is None or tag == UNDETERMINED:
        return None
    if same_language(pair[0], tag) and same_language(pair[1], target_lang):
        return None
    return Notice(
        code="language_pair",
        message=f"{model.reference} translates {pair[0]} to {pair[1]}, not {tag} to {target_lang}",
    )
