"""Streams that resume by themselves, handed to a job: torchdata's StatefulDataLoader, MosaicML's StreamingDataLoader.

    stream = job.stream(StatefulDataLoader(...))
    job.track(...)
    for epoch in range(stream.epoch, 3):
        for batch in stream:
            ...
            job.step()                               # commits every batch handed out so far

What is exact is what the library's own `state_dict` keeps: torchdata's belongs to one rank of one world size, so it
resumes exactly at that size and is refused at any other; MosaicML's is one position for all ranks, so `elastic=True`
lets it resume at another size, with the constraints that the library names. (torchdata 0.11 with a shuffling sampler
and no workers resumes the pass exactly, and shuffles later ones otherwise than without the interruption.) `Batches`
has none of these limits.
"""

from __future__ import annotations

import base64
import copy
import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from spotrun.errors import DataError

if TYPE_CHECKING:
    import torch


def pack(state: dict[str, Any]) -> str:
    """A stream's state as text, for JSON: what libraries keep may hold tensors."""
    import torch

    packed = io.BytesIO()
    torch.save(state, packed)
    return base64.b64encode(packed.getvalue()).decode("ascii")


def unpack(text: str) -> dict[str, Any]:
    import torch

    state: dict[str, Any] = torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)
    return state


class ResumableLoader(Protocol):
    """A loader whose state after a batch was handed out leads to the batch after it, prefetched ones included."""

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any] | None: ...

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


class Stream:
    """Counts committed batches of `loader` and keeps the state that goes with them.

    `elastic`: the loader's state is equal on all ranks and valid at any world size. Raises DataError where the loader
    cannot resume. Its state is the library's, and may hold tensors.
    """

    weight = 1.0  # every rank's batches count the same
    is_last_micro = True

    def __init__(self, loader: ResumableLoader, *, rank: int = 0, world_size: int = 1, elastic: bool = False) -> None:
        missing = [name for name in ("state_dict", "load_state_dict", "__iter__") if not hasattr(loader, name)]
        if missing:
            raise DataError(
                f"{type(loader).__name__} cannot resume, it has no {' and no '.join(missing)}: use torchdata's "
                f"StatefulDataLoader in place of torch's DataLoader, or job.batches for a dataset with indices"
            )
        self.loader = loader
        self.rank = rank
        self.world_size = world_size
        self.elastic = elastic
        self.epoch = 0
        self.steps = 0  # committed since the job began
        self._committed: dict[str, Any] | None = None  # None: not begun
        self._committed_epoch = 0
        self._stale = False  # the loader stands elsewhere than at the committed state

    def __iter__(self) -> Iterator[Any]:
        """The rest of the present pass over the loader; after its end `epoch` is one higher.

        After a restore from the last batch of a pass the rest is empty.
        """
        if self._committed is None:  # the start, to come back to: the first pass may draw from a generator
            self._committed = copy.deepcopy(self.loader.state_dict())
        elif self._stale:
            self.loader.load_state_dict(copy.deepcopy(self._committed))
            if self._committed_epoch < self.epoch:
                for _ in self.loader:  # nothing but the end of the pass before, whose last batch was committed
                    pass
        self._stale = False
        for batch in self.loader:
            # Until the step is committed, a loop that is left here begins again before this batch.
            self._stale = True
            yield batch
            del batch
        self.epoch += 1
        self._stale = False

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss

    def advance(self) -> None:
        """Commit every batch handed out so far; `job.step()` calls it."""
        # A copy: libraries return dictionaries that they go on changing.
        self._committed = copy.deepcopy(self.loader.state_dict())
        self._committed_epoch = self.epoch
        self.steps += 1

    def set_world(self, rank: int, world_size: int) -> None:
        """Take another place. Raises DataError where a loader that is not elastic would have to change."""
        if (rank, world_size) != (self.rank, self.world_size):
            self._refuse_unless_fits(rank, world_size, self.rank, self.world_size)
        self.rank, self.world_size = rank, world_size

    def state_dict(self) -> dict[str, Any]:
        """Of this rank, as of the last committed batch. `elastic` tells whether one rank's state serves all."""
        return {
            "v": 1,
            "epoch": self._committed_epoch,
            "steps": self.steps,
            "rank": self.rank,
            "world_size": self.world_size,
            "elastic": self.elastic,
            "state": self._committed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batches that `state` counts. Raises DataError where it belongs to another rank or world."""
        if not isinstance(state, Mapping) or state.get("v") != 1 or "state" not in state:
            raise DataError(f"this is not the state of a stream that this version can read: {state!r:.200}")
        if (state["rank"], state["world_size"]) != (self.rank, self.world_size):
            self._refuse_unless_fits(self.rank, self.world_size, state["rank"], state["world_size"])
        self.epoch = self._committed_epoch = state["epoch"]
        self.steps = state["steps"]
        self._committed = state["state"]
        self._stale = True

    def _refuse_unless_fits(self, rank: int, world_size: int, old_rank: int, old_world_size: int) -> None:
        if not self.elastic:
            raise DataError(
                f"the state of {type(self.loader).__name__} belongs to rank {old_rank} of {old_world_size} and cannot "
                f"go on as rank {rank} of {world_size}: job.batches can; or go on with {old_world_size} ranks"
            )
