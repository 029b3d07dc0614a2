"""An incident: from the first sign that a round will end to the first step of the next one, as this node sees it.

Pure bookkeeping by the monotonic clock of this host, which its workers share. A step that workers made and that is not
in the state they go on from is made again; what that and the pause cost is put into the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spotrun.launcher.ledger import Cost, Phase
from spotrun.rendezvous.state import Progress, Round

SPEAK_S = 30.0  # a worker that has not said hello by then is of a script without the training API

MARKS = ("agreed", "broken", "saved", "restored")  # what workers say


@dataclass(frozen=True, slots=True)
class Mark:
    """A worker's word on where it is."""

    name: str
    at_s: float
    step: int  # the last that it made ...
    samples: int
    stepped_s: float  # ... and when


class Incidents:
    """At most one is open at a time; whatever comes while it is open belongs to it. Seconds are monotonic."""

    def __init__(self, price_per_node_hour: float | None) -> None:
        self._price = price_per_node_hour
        self._open: dict[str, float] = {}  # when each phase ended
        self._round: Round | None = None  # the one that is to begin
        self._number = 0  # of the newest round
        self._last: Mark | None = None  # the last step before it
        self._restored: Mark | None = None
        self._stepped: Mark | None = None  # the newest step that workers told
        self._step_s = 0.0
        self.checkpoint_s = 0.0  # that snapshots and saves have taken since the last incident

    @property
    def due_s(self) -> float | None:
        """When workers that have not spoken count as silent: call `silent` then."""
        started_s = self._open.get("started")
        return None if started_s is None or self._round is None else started_s + SPEAK_S

    def sign(self, name: str, at_s: float) -> None:
        """A notice, a failure, a hang: the round will end."""
        self._open.setdefault(name, at_s)

    def withdrawn(self) -> None:
        """There was a notice, and nobody has to go."""
        self._open.pop("notice", None)

    def mark(self, mark: Mark) -> None:
        """Of several workers the slowest counts."""
        if mark.name not in MARKS:
            return
        self._open[mark.name] = max(mark.at_s, self._open.get(mark.name, mark.at_s))
        if mark.name == "restored":
            self._restored = mark
        elif mark.name in ("agreed", "broken") and (self._last is None or mark.step >= self._last.step):
            self._last = mark

    def left(self, at_s: float) -> None:
        """All workers of this node are out of the round."""
        self._open.setdefault("left", at_s)

    def round(self, current: Round, at_s: float) -> None:
        """The newest round that this node is in."""
        if current.number <= self._number:
            return
        self._number, self._round, self._restored = current.number, current, None
        for stale in ("started", "restored", *(() if current.kind == "drained" else ("notice",))):
            self._open.pop(stale, None)
        self._open["round"] = at_s

    def started(self, at_s: float) -> None:
        """The workers of the round were started anew."""
        if self._round is not None:
            self._open["started"] = at_s

    def stepped(self, progress: Progress, at_s: float) -> dict[str, Any] | None:
        """All workers have told of a step; what is to be told of the incident that it ends."""
        found = None
        if self._round is not None and self._round.number == progress.round:
            self._open["first step"] = at_s
            found = self._close(at_s, progress.step_time_s)
        self._stepped = Mark("stepped", at_s, progress.step, progress.samples, at_s)
        self.checkpoint_s = progress.checkpoint_s
        self._step_s = progress.step_time_s
        return found

    def silent(self) -> dict[str, Any] | None:
        """The workers will not tell of steps: the incident ended when they were started."""
        return self._close(self._open["started"], 0.0) if self._round is not None else None

    def phases(self) -> tuple[Phase, ...]:
        """What there is so far: for a node that leaves, up to its going."""
        found, before_s = [], min(self._open.values(), default=0.0)
        for name, at_s in sorted(self._open.items(), key=lambda item: item[1]):
            found.append(Phase(name, round(at_s - before_s, 4)))
            before_s = at_s
        return tuple(found)

    def _close(self, at_s: float, step_s: float) -> dict[str, Any]:
        current = self._round
        assert current is not None
        last, restored = self._last or self._stepped, self._restored
        began_s = last.stepped_s if last is not None else min(self._open.values())
        paused_s = max(0.0, at_s - began_s - step_s)
        steps, samples = _recomputed(last, restored) if restored is not None else (None, None)
        node_s = (paused_s + (steps or 0) * (self._step_s or step_s)) * len(current.members)
        money = None if self._price is None else round(node_s / 3600 * self._price, 6)
        found = {
            "round": current.number,
            "step": restored.step if restored is not None else 0,
            "cause": current.kind,
            "reason": current.reason,
            "nodes": [member.node_id for member in current.members],
            "world_size": current.world_size,
            "phases": self.phases(),
            "cost": Cost(round(paused_s, 4), steps, samples, round(node_s, 4), money, round(self.checkpoint_s, 4)),
        }
        self._open, self._round, self._last, self._restored = {}, None, None, None
        self.checkpoint_s = 0.0
        return found


def _recomputed(last: Mark | None, restored: Mark) -> tuple[int, int]:
    """Steps and samples."""
    if last is None or last.step <= restored.step:
        return 0, 0
    steps = last.step - restored.step
    if restored.samples == 0 < restored.step:  # the script makes its batches after it has restored
        return steps, round(steps * last.samples / last.step)
    return steps, max(0, last.samples - restored.samples)


def told(found: dict[str, Any]) -> str:
    """For people."""
    cost: Cost = found["cost"]
    text = f"round {found['round']} trains after {cost.paused_s:.2f} s"
    if cost.steps_recomputed:
        text += f", from step {found['step']} on: {cost.steps_recomputed} to be made again"
    return text + ("" if cost.money is None else f"; this cost {cost.money:.4f}")
