"""One descriptor that wakes the agent's loop, from any thread and from signal handlers."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from types import FrameType

CHANGED = b"\0"


class Wakeup:
    """A non-blocking pipe. Bytes above zero are the numbers of signals."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old_fd: int | None = None
        self._old: dict[int, object] = {}

    def fileno(self) -> int:
        return self._read

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # full: the loop wakes anyway; closed: it has ended
            os.write(self._write, CHANGED)

    def take(self) -> list[signal.Signals]:
        """The signals that have arrived since the last call, in order."""
        try:
            data = os.read(self._read, 4096)
        except BlockingIOError:
            return []
        return [signal.Signals(byte) for byte in data if byte]

    def catch(self, signals: Iterable[signal.Signals]) -> None:
        """From now on these signals only write their byte. Main thread only."""
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for signum in signals:
            self._old[signum] = signal.signal(signum, _nothing)

    def close(self) -> None:
        """Give the signals back to whoever had them."""
        if self._old_fd is not None:
            signal.set_wakeup_fd(self._old_fd)
            for signum, handler in self._old.items():
                signal.signal(signum, handler)  # type: ignore[arg-type]
        os.close(self._read)
        os.close(self._write)


def _nothing(signum: int, frame: FrameType | None) -> None:
    """Python calls this later; set_wakeup_fd has already written the byte."""
