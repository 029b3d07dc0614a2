"""One pair of nodes: a real process group of two, its results checked and its speed measured.

    python -m spotrun.doctor.link '{"address": ..., "port": ..., "name": ..., "rank": 0, "backend": "gloo"}'

In a process of its own, for a collective that hangs can only be ended by ending its process. Prints one line of JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

JOIN_S = 60.0  # for the other one to come; it may be importing torch on a busy host
LINK_S = 8.0  # for one operation once both are there: below 2 MB/s a link is as good as none
LIMIT_S = 100.0  # for all of it
PAYLOAD_BYTES, REPEATS = 16 << 20, 5
SMALL_REPEATS = 50


@dataclass(frozen=True, slots=True)
class Task:
    address: str  # of the store, on the pair's first node
    port: int
    name: str  # tells the pairs apart in the store
    rank: int
    backend: str


@dataclass(frozen=True, slots=True)
class Measured:
    """As one side saw it. `error` is empty where all went well."""

    bytes_per_s: float = 0.0
    latency_s: float = 0.0
    ahead_s: float = 0.0  # the other's clock before ours
    error: str = ""


def run(task: Task) -> Measured:
    """Start the process and wait for it, LIMIT_S at most."""
    command = [sys.executable, "-m", "spotrun.doctor.link", json.dumps(asdict(task))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return Measured(error=f"no answer within {LIMIT_S:g} s")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Measured(error=lines[-1][:300])
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def measure(task: Task) -> Measured:
    """Raises what torch.distributed does."""
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore, TCPStore  # where torch's stubs declare them

    store = TCPStore(task.address, task.port, is_master=False, timeout=timedelta(seconds=JOIN_S))
    store.set(f"{task.name}/{task.rank}", "here")
    store.wait([f"{task.name}/{1 - task.rank}"], timedelta(seconds=JOIN_S))
    device = torch.device("cuda", 0) if task.backend == "nccl" else torch.device("cpu")
    dist.init_process_group(
        task.backend,
        store=PrefixStore(task.name, store),
        rank=task.rank,
        world_size=2,
        timeout=timedelta(seconds=LINK_S),
    )
    try:
        small = torch.ones(1, device=device)
        latencies_s = [_timed(small, device) for _ in range(SMALL_REPEATS)]
        clocks = [torch.zeros(1, dtype=torch.float64, device=device) for _ in range(2)]
        dist.all_gather(clocks, torch.tensor([time.time()], dtype=torch.float64, device=device))
        large = torch.empty(PAYLOAD_BYTES // 4, device=device)
        times_s = []
        for _ in range(REPEATS):
            large.fill_(task.rank + 1.0)
            times_s.append(_timed(large, device))
            if not bool((large == 3.0).all()):
                raise RuntimeError("the sum over both nodes is wrong: data was damaged on the way")
        return Measured(
            PAYLOAD_BYTES / statistics.median(times_s),
            statistics.median(latencies_s),
            float(clocks[1 - task.rank]) - float(clocks[task.rank]),
        )
    finally:
        dist.destroy_process_group()


def _timed(tensor: Any, device: Any) -> float:
    import torch
    import torch.distributed as dist

    began_s = time.perf_counter()
    dist.all_reduce(tensor)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began_s


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(measure(Task(**json.loads(sys.argv[1]))))) + "\n")
