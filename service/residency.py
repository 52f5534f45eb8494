"""Which versions are loaded in the engine: load, prove, hold, unload.

A version is served only after this engine reproduced its probe. It is never removed
while a request uses it: the engine would read its files again inside a step, and
missing files end every request.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from os import getpid
from time import monotonic, perf_counter
from typing import Any, Protocol

from adapters.compatibility import Takes
from adapters.errors import (
    DigestMismatch,
    IncompatibleAdapter,
    InvalidManifest,
    ProofFailed,
    UnsafeFile,
)
from adapters.manifest import BaseRef
from adapters.probe import Proof
from adapters.registry import Registry, Version, check_ready
from service.errors import BadRequest, NotReady
from service.leasing import Leasing
from service.models import Resolved
from service.proving import ProvingEngine, prove
from service.record import current_record, step
from service.telemetry import Metrics

logger = logging.getLogger("modiste.residency")

QUARANTINED_FOR = (DigestMismatch, InvalidManifest, ProofFailed, UnsafeFile)
"""What a version can't recover from; a store that is away, or another base, passes."""


class AdapterEngine(ProvingEngine, Protocol):
    """What residency needs of the engine."""

    async def load(self, engine_name: str, identifier: int, folder: str) -> Any: ...
    async def unload(self, request: Any) -> bool: ...


class ServedNames(Protocol):
    """vLLM's own table of adapters, kept in step with ours."""

    lora_requests: dict[str, Any]
    lora_id_counter: Any


@dataclass(frozen=True, slots=True)
class Limits:
    """What this engine was started with."""

    base: BaseRef
    max_rank: int
    max_resident: int
    max_running: int
    target_modules: frozenset[str]
    room_wait_s: float
    """Longest wait for a place while all are in use."""


@dataclass(slots=True)
class Resident:
    """A loaded and proved version."""

    version: Version
    resolved: Resolved
    proof: Proof
    in_flight: int = 0
    leaving: bool = False
    """It is drained: no request may take a new hold."""
    last_used: float = field(default_factory=monotonic)


class Residency:
    """The versions in one engine."""

    def __init__(
        self,
        engine: AdapterEngine,
        registry: Registry,
        served: ServedNames,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._engine, self._registry, self._served = engine, registry, served
        self._limits, self._metrics = limits, metrics
        self._residents: dict[str, Resident] = {}
        self._loading: dict[str, asyncio.Task[Resident]] = {}
        self._live: frozenset[str] = frozenset()
        self._entering = self._leaving = 0
        self._changed = asyncio.Event()
        self._proofs: dict[str, Proof] = {}
        takes = Takes(
            base=limits.base, max_rank=limits.max_rank, target_modules=limits.target_modules,
            process=getpid(),
        )  # fmt: skip
        self.leasing = Leasing(registry, takes)
        # a slow store must not take the threads that requests are tokenised in
        self._fetching = ThreadPoolExecutor(4, "modiste-fetch")

    @property
    def capacity(self) -> int:
        return self._limits.max_running

    def residents(self) -> list[Resident]:
        return list(self._residents.values())

    def proof_of(self, version: Version) -> Proof | None:
        """What the proof of a version found in this process; None before its first load."""
        return self._proofs.get(version.digest)

    def is_loaded(self, version: Version) -> bool:
        return version.digest in self._residents

    # these two are read by other threads: a list is copied in one step

    def running(self) -> list[str]:
        """Adapters with requests in flight, by the names that clients use."""
        return sorted({r.version.name for r in self.residents() if r.in_flight})

    def waiting(self) -> list[str]:
        """Adapters whose version is being loaded."""
        return sorted({task.get_name() for task in list(self._loading.values())})

    def keep(self, versions: Iterable[Version]) -> None:
        """These versions are live: never unload them to make room."""
        self._live = frozenset(version.digest for version in versions)
        self._changed.set()

    def labels(self) -> set[tuple[str, str]]:
        """Of what is loaded, as metrics have them."""
        return {r.resolved.labels_of_metrics for r in self.residents()}

    def digests(self) -> list[str]:
        """Of what is loaded or about to be."""
        return [*self._residents, *self._loading]

    def free_places(self) -> int:
        return self._limits.max_resident - len(self._residents) - len(self._loading)

    async def hold(self, version: Version) -> Resolved:
        """Load a version if need be; it stays until the current request ends."""
        resident = self._residents.get(version.digest)
        (self._metrics.misses if resident is None else self._metrics.hits).inc()
        deadline = monotonic() + self._limits.room_wait_s
        while resident is None or resident.leaving:
            if resident is None:
                with step("load version"):
                    await self.ensure(version)
            else:
                await self._wait_for_change(deadline, f"{version.reference} is being unloaded")
            # another load may have taken its place before this task ran again
            resident = self._residents.get(version.digest)
        resident.last_used = monotonic()
        record = current_record()
        if record is not None:
            resident.in_flight += 1
            record.on_end.append(lambda: self._release(resident))
        # equal content under two names is loaded once and answers under each
        return replace(resident.resolved, reference=version.reference, version=version)

    def _release(self, resident: Resident) -> None:
        resident.in_flight -= 1
        resident.last_used = monotonic()
        if resident.in_flight == 0:
            self._changed.set()

    async def ensure(self, version: Version) -> Resident:
        """Load and prove a version; those who ask for it meanwhile wait for the one load.

        Raises:
            AdapterError: it can't be served, and why.
            NotReady: there is no room for it.
        """
        digest = version.digest
        if digest in self._residents:
            return self._residents[digest]
        task = self._loading.get(digest)
        if task is None:
            task = asyncio.create_task(self._load(version), name=version.name)
            self._loading[digest] = task
            task.add_done_callback(self._loaded)
        # a caller that goes away must not stop the load that others wait for
        return await asyncio.shield(task)

    def _loaded(self, task: "asyncio.Task[Resident]") -> None:
        self._loading = {digest: t for digest, t in self._loading.items() if t is not task}
        if not task.cancelled():
            task.exception()  # seen, also where all who waited went away

    async def _load(self, version: Version) -> Resident:
        started = perf_counter()
        try:
            self._check(version)
            await self.leasing.take(version)
            if self._registry.store.remote is not None:
                await self._in_thread(self._registry.fetch, version)
            async with self._room():
                resident = await self._load_and_prove(version)
                self._residents[version.digest] = resident
        except QUARANTINED_FOR as error:
            self._metrics.quarantines.inc()
            await asyncio.to_thread(self._registry.quarantine, version, error.message)
            raise
        finally:
            if version.digest not in self._residents:
                self.leasing.give_up(version)
        self._metrics.resident.set(len(self._residents))
        self._metrics.loads.observe(perf_counter() - started)
        logger.info(
            "%s %s loaded and proved in %.0f ms: error %.2g of %.2g nats allowed, effect %.2g",
            version.reference, version.digest, (perf_counter() - started) * 1000,
            resident.proof.error, resident.proof.tolerance, resident.proof.effect,
        )  # fmt: skip
        return resident

    def _check(self, version: Version) -> None:
        check_ready(version)
        manifest, limits = version.manifest, self._limits
        if differences := manifest.base.differences(limits.base):
            raise IncompatibleAdapter(
                f"{version.reference} was made for base {manifest.base.name!r}, whose "
                f"{', '.join(differences)} differ from {limits.base.name!r}",
                hint="serve it with its own base, or train it again on this one",
                param="model",
            )
        if (misfit := self.leasing.takes.misfit(manifest)) is not None:
            problem, remedy = misfit
            raise IncompatibleAdapter(
                f"{version.reference} can't be served here: {problem}",
                hint=f"restart with {remedy}",
                param="model",
            )

    async def _verify(self, version: Version) -> None:
        if self._registry.store.remote is None:  # else it was, when it was fetched
            await self._in_thread(self._registry.store.verify, version.manifest)

    async def _in_thread(self, work: Callable[..., None], *arguments: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._fetching, work, *arguments)

    async def _load_and_prove(self, version: Version) -> Resident:
        identifier = self._served.lora_id_counter.inc(1)
        name = version.digest
        # digests are checked while the engine reads the same files; nothing is served before
        whole = asyncio.create_task(self._verify(version))
        try:
            with self._metrics.engine_loads.time():
                request = await self._engine.load(name, identifier, str(version.folder))
        except BaseException:
            await whole  # what is wrong with the files says more than the engine
            raise
        try:
            await whole
            # the same bytes in the same engine need no second proof when they come back
            proof = self._proofs.get(name) or await prove(self._engine, version, request)
        except BaseException:
            await asyncio.shield(self._engine.unload(request))
            raise
        self._proofs[name] = proof
        self._served.lora_requests[name] = request
        resolved = Resolved(version.reference, version.digest, "proved", version, name, request)
        return Resident(version, resolved, proof)

    @asynccontextmanager
    async def _room(self) -> AsyncIterator[None]:
        """A place for one more version: the least recently used idle one leaves for it.

        While all are in use it waits for one to become idle.
        """
        deadline = monotonic() + self._limits.room_wait_s
        while len(self._residents) + self._entering + self._leaving >= self._limits.max_resident:
            idle = [
                resident
                for digest, resident in self._residents.items()
                if resident.in_flight == 0 and digest not in self._live
            ]
            if idle:
                await self._unload(min(idle, key=lambda resident: resident.last_used))
                continue
            taken = f"all {self._limits.max_resident} places for versions are taken"
            await self._wait_for_change(deadline, taken)
        self._entering += 1
        try:
            yield
        finally:
            self._entering -= 1
            self._changed.set()

    async def drain(self, version: Version) -> bool:
        """Unload a version once no request uses it; requests that come meanwhile wait.

        Returns:
            Whether it was loaded.

        Raises:
            BadRequest: an alias points at it.
            NotReady: requests still use it after the longest wait; it stays.
        """
        resident = self._residents.get(version.digest)
        if resident is None:
            return False
        if version.digest in self._live:
            raise BadRequest(
                f"an alias points at {version.reference}", param="version",
                hint="move the alias, or end the canary, first", code="version_is_live",
            )  # fmt: skip
        deadline = monotonic() + self._limits.room_wait_s
        resident.leaving = True
        try:
            while resident.in_flight:
                await self._wait_for_change(deadline, f"{version.reference} is still in use")
            if version.digest in self._residents:
                await self._unload(resident)
        finally:
            resident.leaving = False
            self._changed.set()
        return True

    async def let_go(self, version: Version) -> None:
        """A version was taken out of use: its files may go once no request reads them."""
        with suppress(BadRequest, NotReady):  # equal content is live, or a request is long
            await self.drain(version)
        if version.digest not in self._residents and version.digest not in self._loading:
            self.leasing.give_up(version)

    async def _wait_for_change(self, deadline: float, otherwise: str) -> None:
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), deadline - monotonic())
        except TimeoutError:
            raise NotReady(
                otherwise, hint="raise max_resident_versions, or try again",
                code="no_room_for_version",
            ) from None  # fmt: skip

    async def _unload(self, resident: Resident) -> None:
        # the name goes first: from here on nobody can take a new hold on it
        del self._residents[resident.version.digest]
        self.leasing.used(resident.version)
        self._served.lora_requests.pop(resident.resolved.engine_name, None)
        self._metrics.resident.set(len(self._residents))
        self._metrics.evictions.inc()
        self._leaving += 1  # its place is taken until the engine let go
        try:
            if not await self._engine.unload(resident.resolved.lora_request):
                logger.error("the engine did not let go of %s", resident.version.reference)
        finally:
            self._leaving -= 1
            self._changed.set()
