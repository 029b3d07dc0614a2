"""Whether this node is to go, why, and how long it has: pure bookkeeping over signals and notices."""

from __future__ import annotations

import signal

from spotrun.errors import SpotrunError
from spotrun.launcher.ledger import Phase
from spotrun.launcher.notices.notice import Notice
from spotrun.rendezvous.state import Drain

MARGIN_S = 1.0  # of the time until this node goes, kept for ending the workers and saying goodbye; not more than ...
MARGIN = 1 / 8  # ... this share of what it was told to have: of 2 s a save needs nearly all


class Drained(SpotrunError):
    """Raised by `SpotAgent.run` when this node has left the job as it was told to; not a failure."""

    def __init__(
        self,
        message: str,
        signum: signal.Signals | None,
        phases: tuple[Phase, ...],
        round_number: int,
        checkpoint_s: float,
    ) -> None:
        super().__init__(message)
        self.signum = signum
        self.phases = phases  # of its going
        self.round_number = round_number  # its last
        self.checkpoint_s = checkpoint_s  # that snapshots and saves took of it


class Leaving:
    """`grace_s` is what workers get between SIGTERM and SIGKILL where nothing is more urgent (--shutdown-timeout)."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self.signum: signal.Signals | None = None  # of a signal that ends this node and is no notice
        self.notices: dict[str, Notice] = {}  # those that say this node will go, by id
        self.told = False  # the other nodes know
        self._said: Drain | None = None  # what this node told them last ...
        self._withdrawn: Drain | None = None  # ... and what it has taken back, though etcd may still show it

    @property
    def wanted(self) -> bool:
        return self.signum is not None or bool(self.notices)

    def withdraw(self, notice: Notice) -> bool:
        """Whether that was the last reason to go."""
        known = self.notices.pop(notice.id, None) is not None
        last = known and not self.wanted
        if last:
            self.told, self._withdrawn = False, self._said
        return last

    def in_force(self, drain: Drain | None) -> Drain | None:
        """`drain`, which etcd shows of this node, unless this node has taken it back."""
        return None if drain == self._withdrawn else drain

    def seconds_left(self, now_s: float, drain: Drain | None = None) -> float:
        """Until this node goes; `drain` is what another said of it. `now_s` is monotonic."""
        return max(0.0, self._time(now_s, drain)[0])

    def time_for_workers_s(self, now_s: float, drain: Drain | None = None) -> float:
        """How long workers may go on to the agreed step, or use their grace."""
        left_s, told_s = self._time(now_s, drain)
        left_s = max(0.0, left_s - min(MARGIN_S, MARGIN * told_s))
        return min(left_s, self._grace_s) if self.signum is not None else left_s

    def _time(self, now_s: float, drain: Drain | None) -> tuple[float, float]:
        """What is left until this node goes, and what it was told to have."""
        times = [(notice.deadline_s - now_s, notice.seconds_left) for notice in self.notices.values()]
        if drain is not None and not times:
            times.append((drain.seconds_left, drain.seconds_left))
        return min(times, default=(self._grace_s, self._grace_s))

    def record(self, node_id: str, now_s: float) -> Drain:
        """What the other nodes are told."""
        notice = next(iter(self.notices.values()), None)
        source = notice.source if notice else self.signum.name if self.signum else "drained"
        self._said = Drain(node_id, self.seconds_left(now_s), source, notice.detail if notice else "")
        self._withdrawn = None if self._said == self._withdrawn else self._withdrawn
        return self._said

    def why(self, drain: Drain | None) -> str:
        """For people."""
        reasons = [notice.detail or notice.source for notice in self.notices.values()]
        if self.signum is not None:
            reasons.insert(0, self.signum.name)
        if not reasons:
            reasons.append(drain.source if drain else "drained")
        return f"This node left the job: {', '.join(reasons)}."


def unsaved(failed: bool, cooperative: bool) -> tuple[str, str]:
    """The event and what it says to people, where workers are ended that have not left at an agreed step."""
    back = "the others go back to the last step that is in memory or in a checkpoint"
    if failed:
        return "state_lost", f"a worker here failed before this node could leave: {back}"
    if cooperative:
        return "state_lost", f"the workers here did not reach the end of a step in the time there was: {back}"
    return "state_unknown", (
        "the script does not use the training API: what it has not saved by itself when SIGTERM reaches it is lost"
    )
