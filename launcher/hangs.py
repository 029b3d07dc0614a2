"""Workers that make no steps any more: when they count as hung, and what is found out about them.

A step is what a script tells by `job.step`, so scripts without the training API are not watched: torch's own timeouts
of collectives are what they have. Nothing is a hang before all workers of the node have made a step of the round (a
model may have to be compiled), nor while any rank of the job says that it is busy with something else.

Then each worker writes its stacks into its log (by faulthandler, which needs neither the GIL nor an answer) and says
where it stands. What is made of that is the coordinator's affair: see rendezvous/hangs.py.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from spotrun import events
from spotrun.errors import EtcdError
from spotrun.launcher.link import Connection, Link
from spotrun.launcher.progress import Steps
from spotrun.link import STACKS_SIGNAL
from spotrun.rendezvous.hangs import where
from spotrun.rendezvous.state import Progress, Round, Stall

LEAST_S, STEPS = 60.0, 20.0  # without --hang-timeout: so many steps, and not less than so long
LEAST_ON_THE_WAY_S = 5.0  # ... nor than this for workers that leave: the agreed step is two steps away
ANSWER_S = 1.0  # a worker that can say where it stands says it within this time
AGAIN_S = 5.0  # after this the others are asked again, where a rank was busy or etcd away


@dataclass(frozen=True, slots=True)
class Told:
    """A worker's last word on its steps, and when it came (monotonic)."""

    steps: Steps
    at_s: float


def hung_at_s(
    workers: Sequence[Told | None], round_number: int, limit_s: float | None, *, leaving: bool = False
) -> float:
    """When the workers of a node count as hung, if they tell no step before; infinite: not as things stand.

    `leaving`: a newer round waits for them, so that little is lost by starting them anew.
    """
    told = [worker for worker in workers if worker is not None and worker.steps.round == round_number]
    if not told or len(told) < len(workers) or any(worker.steps.busy for worker in told):
        return math.inf
    usual_s = max(LEAST_ON_THE_WAY_S if leaving else LEAST_S, STEPS * max(worker.steps.step_s for worker in told))
    if limit_s is None:
        limit_s = usual_s
    elif leaving and limit_s < math.inf:
        limit_s = min(limit_s, usual_s)
    return min(worker.at_s for worker in told) + limit_s


class HangWatch:
    """`look` is called by the agent's loop, again at `due_s` or when `wake` was called."""

    def __init__(
        self,
        link: Link,
        pids: Callable[[], dict[int, int]],
        others: Callable[[], list[Progress]],
        wake: Callable[[], None],
        limit_s: float | None,
    ) -> None:
        """`others` reads the progress of all nodes from etcd; `limit_s`: None for the default, infinite for never."""
        self._link = link
        self._pids = pids
        self._others = others
        self._wake = wake
        self._limit_s = limit_s
        self._unwatched_s = math.inf  # when to say that nothing is watched
        self._suspicion: _Suspicion | None = None
        self._hung_s = math.inf

    @property
    def due_s(self) -> float | None:
        due_s = self._suspicion.due_s if self._suspicion is not None else self._hung_s
        due_s = min(due_s, self._unwatched_s)
        return due_s if due_s < math.inf else None

    @property
    def stalls(self) -> tuple[Stall, ...]:
        """Where each worker of this node stands, once they are found to hang; until they make a step."""
        return self._suspicion.stalls if self._suspicion is not None else ()

    def started(self, now_s: float) -> None:
        """New workers have been started."""
        self._suspicion = None
        self._unwatched_s = now_s + self._limit_s if self._limit_s is not None else math.inf

    def look(self, current: Round, first_rank: int, address: str, now_s: float, *, leaving: bool) -> None:
        workers = self._link.spoken()
        if workers:
            self._unwatched_s = math.inf
        elif now_s >= self._unwatched_s:
            self._unwatched_s = math.inf
            text = "--hang-timeout has no effect: this script tells no steps, as job.step would; torch's timeouts hold."
            events.emit("hangs_unwatched", text, level=logging.WARNING)
        self._hung_s = math.inf
        if workers and len(workers) == len(self._pids()) and not any(worker.ready for worker in workers):
            told = [Told(worker.progress, worker.told_s) if worker.progress else None for worker in workers]
            self._hung_s = hung_at_s(told, current.number, self._limit_s, leaving=leaving)
        if now_s < self._hung_s:
            self._suspicion = None
            return
        if self._suspicion is None:
            self._suspicion = _Suspicion()
        self._follow(self._suspicion, workers, current.number, now_s)
        if self._suspicion.asked_s is not None and not self._suspicion.stalls:
            answered = all(worker.where is not None for worker in workers)
            if answered or now_s >= self._suspicion.due_s:
                self._suspicion.stalls = tuple(stall_of(worker, first_rank, address) for worker in workers)
                self._suspicion.due_s = math.inf

    # -- inside

    def _follow(self, suspicion: _Suspicion, workers: list[Connection], round_number: int, now_s: float) -> None:
        """First all other nodes are asked, by way of etcd, whether a rank is busy; then the workers here."""
        if suspicion.asked_s is not None or suspicion.asking:
            return
        if suspicion.busy is False:
            self._ask_workers(workers)
            suspicion.asked_s, suspicion.due_s = now_s, now_s + ANSWER_S
        elif suspicion.busy is None or now_s >= suspicion.due_s:
            suspicion.asking, suspicion.due_s = True, math.inf
            arguments = (suspicion, round_number)
            threading.Thread(target=self._ask_others, args=arguments, name="spotrun-hang", daemon=True).start()

    def _ask_others(self, suspicion: _Suspicion, round_number: int) -> None:
        try:
            suspicion.busy = any(progress.busy for progress in self._others() if progress.round == round_number)
        except EtcdError:
            suspicion.busy = True  # nothing can be decided while etcd is away
        suspicion.due_s = time.monotonic() + AGAIN_S if suspicion.busy else math.inf
        suspicion.asking = False
        self._wake()

    def _ask_workers(self, workers: list[Connection]) -> None:
        pids = self._pids()
        for worker in workers:
            worker.where = None
            assert worker.local_rank is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[worker.local_rank], STACKS_SIGNAL)
        self._link.tell({"op": "where"})


def tell_hung(stalls: Sequence[Stall], round_number: int, *, leaving: bool, restarts: bool) -> None:
    what = "the workers are started anew" if restarts else "no restart is left for that"
    events.emit(
        "hung",
        f"hung: {where(stalls)}; the stacks are in the workers' logs, and "
        + ("as their round is over, they leave it at once" if leaving else what),
        level=logging.WARNING,
        round=round_number,
        stalls=[asdict(stall) for stall in stalls],
    )


@dataclass(slots=True)
class _Suspicion:
    """What has been found out since no step was made for too long."""

    busy: bool | None = None  # some rank of the job; None: not known yet
    asking: bool = False  # a thread finds out
    asked_s: float | None = None  # the workers, where they stand
    stalls: tuple[Stall, ...] = ()
    due_s: float = math.inf


def stall_of(worker: Connection, first_rank: int, address: str) -> Stall:
    """What is known of one worker; without an answer, the last step that it told."""
    assert worker.local_rank is not None and worker.progress is not None
    rank = first_rank + worker.local_rank
    if worker.where is None:
        return Stall(rank, worker.progress.step, "", False, address)
    return Stall(rank, worker.where.step, worker.where.place, worker.where.waits, address)
