"""Translations that keep placeholders, white space and a glossary's terms.

A long text is split at sentences into parts, all parts of all texts are one batch,
and the parts are joined with the very white space that stood between them.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from adapters import placeholders
from adapters.detection import letters
from adapters.languages import parse_tag
from adapters.prompt import TranslateInput
from service.engine import Output, Sampling
from service.errors import BadRequest
from service.tasks import glossary, parts, windows
from service.tasks.batch import mean_probability, together, usage_of
from service.tasks.responses import GlossaryNotice, Notice, PlaceholderNotice, TranslateResult
from service.tasks.sources import Source, pair_notice
from service.tasks.streams import Delta, Done, Event, pieces
from service.tasks.wire import TranslateRequest, check_size

if TYPE_CHECKING:
    from service.engine import Engine
    from service.models import Resolved

CHARACTERS_OF_A_PART = 4 * parts.PART_TOKENS
TEMPERATURE = 0.7
SEEDS = (1, 2, 3, 4)
"""What is tried when the greedy translation breaks a placeholder or misses a term."""


@dataclass(frozen=True, slots=True)
class Translation:
    """A valid request, its tags normalised."""

    texts: tuple[str, ...]
    source_lang: str | None
    target_lang: str
    glossary: Mapping[str, str]
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class _Faults:
    """What is wrong with a part's translation."""

    difference: placeholders.Difference = field(default_factory=placeholders.Difference)
    terms: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.difference or self.terms)


@dataclass(frozen=True, slots=True)
class _Translated:
    """A part's translation and every output that it took: none for a part without words."""

    text: str
    finish_reason: str
    outputs: tuple[Output, ...]
    faults: _Faults


def check(request: TranslateRequest) -> Translation:
    """The valid form of a request.

    Raises:
        BadRequest, InvalidInput: a tag that is none, one language for both, a list to stream.
        TooLarge: too much text.
    """
    check_size(request.text, "text")
    if request.stream and len(request.text) > 1:
        raise BadRequest(
            "several texts cannot be streamed", param="stream", hint="send one text, or no stream"
        )
    target = parse_tag(request.target_lang, "target_lang")
    source = request.source_lang
    if source is not None:
        source = parse_tag(source, "source_lang")
        if source == target:
            message = f"source_lang and target_lang are both {target!r}"
            raise BadRequest(message, param="target_lang", hint="name two languages")
    return Translation(request.text, source, target, request.glossary, request.max_tokens)


def calls(asked: Translation) -> int:
    """About how many engine requests it takes: one for each part of each text."""
    return sum(1 + len(text) // CHARACTERS_OF_A_PART for text in asked.texts)


async def run(
    asked: Translation, sources: Sequence[Source], engine: "Engine", model: "Resolved"
) -> list[TranslateResult]:
    """One result for each text, in order, from one batch.

    A part whose greedy translation changes a placeholder or misses a glossary term is
    tried four times more, sampled with fixed seeds; the most likely one without a fault
    is taken, else the greedy one with warnings.
    """
    return await together(
        _Translator(index, source, asked, engine, model).result()
        for index, source in enumerate(sources)
    )


async def stream(
    asked: Translation, source: Source, engine: "Engine", model: "Resolved"
) -> AsyncGenerator[Event, None]:
    """Pieces of one text's translation, part after part, then the whole result.

    What was sent can't be taken back, so nothing is tried again here: a changed
    placeholder or missed term only gives a warning in the last event.
    """
    translator = _Translator(0, source, asked, engine, model)
    divided = await translator.divide()
    if divided.lead:
        yield Delta(0, divided.lead)
    done: list[_Translated] = []
    for number, part in enumerate(divided.parts):
        async with aclosing(translator.stream_part(part.text)) as found:
            async for item in found:
                if isinstance(item, str):
                    yield Delta(0, item)
                else:
                    done.append(item)
        if gap := divided.gap(number):
            yield Delta(0, gap)
    yield Done(translator.combine(divided, done))


@dataclass(frozen=True, slots=True)
class _Translator:
    """Translates one text of a request."""

    index: int
    source: Source
    asked: Translation
    engine: "Engine"
    model: "Resolved"

    async def result(self) -> TranslateResult:
        divided = await self.divide()
        done = await together(self.part(part.text) for part in divided.parts)
        return self.combine(divided, done)

    async def divide(self) -> parts.Parts:
        text, target = self.asked.texts[self.index], self.asked.target_lang
        template = self.model.template("translate")
        return await parts.divide(text, self.source.tag, target, template, self.engine)

    async def part(self, text: str) -> _Translated:
        """The greedy translation, or a sampled one that has no faults where it has some."""
        if not letters(text):
            return _copied(text)
        prompt_ids, room = await self.prompt(text)
        greedy = await self.engine.generate(prompt_ids, Sampling(max_tokens=room), self.model)
        faults = self.faults(text, greedy.text)
        if not faults:
            return _Translated(greedy.text.strip(), greedy.finish_reason, (greedy,), faults)
        sampling = Sampling(max_tokens=room, temperature=TEMPERATURE, chosen_logprobs=True)
        candidates = await together(
            self.engine.generate(prompt_ids, replace(sampling, seed=seed), self.model)
            for seed in SEEDS
        )
        passing = [
            output
            for output in candidates
            if output.finish_reason != "length" and not self.faults(text, output.text)
        ]
        best = max(passing, key=mean_probability, default=greedy)
        left = _Faults() if passing else faults
        return _Translated(best.text.strip(), best.finish_reason, (greedy, *candidates), left)

    async def stream_part(self, text: str) -> AsyncGenerator[str | _Translated, None]:
        """Pieces of a part's translation without white space around it, then all of it."""
        if not letters(text):
            if text:
                yield text
            yield _copied(text)
            return
        prompt_ids, room = await self.prompt(text)
        begun, held = False, ""
        stream_of_pieces = pieces(self.engine, prompt_ids, Sampling(max_tokens=room), self.model)
        async with aclosing(stream_of_pieces) as found:
            async for piece in found:
                said = held + (piece.delta if begun else piece.delta.lstrip())
                ready = said.rstrip()
                # White space is held back until a word follows: at the end it is not wanted.
                held = said[len(ready) :]
                begun = begun or bool(ready)
                if ready:
                    yield ready
                if (output := piece.output) is not None:
                    faults = self.faults(text, output.text)
                    yield _Translated(output.text.strip(), output.finish_reason, (output,), faults)

    async def prompt(self, text: str) -> tuple[list[int], int]:
        """A part's token ids and how many tokens its translation may have."""
        task_input = TranslateInput(text, self.source.tag, self.asked.target_lang)
        prompt_ids = await self.engine.prompt_ids(self.model.template("translate"), task_input)
        wanted = self.asked.max_tokens
        if wanted is None:
            # Without a limit, a model that repeats itself would fill the window.
            wanted = 64 + 2 * len(prompt_ids)
        return prompt_ids, windows.room(self.engine, prompt_ids, wanted, "text")

    def faults(self, text: str, translation: str) -> _Faults:
        missed = glossary.unhonoured(self.asked.glossary, text, translation)
        return _Faults(placeholders.compare(text, translation), tuple(missed))

    def combine(self, divided: parts.Parts, done: Sequence[_Translated]) -> TranslateResult:
        truncated = any(item.finish_reason == "length" for item in done)
        warnings: list[PlaceholderNotice | GlossaryNotice | Notice] = []
        unsuited = pair_notice(self.source.tag, self.asked.target_lang, self.model)
        if unsuited is not None:
            warnings.append(unsuited)
        warnings += _placeholder_notices([item.faults.difference for item in done])
        missed = dict.fromkeys(term for item in done for term in item.faults.terms)
        warnings += [_glossary_notice(term, self.asked.glossary[term]) for term in missed]
        if truncated:
            warnings.append(TRUNCATED)
        return TranslateResult(
            index=self.index,
            translation=divided.join(item.text for item in done),
            source_lang=self.source.tag,
            detected=self.source.detected,
            finish_reason="length" if truncated else "stop",
            usage=usage_of(output for item in done for output in item.outputs),
            warnings=warnings,
        )


TRUNCATED = Notice(
    code="truncated",
    message="a translation reached max_tokens or the end of the model's window",
)


def _copied(text: str) -> _Translated:
    """A part without words, such as a number or a lone placeholder, stays as it is."""
    return _Translated(text, "stop", (), _Faults())


def _placeholder_notices(differences: Sequence[placeholders.Difference]) -> list[PlaceholderNotice]:
    """One warning for all parts of a text."""
    if not any(differences):
        return []
    missing = [text for difference in differences for text in difference.missing]
    added = [text for difference in differences for text in difference.added]
    reordered = [text for difference in differences for text in difference.reordered]
    said = [
        f"{what} {', '.join(texts)}"
        for what, texts in (("missing", missing), ("added", added), ("in another order", reordered))
        if texts
    ]
    message = f"placeholders changed: {'; '.join(said)}"
    return [PlaceholderNotice(message=message, missing=missing, added=added)]


def _glossary_notice(term: str, translation: str) -> GlossaryNotice:
    message = f"{term!r} was not translated as {translation!r}"
    return GlossaryNotice(message=message, term=term, translation=translation)
