"""Where a chat request's CPU time goes in the API process, part by part, and as flame graphs.

A server with the tests' tiny base and all of its edge on (keys, limits, admission, metrics, lines
of JSON) is loaded with streamed chats, 64 at once, while py-spy samples the process that has the
event loop. A sample is of the thread that holds the interpreter's lock: threads that wait for work
are not always seen to be idle. Each sample belongs to a part (`bench/stages.py`); a part's time is
its share of the samples times the kernel's count of the process's CPU time. Modiste's own share is
claimed; what a request costs more than in vLLM alone is told by `bench overhead --only edge`, since
some of Modiste's parts stand in for longer ones of vLLM's.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bench.client import LoadClient, LoadError
from bench.guarded import guarded, key_headers
from bench.harness import RESULTS, Report, at_most, bootstrap_interval, quick
from bench.overhead import chat_body, distinct_prompts, tiny_home
from bench.servers import MODISTE, Launch, Server, ServerError, free_port, running
from bench.stages import OURS, Stage, in_order, seconds_by_stage, share_of

PY_SPY = str(Path(sys.executable).with_name("py-spy"))
AT_ONCE, TOKENS, A_BLOCK = 64, 16, 128
BLOCKS, BLOCKS_SHORT = 8, 4
SECONDS = 8
RATE = 100
"""Samples a second; the process stands still for each."""
MOST_SHARE = 0.3


@dataclass(frozen=True)
class Found:
    """A block: CPU time of the process, a request, and who spent it."""

    cpu_ms: float
    stages: Mapping[Stage, float]

    @property
    def ours_ms(self) -> float:
        return self.cpu_ms * share_of(self.stages, OURS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    argparse.ArgumentParser(prog="bench profile", description=__doc__).parse_args(argv)
    report, folder = Report("profile"), RESULTS / "profile"
    try:
        found = measure(folder, BLOCKS_SHORT if quick() else BLOCKS)
    except (ServerError, LoadError) as error:
        print(error, file=sys.stderr)
        return 1
    claim(report, found)
    print(f"flame graph: {folder / 'chat.svg'}; for speedscope.app: {folder / 'chat-1.json'}")
    return report.write()


def measure(folder: Path, blocks: int) -> list[Found]:
    """Load a server and sample it, block by block; then once more for the flame graph."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    home = folder / "home"
    environment = guarded(tiny_home(home)) | {"MODISTE_KV_CACHE_GIB": "1"}
    port = free_port()
    command = [MODISTE, "serve", "--host", "127.0.0.1", "--port", str(port)]
    launch = Launch("profiled", command, environment, port, "/health/ready")
    found: list[Found] = []
    with running([launch], folder / "logs") as (server,), LoadClient() as client:
        load = Load(client, server, key_headers(home), distinct_prompts())
        load.block()  # warm
        for number in range(1, blocks + 1):
            path = folder / f"chat-{number}.json"
            cpu_ms = load.until_done(spy(server.api_process, path, "speedscope"))
            stages = seconds_by_stage(json.loads(path.read_text(encoding="utf-8")))
            found.append(Found(cpu_ms, stages))
            print(f"block {number} of {blocks}: {cpu_ms:.2f} ms", file=sys.stderr, flush=True)
        load.until_done(spy(server.api_process, folder / "chat.svg", "flamegraph"))
    return found


def spy(process: int, path: Path, form: str) -> "subprocess.Popen[bytes]":
    """Begin to sample a process into a file."""
    try:
        return subprocess.Popen(
            [PY_SPY, "record", "--pid", str(process), "--output", str(path), "--format", form,
             "--duration", str(SECONDS), "--rate", str(RATE), "--full-filenames", "--gil"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise ServerError(f"{PY_SPY} is not installed; run make setup-dev") from error


@dataclass(frozen=True)
class Load:
    """Chats at one server."""

    client: LoadClient
    server: Server
    headers: Mapping[str, str]
    prompts: Iterator[str]

    def block(self) -> int:
        """Send some chats; returns how many. Raises LoadError."""
        bodies: list[dict[str, Any]] = [
            chat_body(self.server.model, prompt, TOKENS) for prompt in islice(self.prompts, A_BLOCK)
        ]
        self.client.run(self.server.port, bodies, AT_ONCE, self.headers)
        return len(bodies)

    def until_done(self, sampling: "subprocess.Popen[bytes]") -> float:
        """Send chats until the samples are there; CPU time of the process, a request, in ms.

        Raises:
            LoadError, ServerError: py-spy could not sample the process.
        """
        sent, cpu_s = 0, self.server.api_cpu_s()
        try:
            while sampling.poll() is None:
                sent += self.block()
        finally:
            sampling.terminate()
            _, said = sampling.communicate()
        if sampling.returncode != 0 or not sent:
            # it reads another process's memory: as root, or where the kernel lets it
            raise ServerError(f"py-spy ended with {sampling.returncode}: {said.decode().strip()}")
        return (self.server.api_cpu_s() - cpu_s) * 1000 / sent


def claim(report: Report, found: Sequence[Found]) -> None:
    """Modiste's own part is small; and the table of all parts."""
    what = f"Modiste's own share of the process's CPU time, median of {len(found)} blocks"
    ours = [share_of(one.stages, OURS) for one in found]
    interval = bootstrap_interval(ours)
    report.add(at_most(what, statistics.median(ours), MOST_SHARE, interval=interval))
    shares = [dict(in_order(one.stages)) for one in found]
    print(f"{'part':22} {'of':8} {'ms':>8} {'share':>7}")
    for stage in shares[0]:
        share = statistics.mean(each[stage] for each in shares)
        ms = statistics.mean(
            one.cpu_ms * each[stage] for one, each in zip(found, shares, strict=True)
        )
        if not share:
            continue
        print(f"{stage.name:22} {stage.whose:8} {ms:8.3f} {share:7.1%}")
        report.measurements.append(
            {
                "part": stage.name, "of": stage.whose, "CPU ms a request": round(ms, 3),
                "share": f"{share:.1%}",
            }
        )  # fmt: skip
    cpu_ms = statistics.median(one.cpu_ms for one in found)
    ours_ms = statistics.median(one.ours_ms for one in found)
    report.measurements.append(
        {"process": "API", "CPU ms a request": round(cpu_ms, 2), "Modiste's own": round(ours_ms, 2)}
    )


if __name__ == "__main__":
    sys.exit(main())
