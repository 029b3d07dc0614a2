"""Guess the next character of Python source with DDP: the usual loop, on spotrun's training API.

    python ddp.py                                         # one process, no launcher
    spotrun --standalone --nproc-per-node=2 ddp.py        # two workers

Start it again with more --epochs, on any number of workers, and it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import inspect

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

import spotrun

CONTEXT = 16  # characters seen before the one to guess
SAMPLES = 1280  # 20 steps an epoch


class Characters(Dataset[tuple[Tensor, Tensor]]):
    """Windows of CONTEXT characters and the one after them, from the source of argparse."""

    def __init__(self) -> None:
        text = inspect.getsource(argparse).encode("ascii", "replace")
        self.text = torch.tensor(list(text))

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        window = self.text[index * CONTEXT : (index + 1) * CONTEXT + 1]
        return window[:-1], window[-1]


def train(job: spotrun.Job) -> None:
    """Entered once a round: whatever the number of workers is by then."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Embedding(128, 16), nn.Flatten(), nn.Linear(16 * CONTEXT, 128), nn.ReLU(), nn.Linear(128, 128)
    )
    net.to(job.device)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batches = job.batches(Characters(), global_batch_size=64, seed=0, epochs=options.epochs)
    if job.track(model=model, optimizer=optimizer) and job.rank == 0:
        print(f"goes on after step {job.steps}", flush=True)

    for text, following in batches:
        loss = F.cross_entropy(model(text.to(job.device)), following.to(job.device))
        job.scale(loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        job.step(loss=loss)
        if job.rank == 0 and job.steps % 10 == 0:
            print(f"step {job.steps:4d}  loss {loss.item():.3f}  workers {job.world_size}", flush=True)


parser = argparse.ArgumentParser(description="Guess the next character of Python source with DDP.")
parser.add_argument("--epochs", type=int, default=2, help="in all, those of earlier starts included")
parser.add_argument("--checkpoints", default="ddp-checkpoints", help="a folder, or a URL such as s3://bucket/run")
parser.add_argument("--audit", help="a folder for the record that `spotrun audit` checks")
options = parser.parse_args()

if __name__ == "__main__":
    torch.set_num_threads(1)
    spotrun.run(train, checkpoint_dir=options.checkpoints, audit_dir=options.audit)
