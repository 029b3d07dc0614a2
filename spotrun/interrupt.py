"""Ctrl-C where no agent takes it: the first one saves at the agreed step and leaves, the second one ends at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

EXIT_CODE = 128 + signal.SIGINT
_TOLD = b"spotrun: interrupted: the next step is saved and is the last; once more ends it at once\n"


class Interrupt:
    """`wanted` is what a first SIGINT asks of the job, as an agent would over its link (see `spotrun.link`)."""

    def __init__(self) -> None:
        self.wanted: set[str] = set()
        self._pid = os.getpid()

    def catch(self) -> None:
        """Only where python's own handler is still in place."""
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupted)

    def _interrupted(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a data loader's worker: it ends when this process does
            return
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self.wanted |= {"leave", "durable"}
        os.write(2, _TOLD)
