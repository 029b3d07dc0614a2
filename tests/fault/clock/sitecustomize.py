"""First on the path of a node whose wall clock a campaign moves: Python's clock is ahead by what a file says.

Not libfaketime: with it, glibc's absolute sleeps fail.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

CLOCK = Path(os.environ["CAMPAIGN_CLOCK"])


def moved(clock: Callable[[], float], unit: float) -> Callable[[], float]:
    def now() -> float:
        return clock() + type(clock())(int(CLOCK.read_text() or 0) * unit)

    return now


time.time, time.time_ns = moved(time.time, 1.0), moved(time.time_ns, 1e9)  # type: ignore[assignment]
