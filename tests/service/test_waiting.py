"""How vLLM's processes wait for each other: what it costs, and that no message is missed."""

import json
import subprocess
import sys

import pytest

WAITS = """
import json, os, sys, threading, time
os.sched_getaffinity = lambda _: range(int(sys.argv[1]))
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from service import waiting

waiting.install()
waiting.install()
writer, got = MessageQueue(1, 1, max_chunk_bytes=1024), []

def read():
    reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
    reader.wait_until_ready()
    got.extend(reader.dequeue(timeout=20) for _ in range(5))

thread = threading.Thread(target=read)
thread.start()
writer.wait_until_ready()
writer.enqueue(0)
began = time.process_time()
for number, pause_s in enumerate((0.0, 0.4, 0.4), 1):
    time.sleep(pause_s)
    writer.enqueue(number)
spent_s = time.process_time() - began
time.sleep(1.2)  # now vLLM waits to be told
writer.enqueue(4)
thread.join()
print(json.dumps({"got": got, "spent_s": spent_s}))
"""


@pytest.mark.parametrize(("cores", "rests"), [(1, True), (2, True), (3, False)])
def test_whoever_waits_leaves_a_core_to_others_where_there_are_few(cores: int, rests: bool) -> None:
    command = [sys.executable, "-c", WAITS, str(cores)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["got"] == [0, 1, 2, 3, 4]
    assert (told["spent_s"] < 0.2) is rests
