"""What the agreed step costs: the seconds a step of a DDP job with the consensus and without it, in one run.

    python -m spotrun.benchmarks.agreed_step [--workers 2] [--blocks 20] [--steps 100] [--step-ms 10] [--out FILE.json]

Blocks of steps with and without the asynchronous reduction alternate in the same process, so that a noisy machine
weighs on both alike; a run is two blocks that follow each other. A step computes for about --step-ms.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

import spotrun
from spotrun.benchmarks.measurement import Measurement
from spotrun.consensus import Consensus

SETTINGS_ENV = "AGREED_STEP"  # what the workers are told, as JSON
TITLE = "The agreed step: what it costs in each step"
HOW = "A DDP job on gloo; blocks of steps with the asynchronous reduction of the agreed step and without it alternate."


class Nobody(Consensus):
    """Agrees on nothing, at no cost."""

    def exchange(self, wishes: set[str], every: int, step_s: float) -> tuple[frozenset[str], int]:
        return frozenset(), 0


def train(job: spotrun.Job) -> None:
    settings = json.loads(os.environ[SETTINGS_ENV])
    torch.set_num_threads(1)
    model = DistributedDataParallel(torch.nn.Linear(256, 256).to(job.device))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    data = torch.randn(64, 256, device=job.device)
    consensus = {True: job._consensus, False: Nobody(None)}
    took: list[float] = []  # seconds a step of each block; the first one warms up
    for block in range(settings["blocks"] + 1):
        job._consensus = consensus[block % 2 == 0]
        began_s = time.perf_counter()
        for _ in range(settings["steps"]):
            until_s = time.perf_counter() + settings["step_s"]
            while time.perf_counter() < until_s:
                loss = model(data).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            job.step()
        took.append((time.perf_counter() - began_s) / settings["steps"])
    job._consensus = consensus[True]
    if job.rank == 0:
        Path(settings["result"]).write_text(json.dumps(took[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=20, help="an even number")
    parser.add_argument("--steps", type=int, default=100, help="in a block")
    parser.add_argument("--step-ms", type=float, default=10.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    settings = {"blocks": options.blocks, "steps": options.steps, "step_s": options.step_ms / 1000}
    document = Measurement("agreed_step", TITLE, HOW, ("ratio", "with_s", "without_s"), settings)
    with tempfile.TemporaryDirectory(prefix="spotrun-bench-") as folder:
        result = Path(folder) / "took.json"
        told = json.dumps({**settings, "result": str(result)})
        command = [sys.executable, "-m", "spotrun", "--standalone", f"--nproc-per-node={options.workers}", __file__]
        subprocess.run(command, env={**os.environ, SETTINGS_ENV: told, "OMP_NUM_THREADS": "1"}, check=True)
        took = json.loads(result.read_text())
    for without_s, with_s in zip(took[::2], took[1::2], strict=True):
        run = {"ratio": with_s / without_s, "with_s": with_s, "without_s": without_s}
        document.add(run, workers=options.workers)
    document.write(options.out)
    print(document.table())


if __name__ == "__main__":
    if SETTINGS_ENV in os.environ:
        spotrun.run(train)
    else:
        main()
