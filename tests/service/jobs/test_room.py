"""Room for jobs: who begins, who waits, who never can."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from adapters.bases import Base
from adapters.registry import Registry
from service.database import JobRow
from service.jobs import room, worker
from service.jobs.attempt import Attempt
from service.jobs.executors import LocalTrainer
from service.jobs.queue import Jobs, Order
from service.jobs.room import (
    GIB,
    Lack,
    Memory,
    Need,
    Patience,
    gpu_memory,
    host_memory,
    lack,
    needed,
)
from service.jobs.states import (
    Outcome,
)
from service.jobs.worker import Worker
from tests.adapters.parcels import BASE

SMOL = {
    "hidden_size": 576, "num_hidden_layers": 30, "intermediate_size": 1536, "vocab_size": 49152,
}  # fmt: skip
HOST = Memory(total=16 * GIB, free=12 * GIB)


def base_of(folder: Path, name: str = "smol", parameters: int = 134_515_008, **config: Any) -> Base:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SMOL | config))
    return Base(
        name=name, path=folder, source="", ref=BASE, context_length=2048, parameters=parameters,
        architecture="LlamaForCausalLM", lora=True,
    )  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return base_of(tmp_path / "smol")


@dataclass
class Busy:
    need: Need
    running: bool = False
    pid: int = 2**22 + 1
    """Of nobody."""


class TestNeed:
    def need(self, base: Base, host: Memory = HOST, **settings: Any) -> float:
        return needed(base, settings, base.path / "run", host, None).host / GIB

    def test_it_is_near_what_was_measured(self, base: Base) -> None:
        # a run of the recipe translate held 2.9 GiB at its peak
        need = self.need(base, **{"training.batch_tokens": 1024, "training.max_length": 512})
        assert need == pytest.approx(2.9, rel=0.2)

    def test_it_follows_the_base_and_the_batch(self, base: Base, tmp_path: Path) -> None:
        plain = self.need(base)
        assert self.need(base, **{"training.batch_tokens": 8192}) > plain
        assert self.need(base, **{"training.micro_batch_tokens": 64}) < plain
        assert self.need(base, **{"training.batch_size": 4, "training.max_length": 64}) < plain
        larger = base_of(tmp_path / "large", parameters=10**9)
        assert self.need(larger) > plain + 3

    def test_batches_are_parted_to_stay_within_the_machine(self, base: Base) -> None:
        huge = {"training.batch_tokens": 10**6}
        for gib in (8, 16, 64):
            assert self.need(base, Memory(gib * GIB, 0), **huge) == pytest.approx(
                0.6 * gib + 1, abs=0.3
            )

    @pytest.mark.parametrize("value", ["auto", None, -1, True, [], {}, float("nan")])
    def test_settings_that_are_none_are_the_trainers_to_refuse(
        self, base: Base, value: Any
    ) -> None:
        assert self.need(base, **{"training.batch_tokens": value}) == self.need(base)

    def test_a_run_that_was_begun_needs_what_it_measured(self, base: Base) -> None:
        run = base.path / "run"
        run.mkdir()
        (run / "preflight.json").write_text(json.dumps({"estimate": {"peak_bytes": 5 * GIB}}))
        assert self.need(base) == 5
        (run / "preflight.json").write_text("{")
        assert self.need(base) < 5

    def test_a_base_of_another_kind_has_a_guess(self, tmp_path: Path) -> None:
        odd = base_of(tmp_path / "odd", hidden_size=None)
        assert self.need(odd) == pytest.approx(0.5 + 2, abs=0.1)
        (odd.path / "config.json").unlink()
        assert self.need(odd) == pytest.approx(0.5 + 2, abs=0.1)

    def test_on_a_gpu_both_memories_are_needed(self, base: Base) -> None:
        need = needed(base, {}, base.path / "run", HOST, Memory(80 * GIB, 80 * GIB))
        assert 1 < need.gpu / GIB < 5
        assert 2 < need.host / GIB < 3


class TestLack:
    def test_memory_that_is_free_is_room(self) -> None:
        assert lack(Need(12 * GIB), [], HOST, None) is None

    def test_what_others_hold_is_waited_for(self) -> None:
        assert lack(Need(13 * GIB), [], HOST, None) == Lack(
            "needs 13.0 GiB, 12.0 GiB are free", for_ever=False
        )

    def test_what_is_not_there_never_comes(self) -> None:
        assert lack(Need(17 * GIB), [], HOST, None) == Lack(
            "needs 17.0 GiB, 16.0 GiB are there", for_ever=True
        )

    def test_what_jobs_at_work_will_still_take_is_not_free(self) -> None:
        found = lack(Need(5 * GIB), [Busy(Need(4 * GIB)), Busy(Need(4 * GIB))], HOST, None)
        assert found == Lack("needs 5.0 GiB, 4.0 GiB are free", for_ever=False)

    def test_what_they_took_already_is_not_counted_twice(self) -> None:
        held = psutil.Process().memory_info().rss
        mine = Busy(Need(held + GIB), pid=psutil.Process().pid)
        assert lack(Need(int(10.5 * GIB)), [mine], HOST, None) is None

    def test_a_gpu_that_a_server_has_taken_is_waited_for(self) -> None:
        gpu = Memory(80 * GIB, 8 * GIB)
        assert lack(Need(GIB, 9 * GIB), [], HOST, gpu) == Lack(
            "needs 9.0 GiB, 8.0 GiB are free on the GPU", for_ever=False
        )
        beside = [Busy(Need(0, 4 * GIB)), Busy(Need(0, 4 * GIB), running=True)]
        assert lack(Need(GIB, 4 * GIB), beside, HOST, gpu) is None
        assert lack(Need(GIB, 5 * GIB), beside, HOST, gpu) is not None


class TestMemory:
    def test_a_machine_has_what_is_available(self, tmp_path: Path) -> None:
        found = host_memory(tmp_path)
        assert found.total == psutil.virtual_memory().total
        assert 0 < found.free < found.total

    def test_a_container_has_its_own_and_gives_up_what_it_read(self, tmp_path: Path) -> None:
        (tmp_path / "memory.max").write_text(f"{GIB}\n")
        (tmp_path / "memory.current").write_text(f"{GIB - 1000}\n")
        (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300\nactive_file 7\n")
        assert host_memory(tmp_path) == Memory(GIB, 1300)
        (tmp_path / "memory.stat").unlink()
        assert host_memory(tmp_path).total == GIB

    @pytest.mark.parametrize(
        ("visible", "device"), [(None, "0"), ("2,3", "2"), ("GPU-ab12", "GPU-ab12")]
    )
    def test_the_trainers_gpu_is_asked(
        self, tmp_path: Path, visible: str | None, device: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(room, "on_cpu", lambda: False)
        command = tmp_path / "nvidia-smi"
        command.write_text(f'#!/bin/sh\n[ "$1" = "--id={device}" ] && echo "81559, 70000"\n')
        command.chmod(0o755)
        environment = {"PATH": str(tmp_path)}
        if visible is not None:
            environment["CUDA_VISIBLE_DEVICES"] = visible
        assert gpu_memory(environment) == Memory(81559 * 2**20, 70000 * 2**20)

    @pytest.mark.parametrize("script", ["exit 9", "echo '[N/A], [N/A]'", "echo"])
    def test_a_gpu_that_tells_nothing_is_not_looked_at(
        self, tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(room, "on_cpu", lambda: False)
        command = tmp_path / "nvidia-smi"
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
        assert gpu_memory({"PATH": str(tmp_path)}) is None

    def test_a_gpu_that_is_hidden_is_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(room, "on_cpu", lambda: False)
        command = tmp_path / "nvidia-smi"
        command.write_text("#!/bin/sh\necho '5, 5'\n")
        command.chmod(0o755)
        for hidden in ("", "-1"):
            path = {"PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": hidden}
            assert gpu_memory(path) is None
        assert gpu_memory({"PATH": "/nowhere"}) is None


def test_patience_has_an_end_and_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(room, "monotonic", lambda: now[0])
    patience = Patience()
    assert not patience.keeps_room("a", alone=False)
    now[0] = room.PATIENCE_S + 1
    assert patience.keeps_room("a", alone=False)
    assert not patience.keeps_room("a", alone=True)  # others hold what it lacks
    assert not patience.keeps_room("a", alone=False)
    now[0] *= 2
    assert patience.keeps_room("a", alone=False)
    patience.begun("a")
    assert not patience.keeps_room("a", alone=False)


@dataclass
class Site:
    """A worker whose jobs only sleep, and the memory that it sees."""

    worker: Worker
    memory: Memory
    bases: dict[str, Base]

    @property
    def jobs(self) -> Jobs:
        return self.worker.jobs

    def ask(self, base: str, project: str = "ours") -> JobRow:
        trainer = {"recipe": "generate", "base": base, "settings": {}, "promote": False}
        method = {"type": "supervised", "supervised": {"hyperparameters": {}}}
        order = Order(project, "key_1", base, "file-a", None, None, 1, method, None, trainer)
        return self.jobs.create(order)

    def look(self) -> None:
        self.worker._look_again = 0.0
        self.worker._begin_next()

    def status(self, job: JobRow) -> str:
        return self.jobs.find(job.id, job.project).status

    def messages(self, job: JobRow) -> list[str]:
        events, _ = self.jobs.events(job.id, job.project, after=None, limit=100)
        return [event.message for event in reversed(events)]

    def finish(self, job: JobRow) -> None:
        attempt = next(a for a in self.worker._attempts if a.job.id == job.id)
        self.worker._attempts.remove(attempt)
        self.jobs.end(job.id, self.worker.id, Outcome("succeeded"))


@pytest.fixture
def site(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Bases `small` (2 GiB to be there), `large` (6 GiB) and `huge` (never)."""
    made = Worker(Registry.open(tmp_path), at_once=4)
    needs = {"small": 2 * GIB, "large": 6 * GIB, "huge": 99 * GIB}
    bases = {name: base_of(tmp_path / name, name) for name in needs}
    site = Site(made, Memory(16 * GIB, 7 * GIB), bases)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    monkeypatch.setattr(made.registry, "bases", lambda: list(bases.values()))
    monkeypatch.setattr(worker, "host_memory", lambda: site.memory)
    monkeypatch.setattr(worker, "gpu_memory", lambda: None)
    monkeypatch.setattr(worker, "needed", lambda base, *_: Need(needs[base.name]))
    monkeypatch.setattr(room, "_resident", lambda _pid: 0)
    monkeypatch.setattr(
        made, "_begin", lambda job, need: Attempt(job, tmp_path, LocalTrainer(child), need)
    )
    yield site
    child.kill()
    child.wait()


def test_one_without_room_waits_says_so_once_and_lets_others_pass(site: Site) -> None:
    first, large, small = site.ask("large"), site.ask("large"), site.ask("small")
    site.look()
    site.memory = Memory(16 * GIB, 9 * GIB)
    for _ in range(3):
        site.look()
    assert [site.status(job) for job in (first, large, small)] == [
        "validating_files", "queued", "validating_files"
    ]  # fmt: skip
    assert site.messages(large)[1:] == ["Waiting for memory: needs 6.0 GiB, 3.0 GiB are free"]
    site.finish(first)
    site.look()
    assert site.status(large) == "validating_files"


def test_the_first_job_waits_too_where_a_server_holds_the_memory(site: Site) -> None:
    job = site.ask("large")
    site.memory = Memory(16 * GIB, GIB)
    site.look()
    assert site.status(job) == "queued"
    site.memory = Memory(16 * GIB, 8 * GIB)
    site.look()
    assert site.status(job) == "validating_files"


def test_one_that_never_fits_fails_with_a_remedy_and_holds_nobody_up(site: Site) -> None:
    huge, small = site.ask("huge"), site.ask("small")
    site.look()
    site.look()
    failed = site.jobs.find(huge.id, "ours")
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error["code"] == "not_enough_memory"
    assert "needs 99.0 GiB, 16.0 GiB are there: choose a smaller base" in failed.error["message"]
    assert site.status(small) == "validating_files"


def test_one_that_was_passed_for_long_is_not_passed_any_more(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PATIENCE_S", 0.2)
    running = site.ask("small")
    site.look()
    large, passes = site.ask("large"), site.ask("small")
    site.memory = Memory(16 * GIB, 5 * GIB)
    site.look()
    assert site.status(passes) == "validating_files"
    time.sleep(0.3)
    late = site.ask("small")
    site.look()
    assert site.status(late) == "queued"
    for job in (running, passes):
        site.finish(job)
    site.look()  # no job is at work: what it lacks is held by others, so one may pass
    assert (site.status(large), site.status(late)) == ("queued", "validating_files")
    site.finish(late)
    site.memory = Memory(16 * GIB, 7 * GIB)
    site.look()
    assert site.status(large) == "validating_files"


def test_an_unknown_base_is_the_trainers_to_refuse(site: Site) -> None:
    job = site.ask("gone")
    site.look()
    assert site.status(job) == "validating_files"


def test_looks_without_room_are_few(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.ask("large")
    site.memory = Memory(16 * GIB, 0)
    looks: list[SimpleNamespace] = []
    monkeypatch.setattr(worker, "gpu_memory", lambda: looks.append(SimpleNamespace()))
    for _ in range(5):
        site.worker._begin_next()
    assert len(looks) == 1
