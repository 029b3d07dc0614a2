"""Training of which rank 1 hangs, once.

hanging.py OUT_FILE STEPS

Before, rank 0 evaluates for longer than the job's --hang-timeout of 2 s, and says that it is busy.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import torch

import spotrun

OUT, STEPS = Path(sys.argv[1]), int(sys.argv[2])
EVALUATED_AT, HANGS_AT = 10, 20


def evaluate() -> None:
    time.sleep(3.0)


def never_returns() -> None:
    threading.Event().wait()


def train(job: spotrun.Job) -> None:
    model = torch.nn.Linear(4, 1)
    job.track(model=model)
    while job.steps < STEPS:
        if job.round == 1 and (job.steps, job.rank) == (EVALUATED_AT, 0):
            with job.busy():
                evaluate()
        if job.round == 1 and (job.steps, job.rank) == (HANGS_AT, 1):
            never_returns()
        torch.distributed.all_reduce(torch.ones(1))
        time.sleep(0.02)
        if job.rank == 0:
            line = {"step": job.steps + 1, "world": job.world_size, "round": job.round}
            with OUT.open("ab", buffering=0) as file:
                file.write(json.dumps(line).encode() + b"\n")
        job.step()


if __name__ == "__main__":
    spotrun.run(train)
