"""A file that appears: a notice. That changes: a new deadline. That disappears: withdrawn.

For schedulers, scripts and people: `echo 60 > /run/drain`. The file is looked at every 0.2 s instead of being watched
by inotify, because inotify sees nothing of what other hosts do on NFS, Lustre and FUSE, and a Kubernetes volume is
changed by turning a link two folders up. A stat five times a second costs nothing that can be measured.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from spotrun.launcher.notices.asked import DEFAULT_S, Unreadable, parse_drain
from spotrun.launcher.notices.notice import Grade, Notice, Publish, bounded

FILE_ENV = "SPOTRUN_NOTICE_FILE"
POLL_S = 0.2
LIMIT_BYTES = 4096


class FileSource:
    name = "file"

    def __init__(self, path: str = "", environ: Mapping[str, str] = os.environ, poll_s: float = POLL_S) -> None:
        self._path = path or environ.get(FILE_ENV, "")
        self._poll_s = poll_s

    def detect(self) -> bool:
        return bool(self._path)

    def run(self, publish: Publish, stop: threading.Event) -> None:
        state: tuple[int, int, int] | None = None
        last: Notice | None = None
        while self._path and not stop.is_set():
            try:
                now_state = _state(self._path)
            except OSError:  # a file system that does not answer says nothing about the file
                now_state = state
            if now_state != state:
                state = now_state
                now_s = time.monotonic()
                if state is not None:
                    seconds, reason = _content(self._path)
                    last = Notice(self.name, "manual", Grade.WILL, seconds, now_s, self._path, detail=bounded(reason))
                    publish(last)
                elif last is not None:
                    left_s = max(0.0, last.deadline_s - now_s)
                    publish(Notice(self.name, last.kind, last.grade, left_s, now_s, last.id, True, last.detail))
                    last = None
            stop.wait(self._poll_s)

    def safe_to_go(self, notice: Notice) -> None:
        """Nobody waits for it."""


def _state(path: str) -> tuple[int, int, int] | None:
    """What changes when the file does; None where it is not there."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _content(path: str) -> tuple[float, str]:
    """Seconds left and reason. A file that says nothing readable is a notice all the same: it was put there."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block us
            return DEFAULT_S, f"{path} is there"
        with Path(path).open("rb") as file:
            return parse_drain(file.read(LIMIT_BYTES).decode())
    except (OSError, UnicodeDecodeError, Unreadable) as error:
        return DEFAULT_S, f"{path}: {error}"
