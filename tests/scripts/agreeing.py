"""A rank that steps and wishes, for test_consensus: what it was told at the end of each step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from spotrun.consensus import Consensus


def wish(rank: int, world: int, directory: Path, arguments: dict[str, Any]) -> list[Any]:
    """`wishes`: [rank, step from which on it wishes, what]; `step_s` and `every` of each rank."""
    consensus = Consensus(dist.new_group(backend="gloo"))
    told: list[Any] = []
    granted: frozenset[str] = frozenset()
    for step in range(1, arguments["steps"] + 1):
        dist.all_reduce(torch.zeros(1))  # the training
        wishes = {what for who, since, what in arguments["wishes"] if who == rank and step >= since} - granted
        found, every = consensus.exchange(wishes, arguments["every"][rank], arguments["step_s"][rank])
        told.append([None if found is None else sorted(found), every])
        granted |= found or frozenset()
        if "leave" in granted:
            break
    dist.barrier()
    return told
