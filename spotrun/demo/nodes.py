"""The demo's nodes: each is an agent process of its own, as it would be on a machine of its own.

They die with the demo, however that ends: by the context manager, or by the kernel where the demo was killed itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from spotrun import events
from spotrun.demo.metadata import Metadata
from spotrun.demo.scene import Process
from spotrun.demo.timeline import Deed

JOIN_WINDOW_S = 30.0  # a busy machine may take long to start the third agent; with three there, nobody waits
GONE_S = 10.0
LOG_TAIL_BYTES = 2000

# Becomes the agent after asking the kernel to be killed with its parent; not by preexec_fn, for etcd has a thread here.
_SHIM = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # 1: PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the demo is gone")
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class Nodes:
    """Starts, kills and drains agents; remembers what was done to them."""

    def __init__(self, endpoint: str, metadata: Metadata, out: Path, script: Sequence[str], most: int) -> None:
        self._endpoint = endpoint
        self._metadata = metadata
        self._out = out
        self._script = tuple(script)
        self._most = most
        self._agents: dict[str, subprocess.Popen[bytes]] = {}
        self.deeds: list[Deed] = []

    def __enter__(self) -> Nodes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def start(self, node: str, *, deed: bool = True) -> None:
        """Start an agent; `deed` is for one that joins a job under way."""
        launch = [
            *("-m", "spotrun", "run", f"--nnodes=1:{self._most}", "--nproc-per-node=1"),
            *(f"--rdzv-endpoint={self._endpoint}", "--rdzv-id=demo", f"--node-id={node}"),
            *(f"--join-window={JOIN_WINDOW_S:g}", f"--events={self.events_file(node)}", "--notice=aws"),
        ]
        self.events_file(node).parent.mkdir(exist_ok=True)
        self.log_file(node).parent.mkdir(exist_ok=True)
        if deed:
            self._note("start", node)
        with self.log_file(node).open("wb") as log:
            self._agents[node] = subprocess.Popen(
                [sys.executable, "-c", _SHIM, str(os.getpid()), *launch, *self._script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "SPOTRUN_AWS_METADATA_URL": self._metadata.url(node),
                },
                start_new_session=True,  # a Ctrl-C at the terminal is for the demo alone
            )

    def kill(self, node: str) -> None:
        """As if the machine had lost its power."""
        self._note("kill", node)
        self._agents[node].kill()

    def drain(self, node: str) -> None:
        """As AWS does that takes a spot instance back: it says so in the instance's metadata."""
        self._note("drain", node)
        self._metadata.reclaim(node)

    def processes(self) -> list[Process]:
        return [Process(node, agent.poll()) for node, agent in self._agents.items()]

    def events(self) -> dict[str, list[dict[str, Any]]]:
        return {node: events.read(self.events_file(node)) for node in self._agents}

    def events_file(self, node: str) -> Path:
        return self._out / "events" / f"{node}.jsonl"

    def log_file(self, node: str) -> Path:
        return self._out / "logs" / f"{node}.log"

    def last_words(self, node: str) -> str:
        return self.log_file(node).read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()

    def end(self) -> None:
        """Kill all that still run, and wait until they and what they started are gone. Idempotent."""
        started = self._descendants()
        for agent in self._agents.values():
            if agent.poll() is None:
                agent.kill()  # zygotes and workers die with their agent
        for agent in self._agents.values():
            agent.wait()
        end_s = time.monotonic() + GONE_S
        for process in started:
            if process.is_running():
                _await_end(process.pid, end_s)

    def _descendants(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for agent in self._agents.values():
            if agent.poll() is None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    found += psutil.Process(agent.pid).children(recursive=True)
        return found

    def _note(self, kind: str, node: str) -> None:
        self.deeds.append(Deed(kind, node, time.monotonic()))


def _await_end(pid: int, end_s: float) -> None:
    """By a pidfd, which tells of the end itself: as orphans they may stay zombies where PID 1 does not reap."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            select.select([fd], [], [], max(0.0, end_s - time.monotonic()))
        finally:
            os.close(fd)
