"""Training through the API: a small regression, a line a step from rank 0, and an audit.

api_steps.py OUT_FILE STEPS SECONDS_A_STEP ddp|fsdp|plain [CHECKPOINT_DIR] [AUDIT_DIR] [SAVE_EVERY]

After each 25th step it waits as long as there is OUT_FILE with the suffix .hold.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import spotrun
from spotrun import events

OUT, STEPS, STEP_S, KIND = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
SAMPLES = 997


class Samples(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(8, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
        return x, (x.sum() ** 2).reshape(1)


def train(job: spotrun.Job) -> None:
    torch.manual_seed(0)
    model: torch.nn.Module = torch.nn.Sequential(
        torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)
    ).double()
    if KIND == "ddp":
        model = DistributedDataParallel(model)
    if KIND == "fsdp" or (KIND == "fsdp-of-several" and job.world_size > 1):
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = job.batches(Samples(), global_batch_size=20, seed=3, epochs=None)
    job.track(model=model, optimizer=optimizer)
    for x, y in batches:
        loss = torch.nn.functional.mse_loss(model(x), y)
        job.scale(loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        end = float(job.rank == 0 and OUT.with_suffix(".end").exists())
        total = torch.stack([loss.detach() * batches.weight / job.world_size, torch.tensor(end)])
        torch.distributed.all_reduce(total)
        if job.rank == 0:
            line = {
                "step": job.steps + 1,
                "loss": float(total[0]),
                "world": job.world_size,
                "round": job.round,
                "pid": os.getpid(),
                "mono_s": time.monotonic(),
            }
            with OUT.open("ab", buffering=0) as file:
                file.write(json.dumps(line).encode() + b"\n")
        time.sleep(STEP_S)
        job.step(loss=loss)
        while job.steps % 25 == 0 and OUT.with_suffix(".hold").exists():
            time.sleep(0.01)
        if job.steps >= STEPS or total[1]:
            break


if __name__ == "__main__":
    events.to_file(OUT.with_suffix(".workers"))
    more = sys.argv[5:]
    directory, audit, save_every = [*more, *(None, None, "25steps")[len(more) :]]
    spotrun.run(train, checkpoint_dir=directory, audit_dir=audit, save_every=save_every)
