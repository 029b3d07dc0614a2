"""What the agreed step costs: steps a second of a DDP job with the consensus and without it, in one run.

    python -m spotrun.benchmarks.agreed_step [--workers 2] [--blocks 20] [--steps 100] [--step-ms 10]

Blocks of steps with and without the asynchronous reduction alternate in the same process, so that a noisy machine
weighs on both alike. A step computes for about --step-ms. Prints JSON: median seconds a step of each, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from torch.nn.parallel import DistributedDataParallel

import spotrun
from spotrun.consensus import Consensus


class Nobody(Consensus):
    """Agrees on nothing, at no cost."""

    def exchange(self, wishes: set[str], every: int = 1) -> tuple[frozenset[str], int]:
        return frozenset(), 0


def train(job: spotrun.Job) -> None:
    blocks, steps, step_s = (json.loads(os.environ["AGREED_STEP"])[name] for name in ("blocks", "steps", "step_s"))
    torch.set_num_threads(1)
    model = torch.nn.Linear(256, 256)
    ddp = DistributedDataParallel(model) if job.world_size > 1 else model
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-6)
    data = torch.randn(64, 256)
    consensus = {True: job._consensus, False: Nobody(None)}
    took: dict[bool, list[float]] = {True: [], False: []}
    for block in range(blocks):
        with_it = block % 2 == 0
        job._consensus = consensus[with_it]
        began_s = time.perf_counter()
        for _ in range(steps):
            until_s = time.perf_counter() + step_s
            while time.perf_counter() < until_s:
                loss = ddp(data).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            job.step()
        took[with_it].append((time.perf_counter() - began_s) / steps)
    if job.rank == 0:
        medians = {which: statistics.median(values) for which, values in took.items()}
        result = {"with_s": medians[True], "without_s": medians[False], "ratio": medians[True] / medians[False]}
        print(json.dumps({"benchmark": "agreed_step", "workers": job.world_size, **result}), flush=True)
    job._consensus = consensus[True]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--step-ms", type=float, default=10.0)
    options = parser.parse_args()
    settings = {"blocks": options.blocks, "steps": options.steps, "step_s": options.step_ms / 1000}
    environment = {**os.environ, "AGREED_STEP": json.dumps(settings), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "spotrun", "run", "--standalone", f"--nproc-per-node={options.workers}", __file__]
    raise SystemExit(subprocess.run(command, env=environment).returncode)


if __name__ == "__main__":
    if "RANK" in os.environ:
        spotrun.run(train)
    else:
        main()
