"""A script that runs from top to bottom, without a function to hand over: `spotrun.init()` in place of `spotrun.run`.

    python plain.py                                       # one process, no launcher
    spotrun --standalone --nproc-per-node=2 plain.py      # two workers

When nodes come or go, such a script saves the agreed step and is started anew; with `spotrun.run` the process stays.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

import spotrun

parser = argparse.ArgumentParser(description="Fit the product of two numbers.")
parser.add_argument("--epochs", type=int, default=2, help="in all, those of earlier starts included")
parser.add_argument("--checkpoints", default="plain-checkpoints", help="a folder, or a URL such as s3://bucket/run")
options = parser.parse_args()

torch.set_num_threads(1)
job = spotrun.init(checkpoint_dir=options.checkpoints, save_every="10steps")

torch.manual_seed(0)
pairs = torch.rand(640, 2) * 2 - 1
net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1)).to(job.device)
model = DistributedDataParallel(net)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
batches = job.batches(
    TensorDataset(pairs, pairs.prod(1, keepdim=True)), global_batch_size=32, seed=0, epochs=options.epochs
)
if job.track(model=model, optimizer=optimizer) and job.rank == 0:
    print(f"goes on after step {job.steps}", flush=True)

for pair, product in batches:
    loss = nn.functional.mse_loss(model(pair.to(job.device)), product.to(job.device))
    job.scale(loss).backward()
    optimizer.step()
    optimizer.zero_grad()
    job.step(loss=loss)
    if job.rank == 0 and job.steps % 10 == 0:
        print(f"step {job.steps:4d}  loss {loss.item():.4f}  workers {job.world_size}", flush=True)

job.finish()  # saves the end, and waits for it
dist.destroy_process_group()
