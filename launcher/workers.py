"""The agent's side of its workers: start them, learn of their ends, stop them. The zygote does it; see zygote.py.

A `Workers` is made before the agent has threads or grpc channels. Its descriptor is readable when there is something
to learn; `poll` then says how the workers are, without blocking. Logs, tees, filters and error files are torch's own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch.distributed.elastic.multiprocessing import LogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.numa.binding import NumaOptions, _maybe_wrap_command_args_with_numa_binding

from spotrun import events
from spotrun.errors import UsageError
from spotrun.launcher.descendants import session_members
from spotrun.launcher.streams import Streams
from spotrun.launcher.zygote import LAST_WAIT_S
from spotrun.launcher.zygote_process import PRELOADED, ZygoteProcess

logger = logging.getLogger("spotrun")

MARGIN_S = 10.0  # on top of what a stop may take; a zygote that is later than that is taken for dead


@dataclass(frozen=True, slots=True)
class WorkersStatus:
    """`failed` as soon as one worker has; the others may still run then. Failures and pids are by local rank."""

    state: Literal["none", "running", "succeeded", "failed"]
    failures: dict[int, ProcessFailure] = field(default_factory=dict)
    pids: dict[int, int] = field(default_factory=dict)


class Workers:
    """The workers of one node: at most one group of them at a time."""

    def __init__(self, *, warm: bool, preload: Sequence[str] = (), zygote: ZygoteProcess | None = None) -> None:
        """`zygote`: one that has been started already; another takes its place where it does not fit."""
        self._modules = [*PRELOADED, *preload] if warm else []
        # What callers wait on stays the same descriptor, also when a new zygote takes the place of a dead one.
        self._epoll = select.epoll()
        self._zygote: ZygoteProcess | None = None
        self._pids: dict[int, int] = {}
        self._running: set[int] = set()
        self._failures: dict[int, ProcessFailure] = {}
        self._error_files: dict[int, str] = {}
        self.log_files: dict[int, str] = {}  # of the last workers' stderr, where it goes to files
        self._streams: Streams | None = None
        self.forked = 0  # how many of the last workers are forks
        self._answers: dict[str, dict[str, Any]] = {}
        self._said: set[str] = set()
        if zygote is not None and zygote.fits(self._modules, os.environ):
            self._adopt(zygote)
        else:
            if zygote is not None:
                zygote.kill()
            self._start_zygote()

    def fileno(self) -> int:
        return self._epoll.fileno()

    @property
    def zygote_pid(self) -> int | None:
        """None while there is none: it died, and the next start makes another."""
        return self._zygote.process.pid if self._zygote is not None else None

    def start(
        self,
        *,
        name: str,
        entrypoint: str,
        args: dict[int, tuple[str, ...]],
        envs: dict[int, dict[str, str]],
        logs_specs: LogsSpecs,
        log_line_prefixes: dict[int, str] | None = None,
        numa_options: NumaOptions | None = None,
        duplicate_stdout_filters: list[str] | None = None,
        duplicate_stderr_filters: list[str] | None = None,
    ) -> dict[int, int]:
        """Start one worker for each local rank in `args`; their pids by local rank.

        Raises UsageError when the program cannot be started, and OSError when the machine has no room for it.
        """
        self.stop(signal.SIGKILL, 0.0)
        if self._zygote is None:
            self._start_zygote()
        self._streams = Streams(
            name, envs, logs_specs, log_line_prefixes, duplicate_stdout_filters, duplicate_stderr_filters
        )
        self._error_files = dict(self._streams.dest.error_files)
        self.log_files = {rank: path for rank, path in self._streams.dest.stderrs.items() if path}
        workers = []
        for local_rank in sorted(args):
            command = (entrypoint, *(str(arg) for arg in args[local_rank]))
            workers.append(
                {
                    "local_rank": local_rank,
                    "command": _maybe_wrap_command_args_with_numa_binding(
                        command, gpu_index=local_rank, numa_options=numa_options
                    ),
                    "environment": envs[local_rank],
                    "stdout": self._streams.dest.stdouts[local_rank],
                    "stderr": self._streams.dest.stderrs[local_rank],
                }
            )
        self._streams.start()
        message = {
            "op": "start",
            "warm": bool(self._modules) and self._may_fork(entrypoint, numa_options),
            "cwd": _working_directory(),
            "environment": dict(os.environ),
            "workers": workers,
        }
        started = self._ask(message, "started")
        if started is None and self._modules:  # it may have died of what it imported
            self._say_cold("the process that imports torch beforehand died")
            self._modules = []
            self._start_zygote()
            started = self._ask({**message, "warm": False}, "started")
        if started is None:
            raise OSError(f"The process that starts the workers died before it had started {entrypoint!r}.")
        self.forked = started["warm"]
        if started["cold_because"]:
            self._say_cold(started["cold_because"])
        if started["error"] is not None:
            self.stop(signal.SIGKILL, 0.0)
            error = OSError(*started["error"])
            if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
                raise UsageError(f"Cannot start {entrypoint!r}: {error.strerror} ({error.filename}).")
            raise error
        return dict(self._pids)

    def poll(self) -> WorkersStatus:
        """How the workers are now. Never blocks."""
        self._receive()
        state: Literal["none", "running", "succeeded", "failed"] = "none"
        if self._pids:
            state = "failed" if self._failures else "running" if self._running else "succeeded"
        return WorkersStatus(state, dict(self._failures), dict(self._pids))

    @property
    def warming(self) -> bool:
        """Whether a start would still wait for the imports, as of the last `poll`."""
        return self._warming and self._zygote is not None

    def alive(self) -> set[int]:
        """The local ranks that had not ended at the last `poll`."""
        return set(self._running)

    def stop(self, sig: signal.Signals, grace_s: float) -> None:
        """End all workers and what they have started; returns when they are gone, and then there are none.

        `sig` goes to each worker's process group. SIGKILL goes to all that is left once every worker has ended, or
        `grace_s` later (0: at once). What the kernel holds in D state for 5 s more is given up and logged.
        """
        if self._pids:
            self._stop(sig, grace_s)
        if self._streams is not None:
            self._streams.close()
        self._streams = None
        self._pids, self._running, self._failures = {}, set(), {}

    def close(self) -> None:
        """Nothing is left after this: no worker, no zygote, no descriptor. May be called again."""
        if self._epoll.closed:
            return
        if self._zygote is not None:
            self._zygote.channel.close()  # it reads the end of the socket, kills everything, and goes
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._zygote.process.wait(LAST_WAIT_S + MARGIN_S)
            self._zygote.kill()
            self._zygote = None
        self._epoll.close()
        if self._streams is not None:
            self._streams.close()
        self._streams = None
        self._pids, self._running, self._failures = {}, set(), {}

    # -- the zygote

    def _start_zygote(self) -> None:
        self._adopt(ZygoteProcess(self._modules, os.environ))

    def _adopt(self, zygote: ZygoteProcess) -> None:
        self._zygote = zygote
        self._warming = bool(self._modules)
        self._epoll.register(zygote.channel, select.EPOLLIN)

    def _may_fork(self, entrypoint: str, numa_options: NumaOptions | None) -> bool:
        if numa_options is not None:
            self._say_cold("NUMA binding needs a program of its own")
        elif entrypoint != sys.executable:
            self._say_cold(f"{entrypoint!r} is not this python")
        else:
            return True
        return False

    def _say_cold(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            events.emit("cold_start", f"workers are started cold: {reason}", reason=reason)

    def _ask(self, message: dict[str, Any], kind: str, limit_s: float = math.inf) -> dict[str, Any] | None:
        """The zygote's answer; None when there is no zygote, or no longer."""
        self._answers.clear()
        end_s = time.monotonic() + limit_s
        if self._zygote is not None:
            with contextlib.suppress(OSError):  # it has just died: _receive finds out
                self._zygote.channel.send(message)
        while self._zygote is not None:
            self._receive()
            if kind in self._answers:
                return self._answers.pop(kind)
            if self._zygote is not None:
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    self._zygote.process.kill()
                select.select([self._zygote.channel], [], [], None if left_s == math.inf else max(left_s, 1.0))
        return None

    def _receive(self) -> None:
        if self._zygote is None:
            return
        channel = self._zygote.channel
        for message in channel.receive():
            kind = message["kind"]
            if kind == "exit":
                self._take_exit(message["local_rank"], message["pid"], message["code"])
            elif kind == "ready":
                self._warming = False
            elif kind == "started":
                self._pids = dict(message["pids"])
                self._running = set(self._pids)
            if kind in ("started", "stopped"):
                self._answers[kind] = message
        if channel.ended:
            self._lose_zygote()

    def _take_exit(self, local_rank: int, pid: int, code: int, message: str = "") -> None:
        self._running.discard(local_rank)
        if code != 0:
            self._failures[local_rank] = process_failure(local_rank, pid, code, self._error_files[local_rank], message)

    def _lose_zygote(self) -> None:
        """The workers died with it (PR_SET_PDEATHSIG); what they had started may not have."""
        assert self._zygote is not None
        zygote, self._zygote = self._zygote, None
        self._epoll.unregister(zygote.channel)
        pid, code = zygote.process.pid, zygote.kill()
        text = f"The process that starts workers (pid {pid}) died with code {code}, and its workers with it."
        events.emit("zygote_lost", text, level=logging.ERROR, pid=pid, code=code)
        for local_rank in sorted(self._running):
            self._take_exit(local_rank, self._pids[local_rank], -signal.SIGKILL, text)
        self._kill_sessions()

    # -- stop

    def _stop(self, sig: signal.Signals, grace_s: float) -> None:
        message = {"op": "stop", "signal": int(sig), "grace_s": grace_s}
        stopped = self._ask(message, "stopped", grace_s + LAST_WAIT_S + MARGIN_S)
        if stopped is None:
            self._kill_sessions()
        elif stopped["left"]:
            events.emit(
                "stuck",
                f"processes {stopped['left']} did not end within {LAST_WAIT_S:g} s of SIGKILL: the kernel holds them, "
                "perhaps in a device driver; this host may need a restart",
                level=logging.ERROR,
                pids=stopped["left"],
            )

    def _kill_sessions(self) -> None:
        """Without a zygote to do it: SIGKILL all in the workers' sessions until none is left."""
        end_s = time.monotonic() + LAST_WAIT_S
        sessions = set(self._pids.values())
        while (left := session_members(sessions)) and time.monotonic() < end_s:
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)  # they are not our children: nothing tells of their ends


def _working_directory() -> str | None:
    """None: it has been removed, and the workers inherit that state, as they would from any parent."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def process_failure(local_rank: int, pid: int, code: int, error_file: str, message: str = "") -> ProcessFailure:
    """torch's record of a failed worker; a half-written error file makes it no worse."""
    trouble = _unreadable(error_file)
    failure = ProcessFailure(local_rank, pid, code, "" if trouble else error_file)
    if trouble:
        failure.error_file = error_file
        failure.message = f"{failure.message} (its error file {error_file} is of no use: {trouble})"
    if message:
        failure.message = message
    return failure


def _unreadable(error_file: str) -> str:
    """What would make torch's ProcessFailure raise on this file; empty: nothing."""
    if not os.path.isfile(error_file):
        return ""
    try:
        data = json.loads(Path(error_file).read_text())
        message = data["message"]
        int(data.get("timestamp", 0) if isinstance(message, str) else message["extraInfo"]["timestamp"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
