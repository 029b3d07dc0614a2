"""Trains for a few steps alone, then on two ranks of DDP; rank 0 prints by how much each grew its memory at the peak.

The allocator is told to give back at once what is freed (see ALLOCATOR): then what the process has is what it uses.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

WIDTH, LAYERS, BATCH = 1024, 16, 64
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}  # each tensor a mapping of its own


def make() -> tuple[torch.nn.Module, tuple[torch.Tensor]]:
    layers = [torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU()) for _ in range(LAYERS)]
    return torch.nn.Sequential(*layers), (torch.randn(BATCH, WIDTH),)


def steps(model: torch.nn.Module, inputs: tuple[torch.Tensor], ranks: int) -> None:
    trained = DistributedDataParallel(model) if ranks > 1 else model
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        trained(*inputs).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def growth_bytes(ranks: int) -> int:
    """Not by getrusage, whose peak is inherited from the process that started this one."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = _bytes("VmRSS")
    steps(*make(), ranks)
    return _bytes("VmHWM") - before


def _bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main(rank: int, file: str) -> None:
    assert ALLOCATOR.items() <= os.environ.items()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    small = torch.nn.Linear(8, 8), (torch.randn(4, 8),)
    for ranks in (1, 2):
        steps(*small, ranks)  # so that libraries are loaded before it is measured
        found = growth_bytes(ranks)
        if rank == 0:
            sys.stdout.write(f"{found}\n")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
