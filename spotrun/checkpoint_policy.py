"""How often to save: pure functions of what saving costs and how often the job loses its state.

C is what one save costs the training loop (seconds), M the mean time between losses that no notice announced, T the
interval between saves. Short intervals pay C often; long ones lose T / 2 at each loss.

Sources: J. W. Young, CACM 17(9) 1974; J. T. Daly, "A higher order estimate of the optimum checkpoint interval for
restart dumps", FGCS 22(3) 2006, equations 20 and 37.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from spotrun.errors import UsageError

SNAPSHOT_BUDGET = 0.01  # of training time: below it a snapshot after every step is not worth a thought
PRIOR_LOSS_S = 4 * 3600.0  # before anything is seen; public spot traces lie between 0.06 and 0.6 losses a node-hour
MIN_LOSS_S = 10.0  # a round that is shorter hardly trains: no interval would help
MAX_LOSS_S = 30 * 24 * 3600.0  # a quiet month must not stretch the interval without bound
SMOOTHING = 0.3  # weight of the newest measurement: the last five saves make up five sixths


def young(stall_s: float, loss_s: float) -> float:
    """The first-order optimum, sqrt(2 C M)."""
    return math.sqrt(2 * stall_s * loss_s)


def daly(stall_s: float, loss_s: float) -> float:
    """Daly's higher-order optimum of T; M where C >= 2 M."""
    if stall_s >= 2 * loss_s:
        return loss_s
    ratio = stall_s / (2 * loss_s)
    return young(stall_s, loss_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall_s


def goodput(interval_s: float, stall_s: float, loss_s: float, restart_s: float = 0.0, noticed: float = 0.0) -> float:
    """The share of wall time that is progress that lasts, for losses that come at random (exact, Daly's equation 20).

    `loss_s`: mean time between all losses; `noticed`: the share of them with a notice long enough to save, which then
    cost `restart_s` and one stall instead of a rollback. `restart_s`: from a loss to training again, capacity included;
    losses can strike then too. Exact for noticed = 0 and 1, between them the two kinds are taken as independent.
    """
    silent_s = loss_s / (1 - noticed) if noticed < 1 else math.inf
    cycle = (interval_s + stall_s) / silent_s
    if cycle > 700:  # e^700 is the largest power a float holds: nothing lasts
        return 0.0
    work = interval_s / (interval_s + stall_s)
    if silent_s < math.inf:
        work = interval_s / (silent_s * math.exp(restart_s / silent_s) * math.expm1(cycle))
    if noticed > 0:
        work /= 1 + noticed * (restart_s + stall_s) / loss_s
    return work


def interval(stall_s: float, loss_s: float, durable_s: float = 0.0) -> float:
    """Seconds between saves; never below `durable_s`, what one save takes until it is durable, so that none overlap."""
    return max(daly(max(stall_s, 0.0), loss_s), durable_s)


def snapshot_steps(snapshot_s: float, step_s: float, loss_s: float) -> int:
    """Every how many steps a snapshot to host memory is made; 1 where it costs less than SNAPSHOT_BUDGET of a step."""
    if snapshot_s <= SNAPSHOT_BUDGET * step_s:
        return 1
    return max(1, round(daly(snapshot_s, loss_s) / step_s)) if step_s > 0 else 1


@dataclass(frozen=True, slots=True)
class LossRate:
    """A running estimate of M: losses and time seen, after `PRIOR_LOSS_S` in which nothing was lost."""

    prior_s: float = PRIOR_LOSS_S
    losses: int = 0
    seconds: float = 0.0

    def observed(self, seconds: float, losses: int = 0) -> LossRate:
        return replace(self, seconds=self.seconds + seconds, losses=self.losses + losses)

    @property
    def loss_s(self) -> float:
        """The mean time between losses, between MIN_LOSS_S and MAX_LOSS_S."""
        return min(max(mean_gap(self.prior_s, self.losses, self.seconds), MIN_LOSS_S), MAX_LOSS_S)


def mean_gap(prior_s: float, losses: int, seconds: float) -> float:
    """M after `losses` n in `seconds` s: log M = (log(P + s) + n log(s / n)) / (n + 1), and P + s where n = 0.

    What is known of M beforehand is its order of magnitude, so that prior and observation meet on the log scale: the
    mean of a log-normal posterior, with the prior worth one loss of n + 1. (Added up as time, a prior of hours would
    outweigh losses that come each minute for as many losses as it has minutes.) The prior grows with the time seen:
    with no loss in it that is all there is to go by, and one loss after a quiet month does not undo the month.
    M falls with each loss: its derivative by n has the sign of log(s / n) - log(P + s) - (n + 1) < 0, and from none
    to one it goes to the geometric mean of s and P + s.
    """
    if losses == 0:
        return prior_s + seconds
    return math.exp((math.log(prior_s + seconds) + losses * math.log(max(seconds, 1e-9) / losses)) / (losses + 1))


@dataclass(frozen=True, slots=True)
class SaveCost:
    """A running estimate of C and of the time until a save is durable; None before the first one."""

    stall_s: float | None = None
    durable_s: float | None = None
    size_bytes: int = 0  # of one rank's share of the last save

    def measured(self, blocked_s: float, durable_s: float, slow_down: float = 0.0, size_bytes: int = 0) -> SaveCost:
        """One save held the loop for `blocked_s`, and slowed it by the share `slow_down` until it was durable."""
        stall_s = blocked_s + slow_down * max(durable_s - blocked_s, 0.0)
        return SaveCost(_smooth(self.stall_s, stall_s), _smooth(self.durable_s, durable_s), size_bytes)


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else old + SMOOTHING * (new - old)


@dataclass(frozen=True, slots=True)
class Every:
    """When a save is due: after `value` steps, after `value` seconds, or by the measured optimum."""

    unit: Literal["steps", "seconds", "auto"] = "auto"
    value: float = 0.0

    def due(self, steps: int, seconds: float, cost: SaveCost, losses: LossRate) -> bool:
        """Whether `steps` steps and `seconds` seconds after the last save began, one is due.

        "auto" saves at the first step of all, to learn what a save costs. By seconds or "auto" ranks may differ, so one
        rank decides for all; by steps all agree by themselves.
        """
        if steps < 1:
            return False
        if self.unit == "steps":
            return steps >= self.value
        if self.unit == "seconds":
            return seconds >= max(self.value, cost.durable_s or 0.0)
        if cost.stall_s is None:
            return True
        return seconds >= interval(cost.stall_s, losses.loss_s, cost.durable_s or 0.0)


_UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}


def parse_every(text: str) -> Every:
    """ "500steps", "10min", "90s", "1.5h" or "auto". Raises UsageError on anything else."""
    wanted = text.strip().lower()
    if wanted == "auto":
        return Every()
    if (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", wanted)) and (value := float(match[1])) > 0:
        if match[2] in ("step", "steps") and value.is_integer():
            return Every("steps", value)
        if match[2] in _UNITS:
            return Every("seconds", value * _UNITS[match[2]])
    raise UsageError(f"{text!r} is not how often to save: use for example 500steps, 10min, 90s, 2h or auto")
