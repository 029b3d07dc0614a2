"""The training API: what a script says to survive without losing a step.

    def train(job: spotrun.Job) -> None:
        model = DDP(Net().to(job.device))
        optimizer = torch.optim.AdamW(model.parameters())
        batches = job.batches(dataset, global_batch_size=256, seed=0)
        job.track(model=model, optimizer=optimizer)        # restores here
        for batch in batches:
            loss = loss_fn(model(batch))
            job.scale(loss).backward()
            optimizer.step(); optimizer.zero_grad()
            job.step(loss=loss)                            # the step boundary
    spotrun.run(train, checkpoint_dir="s3://bucket/run")

`train` is entered once a round, in the same process. All calls on a Job are made by every rank, in the same order.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spotrun import events, randomness
from spotrun.audit import AuditWriter
from spotrun.checkpoint_policy import Every, parse_every, snapshot_steps
from spotrun.consensus import Consensus
from spotrun.data import Batches, MapDataset
from spotrun.errors import UsageError
from spotrun.link import Link, Place
from spotrun.parting import Choice, Parting, choose, lost
from spotrun.progress import Teller
from spotrun.saves import Captured, Saves
from spotrun.streams import ResumableLoader, Stream, pack, unpack
from spotrun.utilisation import Utilisation

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from spotrun.job_state import Tracked
    from spotrun.memory import Memory
    from spotrun.snapshots import Found, Snapshots

logger = logging.getLogger("spotrun")

AUDIT_ENV = "SPOTRUN_AUDIT"  # what `spotrun --audit DIR` sets for its workers
REPLICAS_ENV = "SPOTRUN_REPLICAS"  # what `spotrun --replicas N` sets for its workers
SNAPSHOT_SAMPLES = 3
LAST_SAVE_S = 600.0  # a save at the end of training, or where nobody would be left, may take this long
CLOSE_S = 5.0  # for copies under way when a round ends; where a peer is gone they end by themselves


class RoundOver(BaseException):
    """Raised by `Job.step` at the agreed step to leave `train`; `spotrun.run` catches it. Do not swallow it."""


@dataclass(frozen=True, slots=True)
class Options:
    """What `run` and `init` take."""

    checkpoint_dir: str | os.PathLike[str] | None = None
    save_every: str = "auto"
    keep_last: int | None = 3
    keep_every: int | None = None
    verify: bool = False
    audit_dir: str | os.PathLike[str] | None = None

    @property
    def every(self) -> Every:
        return parse_every(self.save_every)


class Job:
    """One round of training, as one rank sees it."""

    def __init__(
        self, place: Place, link: Link | None, memory: Memory, options: Options, wanted: set[str] | None = None
    ) -> None:
        """`wanted` is what is asked of the job where there is no link to ask it."""
        import torch

        self.rank = place.rank
        self.local_rank = place.local_rank
        self.world_size = place.world_size
        self.round = place.round
        self.device = torch.device("cuda", place.local_rank) if torch.cuda.is_available() else torch.device("cpu")
        self.steps = 0  # optimizer steps committed since the training began
        self._place = place
        self._unplanned = place.unplanned
        self._link = link
        self._wanted = link.wanted if link is not None else wanted if wanted is not None else set()
        self._memory = memory
        self._options = options
        self._saves = Saves(place, link, options.every, self._capture)
        self._batches: list[Batches] = []
        self._streams: list[Stream] = []
        self._positions: list[dict[str, Any]] = []  # restored, for batches that are made later
        self._tracked: Tracked | None = None
        self._groups: list[dist.ProcessGroup] = []
        self._consensus = Consensus(self._new_group())
        self._snapshots: Snapshots | None = None
        self._step_s: float | None = None
        self._utilisation = Utilisation()
        self._stepped_s = time.monotonic()
        self._teller = Teller(link.progress, place.round) if link is not None else None
        self._audits: list[AuditWriter] = []
        if link is not None:
            link.entered()

    @property
    def sharded(self) -> bool:
        """Whether what is tracked is spread over the ranks (FSDP)."""
        return self._tracked is not None and self._tracked.sharded

    # -- before the loop

    def batches(self, dataset: MapDataset, *, global_batch_size: int, **settings: Any) -> Batches:
        """This rank's part of each global batch; see `spotrun.data.Batches` for the settings. Raises DataError."""
        made = Batches(
            dataset, global_batch_size=global_batch_size, rank=self.rank, world_size=self.world_size, **settings
        )
        index = len(self._batches)
        self._batches.append(made)
        if index < len(self._positions):
            made.load_state_dict(self._positions[index])
        return made

    def stream(self, loader: ResumableLoader, *, elastic: bool = False) -> Stream:
        """A loader that resumes by itself, as a part of the job; before `track`. See `spotrun.streams`."""
        made = Stream(loader, rank=self.rank, world_size=self.world_size, elastic=elastic)
        self._streams.append(made)
        return made

    def track(self, **objects: Any) -> bool:
        """Name what a checkpoint holds, and restore it: from memory if any rank has it, else from `checkpoint_dir`.

        Whether something was restored. Raises CheckpointError if a checkpoint does not fit, UsageError for an object
        without state.
        """
        from spotrun.job_state import Tracked

        if self._tracked is not None:
            raise UsageError("job.track was called twice in one round: name everything in one call.")
        self._tracked = Tracked(objects)
        self._open_storage()
        restored = self._restore()
        self.mark("restored")
        self._tracked.moved = False
        return restored

    # -- in the loop

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """`loss`, the mean over this rank's batch, weighted so that the gradient is that of the global batch."""
        for batches in self._batches:
            loss = batches.scale(loss)
        return loss

    @property
    def notice(self) -> float | None:
        """Seconds until a node of the job has to be gone, or None where none is to leave."""
        if self._link is None or self._link.deadline_s is None:
            return None
        return max(0.0, self._link.deadline_s - time.monotonic())

    def step(self, loss: torch.Tensor | float | None = None, *, save: bool = False) -> None:
        """The step boundary: commits the step; saves, drains and resizes happen here, after the same step on all ranks.

        `loss` is only reported, now and then, and a GPU is not waited for. `save` asks for a checkpoint. May raise
        RoundOver, which is for `spotrun.run`.
        """
        for batches in self._batches:
            batches.advance()
        for stream in self._streams:
            stream.advance()
        self.steps += 1
        if self._tracked is not None:
            self._tracked.moved = False
        now_s = time.monotonic()
        took_s, self._stepped_s = now_s - self._stepped_s, now_s
        self._utilisation.step(took_s, sum(batches.waited_s for batches in self._batches))
        self._step_s = took_s if self._step_s is None else 0.9 * self._step_s + 0.1 * took_s
        if save:
            self._wanted.add("save")
        wishes = set(self._wanted)
        if self._tracked is not None and self._saves.due(self.steps):
            wishes.add("save")
        if self._snapshots is not None:
            wishes |= self._snapshots.wishes()
        told, every = self._consensus.exchange(wishes, self._snapshot_every(self._step_s), self._step_s)
        granted = told or frozenset()
        if "leave" in granted:
            self.mark("agreed")
            self._leave(durable="durable" in granted or "durable" in self._wanted)
        save = "save" in granted or self._saves.due_by_steps(self.steps)
        if save:
            self._wanted.discard("save")
            if self._tracked is not None:
                self._saves.begin(self.steps)
        # A step that is saved is kept in memory, too, which is thereby as new as what is durable.
        if self._snapshots is not None and self._snapshots.due(self.steps, 1 if save else every, told):
            self._snapshots.take(self.steps, self._extra(), self._own())
        self._utilisation.saved(time.monotonic() - now_s)
        if self._link is not None:
            self._link.step = self.steps
        if self._teller is not None and self._teller.due(took_s, now_s):
            self._saves.learn_cost()
            self._teller.tell(
                now_s,
                loss,
                step=self.steps,
                samples=self._samples,
                snapshot_step=self._snapshots.step if self._snapshots is not None else 0,
                replica_step=self._snapshots.replica_step if self._snapshots is not None else 0,
                commit_step=self._saves.history.durable_step,
                checkpoint_s=self._utilisation.checkpoint_s,
                **self._utilisation.shares(self._tracked.models if self._tracked is not None else ()),
            )

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """`with job.busy(): evaluate(model)`: what takes long and is no step is not taken for a hang, on any rank."""
        if self._link is not None:
            self._link.busy(True)
        try:
            yield
        finally:
            if self._link is not None:
                self._link.busy(False)
            self._stepped_s = time.monotonic()

    # -- for spotrun.run

    def keep(self) -> None:
        """A collective failed: where no optimizer has moved since the last step, the live state is that step's."""
        self.mark("broken")
        if self._tracked is None or self._snapshots is None:
            return
        if not self._tracked.sharded and self.steps and self._tracked.untouched:
            self._snapshots.keep(self.steps, self._extra(), self._own(random=False))  # numbers have been drawn since
        if "durable" in self._wanted and not self._save_alone(self._left_s()):  # memory goes with the nodes
            self._tell_lost("a node was gone before the step that all had to agree on")

    def mark(self, name: str) -> None:
        """Tell the agent's ledger where this rank is."""
        if self._link is not None:
            self._link.mark(name, self.steps, self._samples, self._stepped_s)

    def finish(self) -> None:
        """`train` has returned: save the end, and wait for it."""
        if self._link is not None:
            self._link.busy(True)  # to the end: no step will come any more
        self._saves.wait(LAST_SAVE_S)
        if self._saves.possible and self.steps > self._saves.saved_step:
            why, _ = self._saves.finish(self.steps, LAST_SAVE_S)
            if why:
                self._tell_lost(why)
        self.close()

    def close(self) -> None:
        """Let go of loaders, files and the save under way; the process groups are the caller's to destroy."""
        for batches in self._batches:
            batches.close()
        for audit in self._audits:
            audit.close()
        self._saves.close()
        if self._snapshots is not None:
            self._snapshots.idle(CLOSE_S)  # its group is about to go
        self._groups = []

    # -- inside

    @property
    def _samples(self) -> int:
        """Consumed by all ranks since the training began."""
        return sum(batches.samples for batches in self._batches)

    def _new_group(self) -> dist.ProcessGroup | None:
        if self.world_size == 1:
            return None
        import torch.distributed as dist

        group: dist.ProcessGroup = dist.new_group(backend="gloo")
        self._groups.append(group)
        return group

    def _open_storage(self) -> None:
        assert self._tracked is not None
        if self._options.checkpoint_dir is None:
            if self._tracked.sharded:
                raise UsageError(
                    "Sharded parameters (FSDP) need spotrun.run(..., checkpoint_dir=...): no rank has the whole state."
                )
            return
        self._saves.open(
            self._options.checkpoint_dir,
            self._new_group(),
            keep_last=self._options.keep_last,
            keep_every=self._options.keep_every,
        )

    def _restore(self) -> bool:
        assert self._tracked is not None
        from spotrun.checkpoint import load
        from spotrun.snapshots import Snapshots

        group = self._new_group()
        copies = int(os.environ.get(REPLICAS_ENV, "1"))
        self._snapshots = Snapshots(self._memory, self._place, self._tracked, group, copies)
        found = self._snapshots.find()
        if found is not None and self._is_best(found) and self._snapshots.load(found):
            self._resume(found.extra, found.own)
            self._saves.history.owed = self._saves.history.unfinished
            where: dict[str, Any] = {"source": "memory", "fetched_bytes": found.recall.fetched_bytes}
            events.emit("restored", level=logging.DEBUG, step=self.steps, round=self.round, **where)
        elif self._saves.storage is not None:
            state = self._tracked.state()
            loaded = load(self._saves.storage, state, group=group, verify=self._options.verify)
            if loaded is not None:
                self._tracked.load(state)
                ranks = loaded.rank_states
                self._resume(loaded.extra, ranks[self.rank] if len(ranks) == self.world_size else None, ranks[0])
                self._saves.restored(self.steps)
            else:
                self._tracked.forget()
        self._snapshots.step = self.steps
        self._start_audit()
        return self.steps > 0

    def _is_best(self, found: Found) -> bool:
        """Whether the snapshot in memory is newer than what is durable, and has all that the streams need."""
        assert self._snapshots is not None
        storage = self._saves.storage
        if storage is not None and not found.final:
            from spotrun.checkpoint import list_checkpoints, newest

            durable = newest(list_checkpoints(storage)) if self.rank == 0 else None
            if self._snapshots.told(0 if durable is None else durable.step)[0] > found.step:
                return False
        # Those that differ from rank to rank need each rank's own word.
        return all(stream.elastic for stream in self._streams) or all(self._snapshots.told(found.own is not None))

    def _resume(self, extra: Mapping[str, Any], own: Any, of_rank_0: Any = None) -> None:
        """`own`: what this rank kept for itself; None where it kept nothing, or where the world had another size."""
        self.steps = int(extra["step"])
        if "saves" in extra:
            self._saves.history.load_state_dict(extra["saves"], self.round, self._unplanned)
        self._positions = list(extra["data"])
        for batches, position in zip(self._batches, self._positions, strict=False):
            batches.load_state_dict(position)
        if own is not None and own["random"] is not None:
            randomness.restore(own["random"])
        else:
            randomness.seed_all(self.steps, self.rank, self.world_size)
        for index, stream in enumerate(self._streams):
            kept = extra["streams"] if stream.elastic else (own or of_rank_0)["streams"]
            if index < len(kept):
                stream.load_state_dict(unpack(kept[index]))  # refuses that of another rank

    def _capture(self) -> Captured:
        assert self._tracked is not None
        return Captured(self._tracked.state(), self._extra(), self._own())

    def _extra(self) -> dict[str, Any]:
        self._saves.learn_cost()
        return {
            "step": self.steps,
            "data": [batches.state_dict() for batches in self._batches],
            "saves": self._saves.history.state_dict(self.round),
            "streams": [pack(stream.state_dict()) if stream.elastic else None for stream in self._streams],
        }

    def _own(self, *, random: bool = True) -> dict[str, Any]:
        """What is this rank's own."""
        return {
            "random": randomness.capture() if random else None,
            "streams": [None if stream.elastic else pack(stream.state_dict()) for stream in self._streams],
        }

    def _start_audit(self) -> None:
        root = self._options.audit_dir or os.environ.get(AUDIT_ENV)
        if root is None:
            return
        place = {"round": self.round, "rank": self.rank, "world_size": self.world_size}
        for index, batches in enumerate(self._batches):
            directory = Path(root) / (f"data-{index}" if index else "")
            audit = AuditWriter(directory, data=batches.state_dict(), **place)
            batches.on_step = audit.committed
            self._audits.append(audit)

    def _snapshot_every(self, step_s: float) -> int:
        """In steps. The first few tell what one costs; the first of all is dearer, since it imports and allocates."""
        if len(self._memory.costs_s) < SNAPSHOT_SAMPLES:
            return 1
        return snapshot_steps(min(self._memory.costs_s), step_s, self._saves.history.losses.loss_s)

    def _leave(self, *, durable: bool) -> None:
        """The agreed step: make the state safe and go. It is in memory of nodes that stay, or else saved durably."""
        if self._snapshots is not None:
            with self.busy():
                goes = self._link is not None and self._link.goes
                self._make_safe(durable, self._keep_in_memory(goes, self._left_s() / 4))
            self.mark("saved")
        raise RoundOver

    def _keep_in_memory(self, goes: bool, within_s: float) -> bool:
        """Whether this rank's part is in the memory of a node that stays."""
        assert self._snapshots is not None
        if self.sharded and any(self._consensus.worst(not self._snapshots.idle(within_s))):
            return False
        return self._snapshots.secure(self.steps, self._extra(), self._own(), goes=goes, within_s=within_s)

    def _make_safe(self, all_leave: bool, in_memory: bool) -> None:
        # A second node's notice may have come since the first one was agreed on: what any rank knows by now counts, so
        # the ranks meet here once more even where their memory will do.
        unsafe, too_few, left_s, need_s, pending_s = self._consensus.worst(
            not in_memory, all_leave, -self._left_s(), *self._saves.needs_s()
        )
        parting = Parting(
            in_memory=not unsafe,
            all_leave=bool(too_few),
            storage=self._saves.possible,
            left_s=-left_s,
            need_s=need_s if need_s >= 0 else None,
            pending_s=pending_s if pending_s >= 0 else None,
        )
        choice = choose(parting)
        if choice is Choice.IN_MEMORY:
            return
        end_s = time.monotonic() + parting.left_s
        why = "there is no checkpoint_dir, and no node is left to hold them"
        if self._saves.possible:
            self._saves.wait(0.0 if choice is Choice.NOTHING else parting.left_s)
            why = f"a save takes about {parting.need_s or 0.0:.1f} s and there were {parting.left_s:.1f} s"
        if choice is Choice.SAVE:
            why, orphaned = self._saves.finish(self.steps, end_s - time.monotonic())
            if why and (orphaned or self.rank == 0) and self._save_alone(end_s - time.monotonic()):
                why = ""
        if why:
            self._tell_lost(why)

    def _left_s(self) -> float:
        """For saving, until the first of the leaving nodes has to be gone."""
        if self._link is None or self._link.deadline_s is None:
            return LAST_SAVE_S
        return self._link.saved_by_s - time.monotonic()

    def _save_alone(self, within_s: float) -> bool:
        """Save what is in memory without the other ranks.

        One rank of each node that is left does it, as none can know of the others; each makes a whole checkpoint.
        """
        if self._snapshots is None or self.local_rank != 0 or self.sharded:
            return False
        kept = self._snapshots.of_this_node()
        if kept is None:
            return False
        return self._saves.finish_alone(Captured(kept["state"], kept["extra"], kept["own"]), within_s)

    def _tell_lost(self, why: str) -> None:
        said = lost(self.steps, self._saves.history.durable_step, why)
        if self._link is not None:
            self._link.lost(self.steps, self._saves.history.durable_step, said)
        elif self.rank == 0:
            logger.error("%s", said)
