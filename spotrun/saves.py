"""One round's checkpoints, as a Job begins them, waits for them and learns from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spotrun.checkpoint_policy import Every
from spotrun.errors import CheckpointError
from spotrun.kept import Kept
from spotrun.link import Link, Place
from spotrun.save_history import SaveHistory

if TYPE_CHECKING:
    import torch.distributed as dist

    from spotrun.checkpoint import SaveHandle, Saver, Storage

ALONE_ENV = "SPOTRUN_ALONE"  # what `spotrun --standalone` sets for its workers


@dataclass(frozen=True, slots=True)
class Captured:
    """What a checkpoint holds of one step: `extra` is equal on all ranks, `own` is this rank's."""

    state: Mapping[str, Any]
    extra: dict[str, Any]
    own: Any


class Saves:
    """`capture` takes the state as it is now. Without `open` there is no directory, and nothing is ever saved."""

    def __init__(self, place: Place, link: Link | None, every: Every, capture: Callable[[], Captured]) -> None:
        self._place = place
        self._link = link
        self._every = every
        self._capture = capture
        self.history = SaveHistory()
        self.storage: Storage | None = None
        self.saved_step = -1  # of the last save that was begun, or that was restored; equal on all ranks
        self._saver: Saver | None = None
        self._kept: Kept | None = None
        self._saving: SaveHandle | None = None

    @property
    def possible(self) -> bool:
        return self._saver is not None

    def open(
        self,
        directory: str | os.PathLike[str],
        group: dist.ProcessGroup | None,
        *,
        keep_last: int | None,
        keep_every: int | None,
    ) -> None:
        """Raises CheckpointError where it cannot be used, or is another job's."""
        from spotrun.checkpoint import Saver, open_storage
        from spotrun.checkpoint.region import check_region

        self.storage = open_storage(directory)
        region = check_region(self.storage)
        if self._link is not None:
            self._kept = Kept(self._link, self.storage.url, region, self._place.round)
        if self._place.rank == 0:
            self._claim(self.storage)
            if self._kept is not None:
                self._kept.opened()
        self._saver = Saver(
            self.storage,
            run_id=self._place.run_id,
            group=group,
            fence=self._fence,
            record=self._record,
            deleted=self._forget,
            keep_last=keep_last,
            keep_every=keep_every,
        )

    # -- when

    def due_by_steps(self, step: int) -> bool:
        """All ranks count alike."""
        return self._every.unit == "steps" and self.possible and self._is_due(step)

    def due(self, step: int) -> bool:
        """Clocks differ: rank 0 decides for all, by the consensus."""
        if self._place.rank != 0 or not self.possible:
            return False
        return self.history.owed or (self._every.unit != "steps" and self._is_due(step))

    def _is_due(self, step: int) -> bool:
        self.learn_cost()
        return self._every.due(*self.history.since(step), self.history.cost, self.history.losses)

    # -- saving

    def begin(self, step: int) -> SaveHandle | None:
        """Save the state as it is; None where there is no directory, or an earlier save is still under way."""
        if self._saver is None:
            return None
        self.learn_cost()
        self.history.owed = False
        now = self._capture()
        handle = self._saver.save(now.state, step=step, round=self._place.round, extra=now.extra, rank_state=now.own)
        # Where an earlier save is still under way, this one is left out, and the next is due after the interval.
        self.history.begun(step)
        if handle is not None:
            self._saving, self.saved_step = handle, step
        return handle

    def finish(self, step: int, within_s: float) -> tuple[str, bool]:
        """Save the last step of all and wait for it: why it could not be, or "", and whether rank 0 went half-way."""
        self.history.parting = True
        handle = self.begin(step)
        if handle is None:
            return "an earlier save is still under way", False
        saved = handle.give_up(max(0.0, within_s))
        self.learn_cost()
        return ("", False) if saved else (handle.failure, handle.orphaned)

    def finish_alone(self, kept: Captured, within_s: float) -> bool:
        """Save a step without the other ranks: some are gone, before the save of all or half-way through it."""
        if self.storage is None or within_s <= 0:
            return False
        from spotrun.checkpoint import Saver

        saver = Saver(self.storage, run_id=self._place.run_id, fence=self._fence, record=self._record)
        step = int(kept.extra["step"])
        handle = saver.save(kept.state, step=step, round=self._place.round, extra=kept.extra, rank_state=kept.own)
        return handle is not None and handle.give_up(within_s)

    def wait(self, within_s: float) -> None:
        """For the save under way, which is given up then."""
        if self._saving is not None:
            self._saving.give_up(max(0.0, within_s))
            self.learn_cost()
            self._saving = None

    def restored(self, step: int) -> None:
        """The state is that of a checkpoint."""
        self.saved_step = self.history.durable_step = step
        self.history.begun(step)

    def learn_cost(self) -> None:
        handle = self._saving
        if handle is not None and handle.done():
            self._saving = None
            if handle.durable_s is not None:
                cost = self.history.cost
                self.history.cost = cost.measured(handle.blocked_s, handle.durable_s, size_bytes=handle.staged_bytes)
                self.history.durable_step = handle.step

    def needs_s(self) -> tuple[float, float]:
        """What a save takes here, and what the one under way still takes; -1: not known, and none."""
        self.learn_cost()
        durable_s = self.history.cost.durable_s
        pending_s = -1.0 if self._saving is None else max(0.0, (durable_s or 0.0) - self._saving.age_s)
        return (-1.0 if durable_s is None else durable_s), pending_s

    def close(self) -> None:
        if self._saver is not None:
            self._saver.close(0.0)
        if self._kept is not None:
            self._kept.close()

    # -- what the agent says to it

    def _claim(self, storage: Storage) -> None:
        from spotrun.checkpoint import claim

        # A run of this machine alone has another id each time; only jobs of several nodes have one that lasts.
        alone = self._link is None or os.environ.get(ALONE_ENV) == "1"
        try:
            claim(storage, self._place.run_id, take_over=alone)
        except CheckpointError:
            raise
        except Exception as error:  # whatever the storage's library raises
            why = f"checkpoint_dir={storage.url} cannot be used: {type(error).__name__}: {error}"
            raise CheckpointError(why, retry=True) from error

    def _fence(self, manifest: Any) -> None:
        place = self._place
        if self._link is not None and not self._link.ask("fence", place.round, manifest.step, manifest.name):
            raise CheckpointError(f"round {place.round} is over: step {manifest.step} must not be published any more")

    def _record(self, manifest: Any) -> None:
        if self._link is not None:
            self._link.ask("record", self._place.round, manifest.step, manifest.name)
        if self._kept is not None:
            self._kept.saved(manifest.size_bytes)

    def _forget(self, name: str) -> None:
        from spotrun.checkpoint.manifest import parse_name

        parsed = parse_name(name)
        if self._link is not None and parsed is not None:
            self._link.forget(parsed[0], name)
