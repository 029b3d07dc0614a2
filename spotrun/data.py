"""Exact batches: every sample once an epoch, in an order that no change of world size touches.

    for batch in batches:                            # goes on where the last committed step ended
        batches.scale(loss_fn(model(batch))).backward()
        optimizer.step()
        job.step()                                   # commits the step; only now does the position move

What a position, a slice and a weight are is decided in `spotrun.slices`; this file hands them to torch's DataLoader.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from spotrun.errors import DataError
from spotrun.loading import Collate, Key, Samples, forking_safely
from spotrun.permutation import Ids, Permutation
from spotrun.randomness import seed_of
from spotrun.slices import Plan, Position, plan_step, steps_per_epoch
from spotrun.weighting import gradient_sync

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader


class MapDataset(Protocol):
    """What `Batches` needs: torch's map-style datasets, Hugging Face datasets, lists and arrays have it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


_OURS = frozenset({"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last", "generator", "in_order"})
_FIXED = ("n", "global_batch_size", "seed", "shuffle", "drop_last")  # what gives a position its meaning


class Batches:
    """Iterates over this rank's part of each global batch of `dataset`, from its committed position on.

    `epochs` is the total to train, restarts included; None goes on for ever. Each item is what `collate_fn` makes of
    this rank's samples, or of a part of them where they are more than `micro_batch_size`. A rank without samples of
    its own (more ranks than samples) gets one sample of the step with `weight` 0, so that it takes part in the
    collectives; that sample is not counted, but layers that keep batch statistics see it.

    With `seed_samples` the global generators of python, numpy and torch are seeded by (seed, epoch, sample) while
    `dataset[sample]` runs, so random augmentation depends on neither world size, workers nor restarts (it costs about
    0.1 ms a sample). Other keywords go to torch's DataLoader. Raises DataError where exact data are impossible.
    """

    def __init__(
        self,
        dataset: MapDataset,
        *,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        epochs: int | None = 1,
        micro_batch_size: int | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        seed_samples: bool = False,
        **loader_options: Any,
    ) -> None:
        self.n = _length(dataset)
        for name, value in (("global_batch_size", global_batch_size), ("micro_batch_size", micro_batch_size)):
            if value is not None and value < 1:
                raise DataError(f"{name} is {value}: it must be at least 1")
        if drop_last and self.n < global_batch_size:
            raise DataError(
                f"no batch is left: the dataset has {self.n} samples, global_batch_size is {global_batch_size}, and "
                f"drop_last=True drops what does not fill a batch"
            )
        if taken := sorted(_OURS & loader_options.keys()):
            raise DataError(f"{', '.join(taken)}: exact batches set this themselves; use the arguments of job.batches")
        self.dataset = dataset
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.epochs = epochs
        self.micro_batch_size = micro_batch_size
        if num_workers > 0:
            loader_options.setdefault("persistent_workers", True)
        self._loader_options = dict(loader_options, num_workers=num_workers, pin_memory=pin_memory)
        self._collate_fn = collate_fn
        self._seed_samples = seed_samples
        self._loader: DataLoader[Any] | None = None
        self._order: tuple[int, Permutation] | None = None
        self._position = Position()
        self._plan: Plan | None = None  # of the batch that is out and not yet committed
        self._ids: list[int] = []  # of the last micro batch
        self._step_ids: list[int] = []  # of all micro batches of the step so far
        self._until: int | None = None  # the epoch at whose start the present loop ends, within each_epoch()
        # Told of each step's samples before the step can take effect: a rank that dies in it has contributed already.
        self.on_step: Callable[[int, int, list[int]], None] | None = None
        self.waited_s = 0.0  # in all, for the loader
        self._exhausted = False
        self._version = 0  # of world and position: a loop that runs over a change plans anew
        self.set_world(rank, world_size)

    # Where it stands

    def __len__(self) -> int:
        """The steps of one epoch."""
        return steps_per_epoch(self.n, self.global_batch_size, self.drop_last)

    @property
    def epoch(self) -> int:
        """The epoch of the next step to commit."""
        return self._position.epoch

    @property
    def step(self) -> int:
        """The next step to commit, counted from 0 in each epoch."""
        return self._position.step

    @property
    def global_step(self) -> int:
        """The steps committed since the first epoch began."""
        return self.epoch * len(self) + self.step

    @property
    def samples(self) -> int:
        """The samples of the steps committed since the first epoch began, of all ranks."""
        an_epoch = len(self) * self.global_batch_size if self.drop_last else self.n
        return self.epoch * an_epoch + self.step * self.global_batch_size

    @property
    def done(self) -> bool:
        """Whether all epochs are committed."""
        return self.epochs is not None and self.epoch >= self.epochs

    # The batch that is out

    @property
    def weight(self) -> float:
        """What the mean loss of the last batch is multiplied by; see `spotrun.slices.plan_step`."""
        return self._out().weight

    @property
    def is_last_micro(self) -> bool:
        """Whether the last batch completes its step: now `optimizer.step()` and `job.step()` are due."""
        return self._out().is_last_micro

    @property
    def sample_ids(self) -> list[int]:
        """The samples that the last batch holds, as the loader fetched them; [] for a filler."""
        return list(self._ids)

    @property
    def step_ids(self) -> list[int]:
        """The samples of this rank in all micro batches so far of the step that is out; what an audit records."""
        return list(self._step_ids)

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """`loss`, a mean over the last batch, weighted so that DDP's and FSDP's gradient is the global mean's."""
        return loss * self.weight

    def accumulate(self, *models: torch.nn.Module) -> AbstractContextManager[None]:
        """Around forward and backward of a micro batch: gradients are reduced over ranks only with the last one."""
        return gradient_sync(*models, last=self.is_last_micro)

    # Iterating

    def __iter__(self) -> Iterator[Any]:
        if self.done and self._exhausted:
            raise DataError(
                f"all {self.epochs} epochs are done and this loop would do nothing: pass the total as epochs=..., and "
                f"loop over batches.each_epoch() for work between epochs"
            )
        self._plan = None
        version = -1
        while version != self._version:
            version = self._version
            yield from self._iterate(version)
        self._exhausted = self.done

    def each_epoch(self) -> Iterator[int]:
        """The epochs still to train; a loop over the batches inside ends with the epoch.

        An epoch that is left early by `break` is gone on with in the next turn.
        """
        try:
            while not self.done:
                self._until = self.epoch + 1
                yield self.epoch
        finally:
            self._until = None

    def advance(self) -> None:
        """Commit the step that is out; `job.step()` calls it. Raises DataError unless its last micro batch is out."""
        plan = self._out()
        if not plan.is_last_micro:
            raise DataError(
                f"step {plan.at.step} of epoch {plan.at.epoch} is not complete: after micro batch {plan.micro} others "
                f"follow; call job.step() only where batches.is_last_micro is true"
            )
        epoch, step = plan.at.epoch, plan.at.step + 1
        self._position = Position(epoch, step) if step < len(self) else Position(epoch + 1, 0)
        self._plan = None

    def set_world(self, rank: int, world_size: int) -> None:
        """Take another place in another world. A batch that is out is handed out again, cut for the new world."""
        if not 0 <= rank < world_size:
            raise DataError(f"rank {rank} does not exist in a world of {world_size}")
        self.rank = rank
        self.world_size = world_size
        self._moved()

    def state_dict(self) -> dict[str, Any]:
        """The committed position and what gives it its meaning: JSON, about 110 bytes, equal on all ranks."""
        fixed = {name: getattr(self, name) for name in _FIXED}
        return {"v": 1, "epoch": self.epoch, "step": self.step, **fixed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position, at any world size. Raises DataError where it belongs to other data or settings."""
        names = {"v", "epoch", "step", *_FIXED}
        if not isinstance(state, Mapping) or state.get("v") != 1 or not names <= state.keys():
            raise DataError(f"this is not a position in a dataset that this version can read: {state!r:.200}")
        for name in _FIXED:
            if state[name] != (here := getattr(self, name)):
                what = "a dataset length" if name == "n" else name
                raise DataError(
                    f"the checkpoint was made with {what} of {state[name]}, here it is {here}: a position means the "
                    f"same samples only where both are equal; use the old value, or start without this checkpoint"
                )
        if not (state["epoch"] >= 0 and 0 <= state["step"] < len(self)):
            raise DataError(
                f"epoch {state['epoch']}, step {state['step']}: an epoch has the steps 0 to {len(self) - 1}"
            )
        self._position = Position(state["epoch"], state["step"])
        self._moved()

    def close(self) -> None:
        """End the loader's worker processes; the next loop starts new ones."""
        self._moved()  # so that a loop that is still open lets go of them too
        self._loader = None

    # Inside

    def _out(self) -> Plan:
        if self._plan is None:
            raise DataError("no batch is out: ask after a batch was handed out and before job.step()")
        return self._plan

    def _moved(self) -> None:
        self._version += 1
        self._plan = None
        self._exhausted = False  # the training function may be entered anew, after its last epoch too

    def _plans(self) -> Iterator[Plan]:
        """This rank's micro batches from the committed position to the end of the present loop."""
        at, ends = self._position, [end for end in (self.epochs, self._until) if end is not None]
        while not ends or at.epoch < min(ends):
            yield from plan_step(at, self.n, self.global_batch_size, self.rank, self.world_size, self.micro_batch_size)
            at = Position(at.epoch, at.step + 1) if at.step + 1 < len(self) else Position(at.epoch + 1, 0)

    def _iterate(self, version: int) -> Iterator[Any]:
        fetched: Iterator[tuple[list[int], Any]] | None = None
        for plan in self._plans():
            if fetched is None:
                options = self._loader_options
                running = self._loader is not None and options.get("persistent_workers", False)
                with forking_safely(options["num_workers"] > 0 and not running):
                    fetched = iter(self._make_loader())
            began_s = time.monotonic()
            ids, batch = next(fetched)
            self.waited_s += time.monotonic() - began_s
            self._plan = plan
            self._ids = ids if plan.count else []
            self._step_ids = self._ids if plan.micro == 0 else self._step_ids + self._ids
            if plan.is_last_micro and self.on_step is not None:
                self.on_step(plan.at.epoch, plan.at.step, self.step_ids)
            yield batch
            del batch  # the loop's own reference would keep it alive while the next one is fetched
            if version != self._version:
                return
            if plan.is_last_micro and self._plan is plan:
                raise DataError(
                    f"step {plan.at.step} of epoch {plan.at.epoch} was handed out and never committed: call job.step() "
                    f"once for each batch (set micro_batch_size to accumulate gradients over several)"
                )

    def _make_loader(self) -> DataLoader[Any]:
        from torch import Generator
        from torch.utils.data import DataLoader

        if self._loader is None:
            samples: Any = Samples(self.dataset, self.seed if self._seed_samples else None)
            # A generator of its own: a loader draws from the global one at each start, so a resumed run would not
            # have the random numbers of the uninterrupted one.
            self._loader = DataLoader(
                samples,
                batch_sampler=_Keys(self),
                collate_fn=Collate(self._collate_fn),
                generator=Generator(),
                **self._loader_options,
            )
        assert self._loader.generator is not None
        self._loader.generator.manual_seed(seed_of(self.seed, self.epoch, self.step, self.rank))
        return self._loader

    def _ids_of(self, plan: Plan) -> Ids:
        positions = np.arange(plan.start, plan.stop)
        if not self.shuffle:
            return positions
        if self._order is None or self._order[0] != plan.at.epoch:
            self._order = plan.at.epoch, Permutation(self.n, (self.seed, plan.at.epoch))
        return self._order[1](positions)


class _Keys:
    """The loader's batch sampler: it runs ahead of the training loop by what the loader prefetches."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[Key]]:
        for plan in self._batches._plans():
            yield [(plan.at.epoch, index) for index in self._batches._ids_of(plan).tolist()]


def _length(dataset: Any) -> int:
    torch_data = sys.modules.get("torch.utils.data")  # not imported: no dataset of its classes exists
    iterable = torch_data is not None and isinstance(dataset, torch_data.IterableDataset)
    if iterable or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise DataError(
            f"{type(dataset).__name__} is a stream, and exact batches need samples with numbers: use a dataset with "
            f"__len__ and __getitem__, or wrap a loader that can resume, such as torchdata's StatefulDataLoader or "
            f"MosaicML's StreamingDataLoader, in job.stream"
        )
    n = len(dataset)
    if n < 1:
        raise DataError(f"the {type(dataset).__name__} is empty")
    return n
