"""The agent's end of the snapshots: memory that belongs to it, so that it outlives the workers that write there.

Each segment is an anonymous file (memfd), which a worker opens by its path under /proc. It exists as long as the agent
or a worker has it open, so nothing is left behind whatever ends them.
"""

from __future__ import annotations

import logging
import os
import re
import threading

from spotrun import events

# Of a worker by local rank: its own parts, and copies of parts of other nodes; two each, so that one is always whole.
_NAME = re.compile(r"\d{1,4}\.(own|copy\d{1,2})\.[ab]")
TOLD_AGAIN = 1.1  # times what was told last


class Snapshots:
    """Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._segments: dict[str, tuple[int, int]] = {}  # descriptor and size
        self._told_bytes = 0

    def make(self, name: str, size_bytes: int) -> None:
        """A segment of at least that size; what an older, smaller one of that name held is gone.

        Raises ValueError for a name that is none, OSError where there is no memory for it.
        """
        if not _NAME.fullmatch(name) or size_bytes < 1:
            raise ValueError(f"{name!r:.40} of {size_bytes} bytes is no segment")
        with self._lock:
            there = self._segments.get(name)
            if there is not None and there[1] >= size_bytes:
                return
            fd = os.memfd_create(f"spotrun-{name}", os.MFD_CLOEXEC)
            try:
                os.fchmod(fd, 0o600)  # else anybody may, who can look into /proc of this process
                os.ftruncate(fd, size_bytes)
            except OSError:
                os.close(fd)
                raise
            if there is not None:
                os.close(there[0])
            self._segments[name] = fd, size_bytes

    def paths(self) -> dict[str, str]:
        """Where each segment can be opened, by its name."""
        with self._lock:
            return {name: f"/proc/{os.getpid()}/fd/{fd}" for name, (fd, _) in self._segments.items()}

    def open(self, kind: str) -> dict[str, int]:
        """A descriptor of the caller's own of each segment of that kind, by name."""
        with self._lock:
            return {name: os.dup(fd) for name, (fd, _) in self._segments.items() if name.split(".")[1] == kind}

    def held_bytes(self) -> int:
        with self._lock:
            return sum(size for _, size in self._segments.values())

    def tell(self) -> None:
        """How much lies here, for the ledger: once, and again when it has grown."""
        held = self.held_bytes()
        if held > TOLD_AGAIN * self._told_bytes:
            self._told_bytes = held
            events.emit("state_held", level=logging.DEBUG, size_bytes=held)

    def close(self) -> None:
        with self._lock:
            for fd, _ in self._segments.values():
                os.close(fd)
            self._segments = {}
