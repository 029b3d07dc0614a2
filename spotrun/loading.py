"""What torch's DataLoader runs for exact batches: samples fetched by (epoch, number), and collated with their numbers.

The numbers travel with the samples through the loader's workers, so that an audit records what was fetched and not
what was planned.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from spotrun.randomness import seeded

Key = tuple[int, int]  # (epoch, sample)


class Samples:
    """A map-style dataset over `dataset` that is indexed by keys; `seed` is set where sample randomness is seeded."""

    def __init__(self, dataset: Any, seed: int | None = None) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> tuple[int, Any]:
        epoch, index = key
        if self.seed is None:
            return index, self.dataset[index]
        with seeded(self.seed, epoch, index):
            return index, self.dataset[index]

    def __getitems__(self, keys: Sequence[Key]) -> list[tuple[int, Any]]:
        fetch_many = getattr(self.dataset, "__getitems__", None)
        if self.seed is not None or fetch_many is None:
            return [self[key] for key in keys]
        indices = [index for _, index in keys]
        return list(zip(indices, fetch_many(indices), strict=True))


class Collate:
    """The user's collate function, or torch's, with the numbers of the samples beside its result."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any] | None = None) -> None:
        self._collate_fn = collate_fn

    def __call__(self, items: list[tuple[int, Any]]) -> tuple[list[int], Any]:
        if self._collate_fn is None:
            from torch.utils.data import default_collate as collate
        else:
            collate = self._collate_fn
        return [index for index, _ in items], collate([sample for _, sample in items])


@contextmanager
def forking_safely(forks: bool) -> Iterator[None]:
    """Around the start of loader workers, which are forked from a process that may have left a process group before.

    A group that is garbage in a cycle (FSDP's are) would be destroyed by the collector of the child, where its threads
    do not exist: the child crashes or hangs. So garbage is destroyed here first, and the child inherits the rest
    frozen.
    """
    if not forks:
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
