"""Trains for a few steps on two ranks of DDP, or on one; rank 0 prints by how much its memory has grown at its peak."""

from __future__ import annotations

import resource
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

WIDTH, LAYERS, BATCH = 1024, 16, 64


def make() -> tuple[torch.nn.Module, tuple[torch.Tensor]]:
    layers = [torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU()) for _ in range(LAYERS)]
    return torch.nn.Sequential(*layers), (torch.randn(BATCH, WIDTH),)


def steps(model: torch.nn.Module, inputs: tuple[torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    for _ in range(3):
        model(*inputs).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(rank: int, world: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    small = torch.nn.Linear(8, 8)  # so that libraries are loaded before it is measured
    wrapped = DistributedDataParallel(small) if world > 1 else small
    steps(wrapped, (torch.randn(4, 8),), torch.optim.AdamW(small.parameters()))
    before = peak_bytes()
    model, inputs = make()
    trained = DistributedDataParallel(model) if world > 1 else model
    steps(trained, inputs, torch.optim.AdamW(model.parameters()))
    if rank == 0:
        sys.stdout.write(f"{peak_bytes() - before}\n")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
