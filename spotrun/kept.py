"""How much of the state one round has written where, told to the ledger by whoever commits."""

from __future__ import annotations

import threading
import time

from spotrun.link import Link

TELL_S = 60.0  # no more often: of a worker that is killed, the saves since are not in the sum


class Kept:
    """Sums of this round. `saved` is called by the thread that commits, `close` by the loop's."""

    def __init__(self, link: Link, url: str, region: str, round: int) -> None:
        self._link = link
        self._where = url, region, round
        self._lock = threading.Lock()
        self._saves = self._size_bytes = 0
        self._told: tuple[int, float] | None = None  # how many saves, and when

    def saved(self, size_bytes: int) -> None:
        """One more checkpoint is whole; its shards have so many bytes."""
        with self._lock:
            self._saves += 1
            self._size_bytes += size_bytes
            if self._told is None or not self._told[0] or time.monotonic() - self._told[1] >= TELL_S:
                self._tell()

    def opened(self) -> None:
        """Where checkpoints will lie is told before there is any."""
        with self._lock:
            self._tell()

    def close(self) -> None:
        with self._lock:
            if self._told is not None and self._told[0] < self._saves:
                self._tell()

    def _tell(self) -> None:
        self._told = self._saves, time.monotonic()
        self._link.kept(*self._where, self._saves, self._size_bytes)
