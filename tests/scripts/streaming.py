"""A job over a loader that resumes by itself; run by tests.ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from spotrun.api import Job, Options
from spotrun.errors import DataError
from spotrun.link import Place
from spotrun.memory import Memory, PrivateShelf
from spotrun.streams import ResumableLoader


class OnePosition:
    """As MosaicML's: one position for all ranks, of which each takes its part."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.position = 0

    def __iter__(self) -> Iterator[list[int]]:
        while self.position < 48:
            samples = range(self.position, self.position + 12)
            self.position += 12
            yield list(samples)[self.rank :: self.world]

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "seed": torch.tensor([7])}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.position = state["position"]


def loader(kind: str, rank: int, world: int) -> ResumableLoader:
    if kind == "one-position":
        return OnePosition(rank, world)
    from torchdata.stateful_dataloader import StatefulDataLoader

    made: ResumableLoader = StatefulDataLoader(list(range(rank, 48, world)), batch_size=4, num_workers=1)
    return made


def train(rank: int, world: int, directory: Path, arguments: dict[str, Any]) -> Any:
    """What was seen by this rank in `steps` steps, or the error."""
    options = Options(checkpoint_dir=directory / "checkpoints", save_every="1000steps")
    job = Job(Place(rank, rank, world, world, 1, "streams"), None, Memory(PrivateShelf(), rank), options)
    kind = arguments["kind"]
    stream = job.stream(loader(kind, rank, world), elastic=kind == "one-position")
    try:
        job.track(model=torch.nn.Linear(1, 1))
    except DataError as error:
        return str(error)
    seen = []
    for batch in stream:
        seen.append([int(sample) for sample in batch])
        job.step()
        if len(seen) == arguments["steps"]:
            break
    job.finish()
    return seen
