"""A training script with a mistake in it: user_errors.py CHECKPOINT_DIR fits|changed|twice|sharded|plain-changed."""

from __future__ import annotations

import sys

import torch
from torch.distributed.fsdp import fully_shard

import spotrun

DIRECTORY, MISTAKE = sys.argv[1:]


def train(job: spotrun.Job) -> None:
    net = torch.nn.Linear(4, 2 if "changed" in MISTAKE else 1)
    model = torch.nn.Sequential(net, torch.nn.Tanh()) if "changed" in MISTAKE else net
    if MISTAKE == "sharded":
        fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    job.track(model=model, optimizer=optimizer)
    if MISTAKE == "twice":
        job.track(model=model)
    job.step()


if __name__ == "__main__":
    directory = None if MISTAKE == "sharded" else DIRECTORY
    if MISTAKE.startswith("plain"):
        train(spotrun.init(checkpoint_dir=directory))
    else:
        spotrun.run(train, checkpoint_dir=directory)
