"""What saving has cost and how often state was lost, carried with the state from round to round and start to start.

It is JSON in every snapshot and checkpoint, so that a new round, or a job that is started again, does not begin to
learn anew how often to save.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from spotrun.checkpoint_policy import LossRate, SaveCost


class SaveHistory:
    """Of one job, as one rank knows it; rank 0's decides."""

    def __init__(self) -> None:
        self.cost = SaveCost()
        self.durable_step = 0  # of the newest whole checkpoint
        self.owed = False  # a save was broken off by a change of the world
        self.parting = False  # the save that is made now is of the last step before all go
        self._begun_step, self._begun_s = 0, time.monotonic()  # of the last save that was tried
        self._losses = LossRate()
        self._since_s = time.monotonic()

    @property
    def losses(self) -> LossRate:
        """With the time of this round."""
        return self._losses.observed(time.monotonic() - self._since_s)

    def begun(self, step: int) -> None:
        """A save of that step has begun, or would have but for one under way; or it is durable already."""
        self._begun_step, self._begun_s = step, time.monotonic()

    def since(self, step: int) -> tuple[int, float]:
        """Steps and seconds since then."""
        return step - self._begun_step, time.monotonic() - self._begun_s

    @property
    def unfinished(self) -> bool:
        """Whether the last save that was begun is not known to be whole."""
        return self._begun_step > self.durable_step

    def state_dict(self, round_number: int) -> dict[str, Any]:
        losses = self.losses
        return {
            "v": 1,
            "round": round_number,
            "parting": self.parting,
            "losses": losses.losses,
            "seconds": losses.seconds,
            "stall_s": self.cost.stall_s,
            "durable_s": self.cost.durable_s,
            "size_bytes": self.cost.size_bytes,
            "durable_step": self.durable_step,
            "begun_step": self._begun_step,
            "begun_s": time.monotonic() - self._begun_s,  # ago
        }

    def load_state_dict(self, state: Mapping[str, Any], round_number: int, unplanned: int) -> None:
        """`unplanned`: the newest round that began without an agreed step, at most `round_number`.

        A loss if the state is older, or if rounds are counted anew: a job that was started again with another etcd.
        What was saved when all were told to go has lost nothing.
        """
        since = int(state["round"])
        lost = not state.get("parting", False) and (unplanned > since or round_number <= since)
        self._losses = LossRate(losses=int(state["losses"]) + lost, seconds=float(state["seconds"]))
        self._since_s = time.monotonic()
        self.cost = SaveCost(state["stall_s"], state["durable_s"], state["size_bytes"])
        self.durable_step = int(state["durable_step"])
        self._begun_step, self._begun_s = int(state["begun_step"]), time.monotonic() - float(state["begun_s"])
