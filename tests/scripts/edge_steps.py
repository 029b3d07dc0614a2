"""A small DDP job whose storage does what files beside its checkpoints ask for.

edge_steps.py OUT none|edge: OUT gets a line for each step. OUT.hold: no step ends while it is there. OUT.hang: writing
a shard waits while it is there. OUT.die: the rank named in it dies with its agent in the middle of its next shard.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import fsspec
import psutil
import torch
from fsspec.implementations.local import LocalFileSystem
from torch.nn.parallel import DistributedDataParallel

import spotrun
from tests.waiting import until

OUT, CHECKPOINTS = Path(sys.argv[1]), sys.argv[2]
HOLD, HANG, DIE = (OUT.with_suffix(f".{name}") for name in ("hold", "hang", "die"))
LIMIT_S = 120.0


class Edge(LocalFileSystem):  # type: ignore[misc]
    protocol = "edge"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("edge://")))

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        file = super()._open(path, mode, **kwargs)
        if "w" in mode and ".distcp" in path:
            if DIE.exists() and DIE.read_text() == os.environ["RANK"]:
                file.write(b"half a shard")
                agent = next(one for one in psutil.Process().parents() if "--nnodes=1:2" in one.cmdline())
                agent.kill()  # and this process with it
                signal.pause()
            until("the storage answers", lambda: not HANG.exists(), LIMIT_S)
        return file


def train(job: spotrun.Job) -> None:
    model = DistributedDataParallel(torch.nn.Linear(500, 500))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    job.track(model=model, optimizer=optimizer)
    while True:
        model(torch.randn(4, 500)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        until("steps may end", lambda: not HOLD.exists(), LIMIT_S)
        if job.rank == 0:
            with OUT.open("ab", buffering=0) as file:
                line = {"step": job.steps + 1, "world": job.world_size, "round": job.round}
                file.write(json.dumps(line).encode() + b"\n")
        job.step()


if __name__ == "__main__":
    fsspec.register_implementation("edge", Edge)
    torch.set_num_threads(1)
    directory = None if CHECKPOINTS == "none" else f"edge://{OUT}.checkpoints"
    spotrun.run(train, checkpoint_dir=directory, save_every="50steps", keep_last=None)
