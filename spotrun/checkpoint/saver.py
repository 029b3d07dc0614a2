"""Asynchronous saves: training waits for one copy into host memory, a thread does the rest.

Agreement first: all ranks call `save` after the same step, and one small all_reduce tells whether any of them is still
busy with the save before, so that either all start or none does. A storage that hangs therefore never blocks training:
`save` then returns None, with a warning, until the hanging call comes back.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan

from spotrun import events
from spotrun.checkpoint.commit import Commit, Hook, Request
from spotrun.checkpoint.manifest import Manifest
from spotrun.checkpoint.peers import Alone, GroupPeers, PeerLost, Peers
from spotrun.checkpoint.plan import Piece, divide, fingerprint, local_plan
from spotrun.checkpoint.pruning import prune
from spotrun.checkpoint.staging import HostBuffer, PackedValues, Staged, room_for, stage
from spotrun.checkpoint.storage import Storage
from spotrun.checkpoint.writer import Shard, write_shard
from spotrun.errors import CheckpointError


class SaveHandle:
    """One save under way. The figures are this rank's; they feed the checkpoint policy."""

    def __init__(self, step: int, round: int) -> None:
        self.step = step
        self.round = round
        self.staged_bytes = 0
        self.blocked_s = 0.0  # how long training waited: agreement, plan and copy
        self.written_s: float | None = None  # from the call until this rank's shard was durable
        self.durable_s: float | None = None  # from the call until the manifest was published
        self.stage = "staging"  # then "writing", "committing", "done"; for people
        self._started_s = time.monotonic()
        self._future: Future[Manifest] = Future()
        self._given_up = threading.Event()

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._started_s

    def done(self) -> bool:
        """Published, failed or given up."""
        return self._future.done()

    def result(self, timeout_s: float | None = None) -> Manifest:
        """The published checkpoint; raises CheckpointError if it failed, or is not published in time (it goes on)."""
        try:
            return self._future.result(timeout_s)
        except NotInTime:
            raise CheckpointError(
                f"step {self.step} is not saved after {self.age_s:.1f} s: still {self.stage}"
            ) from None

    def give_up(self, deadline_s: float) -> bool:
        """Wait up to `deadline_s` for the checkpoint; if it is not whole then, stop it. Whether it is published.

        After False this rank writes no more of it, except for what one hanging call into the storage does. It may still
        be published if this rank's part was durable: rank 0 may be at it.
        """
        try:
            self._future.result(deadline_s)
            return True
        except NotInTime:
            self._given_up.set()
            self._settle(
                CheckpointError(
                    f"the save of step {self.step} was given up after {self.age_s:.1f} s while {self.stage}"
                )
            )
        except CheckpointError:
            return False
        return self._future.exception() is None  # it may have ended just now

    @property
    def failure(self) -> str:
        """Why there is no checkpoint; nothing where there is one, or not yet."""
        error = self._future.exception() if self._future.done() else None
        return str(error) if error is not None else ""

    @property
    def orphaned(self) -> bool:
        """Whether it failed because rank 0, which publishes, went half-way."""
        return self._future.done() and isinstance(getattr(self._future.exception(), "__cause__", None), PeerLost)

    def _settle(self, outcome: Manifest | Exception) -> None:
        if self._future.done():
            return
        self.stage = "done"
        try:
            if isinstance(outcome, Manifest):
                self._future.set_result(outcome)
            else:
                self._future.set_exception(outcome)
        except Exception as error:  # noqa: BLE001 - settled by another thread in between
            logging.getLogger("spotrun").debug("save of step %d is settled already: %s", self.step, error)

    def _check(self) -> None:
        if self._given_up.is_set():
            raise CheckpointError(f"the save of step {self.step} was given up")


class Saver:
    """Saves of one job in one round of its life; every rank makes one, with the same arguments.

    group: a gloo group of all ranks that nothing else uses (`dist.new_group(backend="gloo")`), None for one process.
    fence: called on rank 0 when all shards are durable, before the manifest is published; raises to refuse.
    record: called on rank 0 after that; if it raises, the checkpoint stays and a warning is logged.
    deleted: called on rank 0 with the name of each checkpoint that retention deletes.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        run_id: str,
        group: dist.ProcessGroup | None = None,
        fence: Hook | None = None,
        record: Hook | None = None,
        deleted: Callable[[str], None] | None = None,
        keep_last: int | None = None,
        keep_every: int | None = None,
    ) -> None:
        self._storage = storage
        self._run_id = run_id
        self._group = group
        self._peers: Peers = GroupPeers(group) if group is not None else Alone()
        self._commit = Commit(storage, self._peers, fence, record)
        self._deleted = deleted
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._buffer = HostBuffer()
        self._packed = PackedValues()
        self._planned: tuple[Any, ...] | None = None
        self._pieces: tuple[Piece, ...] = ()
        self._metadata = Metadata({})
        self._working = False
        self._pruning: threading.Thread | None = None
        self._handle: SaveHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether this rank's thread is still at a save, one that was given up included."""
        return self._working

    def prepare(self, state_dict: Mapping[str, Any]) -> None:
        """Plan and allocate before training starts, so that the first save costs no more than the others."""
        planner, mine = local_plan(state_dict)
        if self._agree(self._planned != fingerprint(planner), 0, 0):
            self._plan(planner, mine)
            self._buffer.reserve(room_for(self._pieces), pinned=_on_cuda(planner))

    def save(
        self,
        state_dict: Mapping[str, Any],
        *,
        step: int,
        round: int = 0,
        extra: Mapping[str, Any] | None = None,
        rank_state: Any = None,
    ) -> SaveHandle | None:
        """Start a save; all ranks call it after the same step. None: a save is still under way on some rank.

        state_dict: nested dicts of tensors, DTensors and values that torch.load(weights_only=True) restores.
        extra: JSON, the same for all (rank 0's is kept). rank_state: JSON of this rank's own, such as its RNG state.
        Returns when the state is copied. Raises CheckpointError if it cannot be copied.
        """
        handle = SaveHandle(step, round)
        planner, mine = local_plan(state_dict)
        replan = self._planned != fingerprint(planner)
        agreed = self._agree(replan, step, round)
        if agreed is None:
            age_s = self._handle.age_s if self._handle is not None else 0.0
            events.emit(
                "save_skipped",
                f"step {step} is not saved: an earlier save is under way for {age_s:.1f} s"
                if self._peers.rank == 0
                else "",
                level=logging.WARNING,
                step=step,
                round=round,
            )
            return None
        if agreed:
            self._plan(planner, mine)
        failure: Exception | None = None
        staged: list[Staged] = []
        try:
            _check_json(rank_state)
            staged = stage(planner, self._pieces, self._buffer, self._packed)
        except Exception as error:  # noqa: BLE001 - the other ranks must hear of it first
            failure = error
        handle.staged_bytes = sum(_size(one) for one in staged)
        handle.blocked_s = handle.age_s
        handle.stage = "writing"
        request = Request(step, round, self._run_id, dict(extra or {}), rank_state if failure is None else None)
        self._handle = handle
        self._working = True
        threading.Thread(
            target=self._run, args=(handle, request, staged, failure), name=f"save-{step}", daemon=True
        ).start()
        if failure is not None:
            raise (
                failure
                if isinstance(failure, CheckpointError)
                else CheckpointError(f"step {step} could not be copied for saving: {type(failure).__name__}: {failure}")
            ) from failure
        return handle

    def close(self, deadline_s: float) -> bool:
        """Wait for the save under way, then give it up. Whether the last one, if any, is published."""
        end_s = time.monotonic() + deadline_s
        published = self._handle is None or self._handle.give_up(deadline_s)
        if self._pruning is not None:
            self._pruning.join(max(0.0, end_s - time.monotonic()))
        return published

    def _agree(self, replan: bool, step: int, round: int) -> bool | None:
        """Whether to plan anew; None if a rank is busy. Raises CheckpointError if the ranks are not at one step."""
        votes = torch.tensor([int(self.busy), int(replan), step, -step, round, -round])
        if self._group is not None:
            dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group)
        busy, anew, last, first, newest, oldest = votes.tolist()
        if last != -first or newest != -oldest:
            raise CheckpointError(
                f"the ranks save different steps: {-first} to {last}, rounds {-oldest} to {newest}; "
                "all ranks must call save after the same step"
            )
        return None if busy else bool(anew)

    def _plan(self, planner: DefaultSavePlanner, mine: SavePlan) -> None:
        """Agree on who writes what; blocks, once for each shape of the state."""
        self._planned = None
        if self._group is None:
            plan = divide([mine])
            self._pieces, self._metadata = plan.pieces[0], plan.metadata
        else:
            gathered: list[Any] | None = [None] * self._peers.size if self._peers.rank == 0 else None
            dist.gather_object(mine, gathered, group=self._group, group_dst=0)
            shares: list[Any] = []
            if gathered is not None:
                plan = divide(gathered)
                shares, self._metadata = list(plan.pieces), plan.metadata
            share: list[Any] = [None]
            dist.scatter_object_list(share, shares or None, group=self._group, group_src=0)
            self._pieces = share[0]
        self._planned = fingerprint(planner)

    def _run(self, handle: SaveHandle, request: Request, staged: list[Staged], failure: Exception | None) -> None:
        def write(directory: str) -> Shard | None:
            if failure is not None:
                raise failure
            shard = write_shard(self._storage, directory, self._peers.rank, staged, handle._check)
            handle.written_s = handle.age_s
            handle.stage = "committing"
            return shard

        outcome: Manifest | Exception
        try:
            outcome = self._commit.run(request, write, self._metadata, handle._check)
            handle.durable_s = handle.age_s
        except CheckpointError as error:
            outcome = error
        except Exception as error:  # noqa: BLE001 - the edge of the thread: whoever waits on the handle gets it
            outcome = CheckpointError(f"step {request.step} was not saved: {type(error).__name__}: {error}")
            outcome.__cause__ = error
        staged.clear()
        self._tell(handle, outcome)
        if self._peers.rank == 0 and isinstance(outcome, Manifest) and self._keep_last is not None:
            self._start_pruning()
        self._working = False
        handle._settle(outcome)

    def _start_pruning(self) -> None:
        """In a thread of its own: neither whoever waits for the save nor the next save waits for deletions."""
        if self._pruning is None or not self._pruning.is_alive():
            self._pruning = threading.Thread(target=self._prune, name="prune", daemon=True)
            self._pruning.start()

    def _prune(self) -> None:
        try:
            prune(self._storage, keep_last=self._keep_last, keep_every=self._keep_every, deleted=self._deleted)
        except Exception as error:  # noqa: BLE001 - old checkpoints that stay harm nobody; the next save tries again
            logging.getLogger("spotrun").warning("old checkpoints were not deleted: %s", error)

    def _tell(self, handle: SaveHandle, outcome: Manifest | Exception) -> None:
        first = self._peers.rank == 0  # one line a save, not one a rank
        common = {"step": handle.step, "round": handle.round, "staged_bytes": handle.staged_bytes}
        if isinstance(outcome, Manifest):
            events.emit(
                "checkpoint_saved",
                f"step {handle.step} is saved as {outcome.name}, {outcome.size_bytes} bytes in {handle.durable_s:.2f} s"
                if first
                else "",
                **common,
                checkpoint=outcome.name,
                blocked_s=handle.blocked_s,
                written_s=handle.written_s,
                durable_s=handle.durable_s,
            )
        else:
            events.emit(
                "checkpoint_failed", str(outcome) if first else "", level=logging.ERROR, **common, error=str(outcome)
            )


def _check_json(rank_state: Any) -> None:
    try:
        json.dumps(rank_state)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the state that a rank keeps for itself must be JSON: {error}") from error


def _size(staged: Staged) -> int:
    return len(staged.data) if isinstance(staged.data, bytes) else staged.data.numel() * staged.data.element_size()


def _on_cuda(planner: DefaultSavePlanner) -> bool:
    return any(isinstance(value, torch.Tensor) and value.device.type == "cuda" for value in planner.state_dict.values())
