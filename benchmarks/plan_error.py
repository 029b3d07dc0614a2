"""How far off `spotrun plan` is about the time of a step: its prediction beside steps that are made.

    python -m spotrun.benchmarks.plan_error [--turns 15] [--steps 3] [--out FILE.json]

Two processes on this machine stand for two nodes, with one thread each and gloo over loopback between them. As the docs
advise, the speed is taken from a step of one's own: one model, one batch, one node. The network's is that of an
all-reduce. From these the plan predicts other depths, widths and batches, and two nodes. All take turns, and the
least of the turns counts, for whatever else the machine does makes a step longer and none shorter.

    predicted_ms, measured_ms   a step
    error                       measured / predicted - 1
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spotrun.benchmarks.measurement import Measurement
from spotrun.plan.catalog import Offer
from spotrun.plan.cost import Work, step_s
from spotrun.plan.memory import Model

TITLE = "The plan's error: the time of a step"
HOW = (
    "Two processes with a thread each, gloo over loopback, perceptrons of equal layers with AdamW under DDP. The plan"
    " is told the speed of the row `own step` and of an all-reduce; it predicts the others. The least turn counts."
    " error: measured / predicted - 1."
)
FEATURED = ("predicted_ms", "measured_ms", "error")
LIMIT_S = 600.0
PAYLOAD_BYTES = 32 << 20
ANY = Offer("cpu", "L4", 1, None, None, "here")  # its data sheet does not matter: --mfu is measured against it


@dataclass(frozen=True, slots=True)
class Shape:
    """What is trained: `layers` layers of `width`, `batch` samples a rank, on `nodes` nodes."""

    layers: int
    width: int
    batch: int
    nodes: int = 1

    @property
    def parameters(self) -> int:
        return self.layers * (self.width**2 + self.width)

    def work(self, mfu: float, network_bytes_per_s: float) -> Work:
        tokens = float(self.batch * self.nodes)
        return Work(Model(self.parameters, 0), tokens, tokens, "ddp", mfu, network_bytes_per_s)


OWN = "own step"
SHAPES = {
    OWN: Shape(8, 1024, 256),
    "twice as deep": Shape(16, 1024, 256),
    "twice as wide": Shape(4, 2048, 256),
    "a quarter of the batch": Shape(8, 1024, 64),
    "two nodes": Shape(8, 1024, 256, nodes=2),
    "two nodes, a quarter of the batch": Shape(8, 1024, 64, nodes=2),
}


def predictions(measured_s: dict[str, float], network_bytes_per_s: float) -> dict[str, float]:
    """Seconds a step of each shape, from one's own step."""
    own = SHAPES[OWN]
    mfu = step_s(own.work(1.0, network_bytes_per_s), ANY, 1) / measured_s[OWN]
    return {name: step_s(shape.work(mfu, network_bytes_per_s), ANY, shape.nodes) for name, shape in SHAPES.items()}


def turns(rank: int, file: str, count: int, steps: int) -> None:
    """One rank; that of rank 0 prints a line of JSON a turn: seconds a step of each shape, and of the all-reduce."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)

    def trainer(shape: Shape) -> Any:
        width, model = shape.width, torch.nn.Sequential()
        for _ in range(shape.layers):
            model.extend([torch.nn.Linear(width, width), torch.nn.GELU()])
        trained = DistributedDataParallel(model) if shape.nodes > 1 else model
        optimizer = torch.optim.AdamW(model.parameters())
        inputs = torch.randn(shape.batch, width)

        def step() -> None:
            trained(inputs).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def timed(act: Any, times: int) -> float:
        began_s = time.perf_counter()
        for _ in range(times):
            act()
        return (time.perf_counter() - began_s) / times

    payload = torch.zeros(PAYLOAD_BYTES // 4)
    known = {name: trainer(shape) for name, shape in SHAPES.items() if rank == 0 or shape.nodes > 1}
    for turn in range(-1, count):  # the first warms up
        found = {}
        for name in SHAPES:
            dist.barrier()
            if name in known:
                found[name] = timed(known[name], steps)
        dist.barrier()
        reduce_s = timed(lambda: dist.all_reduce(payload), steps)
        if rank == 0 and turn >= 0:
            sys.stdout.write(json.dumps({"steps_s": found, "reduce_s": reduce_s}) + "\n")
            sys.stdout.flush()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3, help="of each shape in a turn")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--meeting", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        turns(options.rank, options.meeting, options.turns, options.steps)
        return
    document = Measurement("plan_error", TITLE, HOW, FEATURED, {"turns": options.turns, "steps": options.steps})
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "spotrun.benchmarks.plan_error", f"--meeting={folder}/meeting"]
        command += [f"--turns={options.turns}", f"--steps={options.steps}"]
        ranks = [
            subprocess.Popen(
                [*command, f"--rank={rank}"],
                env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            told, _ = ranks[0].communicate(timeout=LIMIT_S)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    found = [json.loads(line) for line in told.splitlines()]
    measured_s = {name: min(turn["steps_s"][name] for turn in found) for name in SHAPES}
    network_bytes_per_s = PAYLOAD_BYTES / min(turn["reduce_s"] for turn in found)  # each rank sends what it holds
    for name, predicted_s in predictions(measured_s, network_bytes_per_s).items():
        milliseconds = {"predicted_ms": predicted_s * 1e3, "measured_ms": measured_s[name] * 1e3}
        document.add({**milliseconds, "error": measured_s[name] / predicted_s - 1}, shape=name)
    document.write(options.out)
    print(document.table())


if __name__ == "__main__":
    main()
