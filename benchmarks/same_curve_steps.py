"""The GPT of `spotrun demo` under DDP or FSDP2, each step written down; what `same_curve` runs.

    same_curve_steps.py OUT ddp|fsdp|pieces float32|float64 STEPS

`pieces` is DDP that takes each rank's part in three pieces. OUT gets a line for each step. No step after the one that
is named in the file OUT.limit ends before that is changed.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import torch
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import spotrun
from spotrun.demo.chargpt import GLOBAL_BATCH, PEAK_RATE, WARMUP_STEPS, CharGPT, Text
from spotrun.weighting import mean_over_ranks

OUT, KIND, DTYPE, STEPS = Path(sys.argv[1]), sys.argv[2], getattr(torch, sys.argv[3]), int(sys.argv[4])
LIMIT = OUT.with_suffix(".limit")
LOOK_S = 0.02
SAVE_EVERY = 25


def wait_until_allowed(step: int) -> None:
    while LIMIT.exists() and int(LIMIT.read_text() or 0) < step:
        time.sleep(LOOK_S)


def train(job: spotrun.Job) -> None:
    torch.manual_seed(0)
    net = CharGPT().to(job.device, DTYPE)
    model: torch.nn.Module = net
    if KIND == "fsdp":
        for layer in net.layers:
            fully_shard(layer)
        fully_shard(net)
    else:
        model = DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95))
    micro = GLOBAL_BATCH // 3 if KIND == "pieces" else None
    batches = job.batches(Text(), global_batch_size=GLOBAL_BATCH, seed=0, epochs=None, micro_batch_size=micro)
    job.track(model=model, optimizer=optimizer)
    total = torch.zeros((), dtype=DTYPE)
    for inputs, targets in batches:
        step = job.steps + 1
        if step > STEPS:
            break
        with batches.accumulate(model):
            logits = model(inputs.to(job.device))
            loss = F.cross_entropy(logits.flatten(0, 1), targets.to(job.device).flatten())
            job.scale(loss).backward()  # type: ignore[no-untyped-call]
        total += loss.detach().cpu() * batches.weight
        if not batches.is_last_micro:
            continue
        warm = min(1.0, step / WARMUP_STEPS)
        optimizer.param_groups[0]["lr"] = PEAK_RATE * warm * (0.1 + 0.9 * math.exp(-step / 1000))
        optimizer.step()
        optimizer.zero_grad()
        mean = mean_over_ranks(total).item()
        total.zero_()
        if job.rank == 0:
            line = {"what": "step", "step": step, "loss": mean, "world": job.world_size, "round": job.round}
            with OUT.open("ab", buffering=0) as file:
                file.write(json.dumps(line).encode() + b"\n")
            with job.busy():
                wait_until_allowed(step)
        job.step(loss=loss)


if __name__ == "__main__":
    torch.set_num_threads(1)
    spotrun.run(
        train,
        checkpoint_dir=OUT.with_suffix(".checkpoints"),
        audit_dir=OUT.with_suffix(".audit"),
        save_every=f"{SAVE_EVERY}steps",
    )
