"""The process that all workers of a node come from. Run by `workers.py`; knows nothing of rounds or ranks.

It is exec'd by the agent before the agent has threads or grpc channels, has one thread itself, and so may fork at any
time, where the agent may not. It starts workers in two ways: cold (fork and exec, as torchrun does) and warm (fork
only, after it has imported torch: see warm.py).

Who dies with whom:
- The agent goes, however it goes: the zygote reads the end of their socket, SIGKILLs all its descendants and exits.
- The zygote goes: PR_SET_PDEATHSIG kills the workers, and the agent reads the end of the socket.
- A worker's own children, once orphaned, come to the zygote, which is their subreaper. It kills them at the next stop.

Messages from the agent (`op`): start, stop. To the agent (`kind`): started, exit, stopped. One loop, woken by the
socket, by SIGCHLD and by the deadline of a stop. Nothing is ever waited for elsewhere, so the agent's end is noticed at
any time but within one import.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from spotrun.launcher.channel import Channel
from spotrun.launcher.descendants import descendants

if TYPE_CHECKING:
    from spotrun.launcher.preload import Preload

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LAST_WAIT_S = 5.0  # after SIGKILL: what is still there then is stuck in the kernel (D state), and nobody can end it

_prctl = ctypes.CDLL(None, use_errno=True).prctl


class Zygote:
    def __init__(self, channel: Channel, preload: Preload | None) -> None:
        self._channel = channel
        self._preload = preload
        self._pid = os.getpid()
        self._running: dict[int, int] = {}  # pid -> local rank, not reaped yet
        self._waiting: list[dict[str, Any]] = []  # warm starts that came before the preload was over
        self._stop_by_s: float | None = None  # a stop is under way: its next deadline
        self._killed = False  # ... and has come to SIGKILL
        self._dispositions = {signum: signal.getsignal(signum) for signum in signal.valid_signals()}
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _nothing)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
            # What is sent to the whole job is the agent's to act on. A handler, not SIG_IGN: exec undoes it.
            if self._dispositions[signum] != signal.SIG_IGN:
                signal.signal(signum, _nothing)
        _prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def serve(self) -> Callable[[], None] | None:
        """Returns None when the agent is gone and nothing is left; in a warm child, what it has to become."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._channel, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while True:
                selector.select(self._timeout_s())
                with contextlib.suppress(BlockingIOError):
                    while os.read(self._wake_read, 4096):
                        pass
                for message in self._channel.receive():
                    become = self._take(message)
                    if become is not None:
                        return become
                if self._preload_step():
                    self._send({"kind": "ready"})
                    waiting, self._waiting = self._waiting, []
                    for message in waiting:
                        become = self._take(message)
                        if become is not None:
                            return become
                self._reap()
                if self._channel.ended and not self._killed:
                    selector.unregister(self._channel)  # it would stay readable
                    self._kill(LAST_WAIT_S)
                if self._stop_by_s is not None and self._advance_stop() and self._channel.ended:
                    return None

    def _preload_step(self) -> bool:
        """Import one module, so that the socket is looked at again soon; whether that was the last."""
        if self._preload is None or self._preload.finished or self._channel.ended:
            return False
        self._preload.step()
        return self._preload.finished

    def _timeout_s(self) -> float | None:
        if self._preload is not None and not self._preload.finished:
            return 0.0
        return None if self._stop_by_s is None else max(0.0, self._stop_by_s - time.monotonic())

    def _take(self, message: dict[str, Any]) -> Callable[[], None] | None:
        if message["op"] == "start":
            if message["warm"] and self._preload is not None and not self._preload.finished:
                self._waiting.append(message)
                return None
            return self._start(message)
        self._waiting.clear()
        for pid in self._running:  # not reaped yet, so the number still is this group's
            _signal_group(pid, message["signal"])
        self._stop_by_s, self._killed = time.monotonic() + message["grace_s"], False
        if message["grace_s"] <= 0:
            self._kill(LAST_WAIT_S)
        return None

    # -- start

    def _start(self, message: dict[str, Any]) -> Callable[[], None] | None:
        pids: list[tuple[int, int]] = []
        cold_because = ""
        warm = 0
        try:
            for worker in message["workers"]:
                environment = {**message["environment"], **worker["environment"]}
                job = {**worker, "environment": environment, "cwd": message["cwd"]}
                reason = self._preload.refuses(job) if message["warm"] and self._preload else ""
                if message["warm"] and self._preload and not reason:
                    for path in filter(None, (job["stdout"], job["stderr"])):
                        open(path, "w").close()  # here, where its error can be told
                    pid = os.fork()
                    if pid == 0:
                        return self._in_child(job)
                    warm += 1
                else:
                    cold_because = cold_because or reason
                    pid = self._start_cold(job)
                self._running[pid] = worker["local_rank"]
                pids.append((worker["local_rank"], pid))
        except OSError as error:
            failure = [error.errno, error.strerror, error.filename]
            self._send({"kind": "started", "pids": pids, "error": failure, "cold_because": cold_because, "warm": warm})
        else:
            self._send({"kind": "started", "pids": pids, "error": None, "cold_because": cold_because, "warm": warm})
        return None

    def _start_cold(self, job: dict[str, Any]) -> int:
        with contextlib.ExitStack() as files:
            # As torch's SubprocessHandler opens them: emptied, in text mode.
            out = files.enter_context(open(job["stdout"], "w")) if job["stdout"] else None
            err = files.enter_context(open(job["stderr"], "w")) if job["stderr"] else None
            process = subprocess.Popen(
                job["command"],
                env=job["environment"],
                cwd=job["cwd"],
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=self._die_with_zygote,  # safe: this process has one thread
            )
        process.returncode = 0  # reaped by _reap; Popen must not try
        return process.pid

    def _die_with_zygote(self) -> None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._pid:  # it died before the line above
            os._exit(1)

    def _in_child(self, job: dict[str, Any]) -> Callable[[], None]:
        """In the fork: nothing of the zygote's may stay, and nothing may return into its loop but the result."""
        try:
            signal.set_wakeup_fd(-1)
            for signum, disposition in self._dispositions.items():
                if signal.getsignal(signum) is _nothing:  # what an import has set, it would set anywhere
                    signal.signal(signum, disposition)
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._channel.close()
            os.setsid()
            self._die_with_zygote()
            assert self._preload is not None
            return self._preload.in_child(job)
        except BaseException:  # noqa: BLE001 - whatever it is, it must not go on as a second zygote
            traceback.print_exc()
            os._exit(1)

    # -- end

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            local_rank = self._running.pop(pid, None)
            if local_rank is not None:  # else an orphan of a worker
                code = os.waitstatus_to_exitcode(status)
                self._send(
                    {"kind": "exit", "pid": pid, "local_rank": local_rank, "code": code, "mono_s": time.monotonic()}
                )

    def _advance_stop(self) -> bool:
        """Take a stop as far as it goes now; whether it is over."""
        assert self._stop_by_s is not None
        if not self._killed and (not self._running or time.monotonic() >= self._stop_by_s):
            self._kill(LAST_WAIT_S)
        if not self._killed:
            return False
        left = self._kill_descendants()
        if (left or self._running) and time.monotonic() < self._stop_by_s:
            return False
        self._stop_by_s, self._killed = None, False
        self._send({"kind": "stopped", "left": left})
        return True

    def _kill(self, wait_s: float) -> None:
        self._killed, self._stop_by_s = True, time.monotonic() + wait_s
        for pid in self._running:
            _signal_group(pid, signal.SIGKILL)

    def _kill_descendants(self) -> list[int]:
        """SIGKILL all there are, reap those that are gone, and name the rest.

        Complete without polling: each one's death, or that of its parent, ends in a SIGCHLD here, and what was forked
        between the look and the kill is found by the look after that.
        """
        found = descendants(self._pid)
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self._reap()
        return found

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the agent is gone; the next receive() says so
            self._channel.send(message)


def _signal_group(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signum)


def _nothing(signum: int, frame: FrameType | None) -> None:
    """set_wakeup_fd has already written its byte."""


def main(fd: int, modules: list[str], at_start: frozenset[str]) -> Callable[[], None] | None:
    """Serve the agent at the other end of the socket `fd`. `at_start`: the modules of a bare python."""
    os.set_inheritable(fd, False)
    channel = Channel(socket.socket(fileno=fd))
    if not modules:
        return Zygote(channel, None).serve()
    from spotrun.launcher.preload import Preload  # and warm.py with it: what cold starts have no use for

    return Zygote(channel, Preload(modules, at_start)).serve()
