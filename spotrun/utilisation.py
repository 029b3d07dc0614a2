"""Where the time of a step goes: waiting for data, communicating, saving; the rest is computing. No profiler is needed.

Data is the time that the loop waited for its next batch; checkpoints, what snapshots and saves kept it from going on.
Communication is DDP's own measurement, which it takes every hundred steps: the reduction of gradients, less what went
on beside the backward pass. Where there is no DDP (FSDP, a world of one) it is not known, and counted as computing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

STEPS = 101  # a share is that of so many last steps
STARVED = 0.2  # of a step's time without data: from there on it is worth a word


class Utilisation:
    def __init__(self) -> None:
        self._steps: deque[tuple[float, float, float]] = deque(maxlen=STEPS)
        self._waited_s = 0.0  # for data, as of the last step
        self._saved_s = 0.0  # since the last step
        self.checkpoint_s = 0.0  # that snapshots and saves have taken in this round

    def saved(self, seconds: float) -> None:
        """A snapshot or a save took that long; it belongs to the step that follows."""
        self._saved_s += seconds
        self.checkpoint_s += seconds

    def step(self, took_s: float, waited_s: float) -> None:
        """A step is done; `waited_s`: for data, since the round began."""
        self._steps.append((took_s, waited_s - self._waited_s, self._saved_s))
        self._waited_s, self._saved_s = waited_s, 0.0

    def shares(self, models: Iterable[Any]) -> dict[str, float | None]:
        """Of the last steps' time, as the link tells them; communication may be None."""
        took_s = sum(step[0] for step in self._steps) or 1.0
        communicated_s = exposed_s(models)
        mean_s = took_s / max(1, len(self._steps))
        return {
            "data_share": _share(sum(step[1] for step in self._steps) / took_s),
            "checkpoint_share": _share(sum(step[2] for step in self._steps) / took_s),
            "communication_share": None if communicated_s is None else _share(communicated_s / mean_s),
        }


def exposed_s(models: Iterable[Any]) -> float | None:
    """The reduction of gradients that no computation hides, a step, by DDP's statistics; None where there are none."""
    found = None
    for model in models:
        if hasattr(model, "_get_ddp_logging_data"):
            data = model._get_ddp_logging_data()
            hidden_ns = data.get("avg_backward_compute_comm_overlap_time", 0)
            found = (found or 0.0) + max(0, data.get("avg_backward_comm_time", 0) - hidden_ns) / 1e9
    return found


def starving(shares: Mapping[str, float]) -> str:
    """A word where the workers wait for data; empty where they do not."""
    share = shares.get("data", 0.0)
    if share < STARVED:
        return ""
    return f"{share:.0%} of each step is waiting for data: give job.batches more num_workers, or faster storage."


def _share(value: float) -> float:
    return round(min(1.0, max(0.0, value)), 4)
