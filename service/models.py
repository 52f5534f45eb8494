"""From the name in a request to the version that answers it.

Aliases take effect here only after their version was loaded and proved, so a name
never points at something that can't answer.
"""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from hashlib import sha256
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from adapters.bases import Base
from adapters.canaries import Canary, Key
from adapters.errors import AdapterError, NotFound
from adapters.languages import same_language
from adapters.names import PRODUCTION, Reference, parse_reference
from adapters.prompt import PromptTemplate, Task, default_prompt
from adapters.records import READY
from adapters.registry import Registry, Version, check_ready
from adapters.retirement import not_a_version
from service.errors import BadRequest, ModelNotFound, NotReady, ServiceError
from service.record import current_caller, current_record, step
from service.trials import Tried

if TYPE_CHECKING:
    from service.residency import Residency

logger = logging.getLogger("modiste.models")

RETRY_S = 5.0
"""Pause before an alias is tried again that failed for a passing reason."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """What answers a request: a version, or the base model."""

    reference: str
    digest: str
    proof: str
    version: Version | None = None
    engine_name: str = ""
    lora_request: Any = None

    @property
    def receipt(self) -> str:
        return f"version={self.reference}; digest={self.digest}; proof={self.proof}"

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the version was trained on."""
        return () if self.version is None else tuple(self.version.manifest.labels)

    @property
    def languages(self) -> tuple[str, str] | None:
        """Source and target of a translator."""
        languages = [] if self.version is None else self.version.manifest.languages
        return (languages[0], languages[1]) if len(languages) == 2 else None

    @property
    def labels_of_metrics(self) -> tuple[str, str]:
        if self.version is None:
            return "", self.reference
        return self.version.name, str(self.version.number)

    def template(self, task: Task) -> PromptTemplate:
        """The version's own prompt for its task, else the default one."""
        if self.version is not None and self.version.manifest.task == task:
            return self.version.manifest.prompt
        return default_prompt(task)


class Models:
    """Resolves names; follows the registry's aliases."""

    def __init__(self, registry: Registry, residency: "Residency", base: Base) -> None:
        self._registry = registry
        self._residency = residency
        self._base = Resolved(base.name, base.ref.fingerprint, "base", engine_name=base.name)
        self._live: dict[tuple[str, str], Version] = {}
        self._canaries: dict[Key, tuple[Version, Canary]] = {}
        self._failed: dict[tuple[str, str], str] = {}
        self._known: dict[str, Version] = {}
        self._projects: dict[str, str] = {}
        self._revision = self._stamp = -1
        self._retry_at = inf
        self._following = asyncio.Lock()
        self.caught_up = asyncio.Event()

    @property
    def base(self) -> Resolved:
        return self._base

    @property
    def ready(self) -> bool:
        """Whether aliases took effect, once."""
        return self.caught_up.is_set()

    def live(self) -> dict[tuple[str, str], Version]:
        """Aliases in effect that the caller may see: (adapter, alias) to version."""
        return {key: v for key, v in self._live.items() if _own(v.manifest.project)}

    def trials(self) -> list[tuple[Key, datetime]]:
        """Canaries in effect, and since when."""
        return [(key, canary.started) for key, (_, canary) in self._canaries.items()]

    def failures(self) -> dict[tuple[str, str], str]:
        """Aliases that the registry moved and that could not take effect, with the reason."""
        return dict(self._failed)

    async def resolve(
        self,
        reference: str | None,
        *,
        task: Task,
        source_lang: str | None = None,
        target_lang: str | None = None,
        labels: Sequence[str] | None = None,
    ) -> Resolved:
        """The model for a request; it stays loaded until the request ends.

        Without a reference: the live adapter of the task (and language pair, and labels)
        that was promoted last, else the base.

        Raises:
            ModelNotFound, NotReady, BadRequest, AdapterError.
        """
        record = current_record()
        if record is not None:
            record.asked = reference or ""
        with step("resolve model"):
            version = await self._choose(reference, task, source_lang, target_lang, labels)
            resolved = self._base if version is None else await self._hold(version)
        if record is not None:
            record.model, record.task = resolved, task
        return resolved

    async def _choose(
        self,
        reference: str | None,
        task: Task,
        source_lang: str | None,
        target_lang: str | None,
        labels: Sequence[str] | None,
    ) -> Version | None:
        """The version that is asked for; None for the base."""
        if reference is None:
            live = self._live_for(task, source_lang, target_lang, labels)
            return None if live is None else self._split(live)
        if reference == self._base.reference:
            return None
        if not reference.strip():
            raise BadRequest("model is empty", param="model", hint="name a model of GET /v1/models")
        return await self._find(reference)

    async def _hold(self, version: Version) -> Resolved:
        try:
            return await self._residency.hold(version)
        except AdapterError:
            self._forget(version)
            raise

    def _forget(self, version: Version) -> None:
        """Look a version up again: it may be quarantined now, and repaired later."""
        self._known = {k: v for k, v in self._known.items() if v.digest != version.digest}

    async def _find(self, reference: str) -> Version:
        parsed = _parsed(reference)
        await self.check_own(parsed.name, reference)
        if parsed.alias is not None:
            key = (parsed.name, parsed.alias)
            if key in self._live:
                return self._split(key)
            if key in self._failed:
                raise NotReady(
                    f"{reference!r} can't be served: {self._failed[key]}",
                    param="model", hint="promote a version that passes its proof",
                    code="alias_not_served",
                )  # fmt: skip
        known = self._known
        version = known.get(reference)
        if version is None:
            version = await self._look_up(reference)
            if parsed.alias is None and version.state == READY:
                known[reference] = version  # in vain where all was forgotten meanwhile
        check_ready(version)
        return version

    async def check_own(self, name: str, reference: str) -> None:
        """Let pass what the caller's project has.

        Raises:
            ModelNotFound: there is no such adapter, or it is another project's.
        """
        try:
            project = self._projects.get(name)
            if project is None:
                project = await asyncio.to_thread(self._registry.project, name)
                self._projects[name] = project
        except NotFound as error:
            raise _missing(reference) from error
        if not _own(project):
            raise _missing(reference)

    async def retire(self, reference: str) -> None:
        """Take a version of the caller's project out of use; here at once.

        Raises:
            ModelNotFound, Retired: the project has no such version, or not any more.
            InvalidInput: it is a base model, or an alias.
            VersionInUse: an alias or a canary points at it.
        """
        parsed = _parsed(reference)
        bases = await asyncio.to_thread(self._registry.bases)
        if reference in {self._base.reference, *(base.name for base in bases)}:
            raise not_a_version(reference)
        await self.check_own(parsed.name, reference)
        retire = partial(
            self._registry.retire, reference, who=current_caller(), why="deleted as a model"
        )
        self._forget(await asyncio.to_thread(retire))

    async def look_up(self, reference: str) -> Version | None:
        """The version that a name stands for, without loading it; None for no such."""
        try:
            return await self._find(reference)
        except ModelNotFound:
            return None

    async def _look_up(self, reference: str) -> Version:
        try:
            return await asyncio.to_thread(self._registry.find, reference)
        except NotFound as error:
            raise _missing(reference, f": {error.message}") from error

    def _split(self, key: tuple[str, str]) -> Version:
        """The version that an alias points at, or for a share of the requests its canary."""
        canary = self._canaries.get(key)
        if canary is None:
            return self._live[key]
        tried_out, share = canary
        record = current_record()
        sticky = record.sticky_key if record is not None else ""
        chosen = tried_out if draw(key, sticky) < share.percent else self._live[key]
        if record is not None:
            record.tried = Tried(key, share.started, chosen.number)
        return chosen

    def _live_for(
        self, task: Task, source: str | None, target: str | None, labels: Sequence[str] | None
    ) -> tuple[str, str] | None:
        found: tuple[str, str] | None = None
        for key, version in self._live.items():
            manifest = version.manifest
            if key[1] != PRODUCTION or manifest.task != task or not _own(manifest.project):
                continue
            pair = manifest.languages
            if target is not None and (len(pair) != 2 or not same_language(pair[1], target)):
                continue
            if source is not None and not same_language(pair[0], source):
                continue
            if labels is not None and set(labels) != set(manifest.labels):
                continue
            found = key
        return found

    # aliases

    async def follow(self, every_s: float) -> None:
        """Keep up with the registry for as long as the server runs."""
        away = False
        while True:
            try:
                await self.catch_up()
                if away:
                    logger.warning("aliases can be read again")
                away = False
            except AdapterError as error:
                if not away:  # once, not several times a second until the database is back
                    logger.warning("aliases can't be read: %s", error)
                away = True
            except Exception:  # the loop must outlive any one failure
                logger.exception("following aliases failed")
            await asyncio.sleep(every_s)

    async def catch_up(self) -> None:
        """Load and prove what aliases point at now, then let them take effect."""
        async with self._following:
            stamp, due = await self._look(), monotonic() >= self._retry_at
            if stamp == self._stamp and not due:
                return
            revision = await asyncio.to_thread(self._registry.revision)
            if revision == self._revision and not due:
                self._stamp = stamp
                return
            # what fails on the way is tried again at the next poll
            self._stamp, self._revision, self._retry_at = -1, -1, inf
            self._known = {}  # a version may have been retired
            self._projects = {}  # an adapter may be gone, and another have its name
            wanted = await asyncio.to_thread(self._registry.all_aliases)
            shares = await asyncio.to_thread(self._registry.canaries)
            await asyncio.gather(
                *(self._switch(key, number) for key, number in wanted.items()),
                *(self._try_out(key, canary) for key, canary in shares.items()),
            )
            for gone in self._live.keys() - wanted.keys():
                del self._live[gone]
            for ended in self._canaries.keys() - shares.keys():
                del self._canaries[ended]
            tried = [version for version, _ in self._canaries.values()]
            self._residency.keep([*self._live.values(), *tried])
            self._stamp, self._revision = stamp, revision
            self.caught_up.set()

    async def _look(self) -> int:
        # PostgreSQL is asked in a thread: a network may hang, the event loop must not
        if self._registry.stamp_waits:
            return await asyncio.to_thread(self._registry.stamp)
        return self._registry.stamp()

    async def _switch(self, key: tuple[str, str], number: int) -> None:
        name, alias = key
        current = self._live.get(key)
        if current is not None and current.number == number:
            return
        try:
            version = await asyncio.to_thread(self._registry.find, f"{name}@{number}")
            await self._residency.ensure(version)
        except (AdapterError, ServiceError) as error:
            self._failed[key] = str(error)
            if getattr(error, "retryable", True):
                self._retry_at = monotonic() + RETRY_S
            stays = "nothing" if current is None else current.reference
            logger.warning("%s@%s stays on %s: %s", name, alias, stays, error)
            return
        self._failed.pop(key, None)
        # the last promoted stands last, and is taken where no model is named
        self._live.pop(key, None)
        self._live[key] = version
        logger.info("%s@%s is now %s %s", name, alias, version.reference, version.digest)

    async def _try_out(self, key: tuple[str, str], canary: Canary) -> None:
        name, alias = key
        now = self._canaries.get(key)
        if now is not None and now[0].number == canary.number:
            self._canaries[key] = now[0], canary
            return
        try:
            version = await asyncio.to_thread(self._registry.find, f"{name}@{canary.number}")
            await self._residency.ensure(version)
        except (AdapterError, ServiceError) as error:
            self._canaries.pop(key, None)
            if getattr(error, "retryable", True):
                self._retry_at = monotonic() + RETRY_S
            logger.warning("%s@%s has no canary: %s", name, alias, error)
            return
        self._canaries[key] = version, canary
        logger.info("%s@%s gives %g %% to %s", name, alias, canary.percent, version.reference)


def _parsed(reference: str) -> Reference:
    try:
        return parse_reference(reference)
    except AdapterError as error:
        raise ModelNotFound(
            f"the model {reference[:120]!r} does not exist", param="model", hint=error.hint
        ) from error


def _own(project: str) -> bool:
    """Whether a project is the caller's; what is no request sees all."""
    record = current_record()
    return record is None or project == record.project


def _missing(reference: str, why: str = "") -> ModelNotFound:
    return ModelNotFound(
        f"the model {reference[:120]!r} does not exist{why}", param="model",
        hint="GET /v1/models lists the models",
    )  # fmt: skip


def draw(key: Key, sticky: str) -> float:
    """Where a request falls, 0 to 100: by its sticky key for ever, without one by chance."""
    if not sticky:
        return secrets.randbelow(10_000) / 100
    text = "\0".join((*key, sticky))
    return int.from_bytes(sha256(text.encode()).digest()[:8]) % 10_000 / 100
