"""What the jobs of `steady_state` train: DDP on a model that keeps a core busy for some milliseconds a step.

    steady_steps.py OUT_FILE PASSES BLOCK plain|api

A step has PASSES forward passes and one backward. Before each BLOCK of steps rank 0 takes a byte from the FIFO `turns`
beside OUT_FILE, and after it writes a line. `plain` is a script as
torchrun knows them; `api` uses `spotrun.run`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    import spotrun

OUT, PASSES, BLOCK, KIND = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
WIDTH, BATCH = 512, 64


def train(device: torch.device, job: spotrun.Job | None) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, WIDTH))
    model = torch.nn.parallel.DistributedDataParallel(
        layers.to(device), device_ids=[device] if device.type == "cuda" else None
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    if job is not None:
        job.track(model=model, optimizer=optimizer)
    x = torch.randn(BATCH, WIDTH, device=device)

    def forward() -> torch.Tensor:
        loss: torch.Tensor = model(x).square().mean()
        return loss

    turns = os.open(OUT.parent / "turns", os.O_RDONLY) if dist.get_rank() == 0 else None
    while True:
        if turns is not None:
            os.read(turns, 1)
        began_s = time.monotonic()
        for _ in range(BLOCK):
            for _ in range(PASSES - 1):
                with torch.no_grad():
                    forward()
            forward().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            if job is not None:
                job.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if turns is not None:
            now_s = time.monotonic()
            record = {"what": "block", "mono_s": now_s, "step_s": (now_s - began_s) / BLOCK}
            with OUT.open("ab", buffering=0) as file:
                file.write(json.dumps(record).encode() + b"\n")


def main() -> None:
    import torch
    import torch.distributed as dist

    if KIND == "api":
        import spotrun

        spotrun.run(lambda job: train(job.device, job))
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    train(device, None)


if __name__ == "__main__":
    main()
