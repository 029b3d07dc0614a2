"""Whole jobs on this machine under one launcher or another, so that the same thing is measured on each.

A `JobUnderTest` starts the agents of its nodes, reads what the workers of its script write, and ends every process it
caused, whatever happens: all of them carry the job's folder in their environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

import spotrun
from spotrun import events
from spotrun.launcher.notices.http import ADDRESS_ENV
from spotrun.rendezvous.embedded import EmbeddedEtcd

TRAIN_STEPS = Path(__file__).parent / "train_steps.py"
ROOT = Path(spotrun.__file__).parent.parent  # where the workers find spotrun, too
MARK = "SPOTRUN_BENCH_JOB"  # in the environment of every process of a job
LOOK_S = 0.02
STEADY_STEPS = 25  # a world counts as running when each of its ranks has made this many steps in one process group
GONE_S = 10.0
SERVER_S = 30.0
PORT = "{port}"  # stands for it in what a launcher is started with
TUNED = "last_call_timeout=1,join_timeout=60,keep_alive_interval=1,keep_alive_max_attempt=3"
# A store for torchrun's rendezvous on a host of its own.
STORE = """
import signal, sys
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=True, wait_for_workers=False)
signal.pause()
"""

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Launcher:
    """One row of a comparison: a launcher and its settings."""

    name: str
    what: str
    program: tuple[str, ...]  # after python
    flags: tuple[str, ...] = ()
    etcd: bool = False  # its rendezvous is etcd; else a store in the first node's agent, or `server`
    server: tuple[str, ...] = ()  # after python: what runs beside the nodes, at PORT
    alone: bool = False  # it knows of its own node alone; the scripts find each other by the server
    rdzv_conf: str = ""
    kind: str = "plain"  # what train_steps.py is told
    env: tuple[tuple[str, str], ...] = ()
    limit_s: float = 60.0  # a recovery that takes longer is censored


_SPOTRUN = ("-m", "spotrun", "run")
_TORCHRUN = ("-m", "torch.distributed.run")
_NOSHARE = (("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1"),)
_LIGHTHOUSE = """
import signal, sys
from torchft.coordination import LighthouseServer
server = LighthouseServer(
    "127.0.0.1:" + sys.argv[1], 1, join_timeout_ms=1000, quorum_tick_ms=50, heartbeat_timeout_ms=1000
)
signal.pause()
"""
LAUNCHERS = {
    launcher.name: launcher
    for launcher in (
        Launcher("spotrun", "spotrun, --warm=auto", _SPOTRUN, etcd=True),
        Launcher("spotrun-cold", "spotrun, --warm=off", _SPOTRUN, ("--warm=off",), etcd=True),
        Launcher("spotrun-api", "spotrun, the script uses spotrun.run", _SPOTRUN, etcd=True, kind="api"),
        Launcher(
            "torchrun",
            "torchrun, tuned by hand",
            _TORCHRUN,
            ("--rdzv-backend=c10d", "--monitor-interval=0.05"),
            rdzv_conf=TUNED,
            env=_NOSHARE,
        ),
        Launcher(
            "ft-launcher",
            "ft_launcher of nvidia-resiliency-ext, with torchrun's timers",
            ("-m", "nvidia_resiliency_ext.fault_tolerance.launcher"),
            (
                *("--rdzv-backend=c10d", "--monitor-interval=0.05", "--ft-restart-policy=any-failed"),
                *(
                    "--ignore-missing-fault-tol-cfg",
                    "--ft-workload-check-interval=0.5",
                    "--ft-restart-check-interval=0.5",
                ),
            ),
            rdzv_conf=TUNED,
            env=_NOSHARE,
        ),
        Launcher(
            "torchft",
            "torchft: the script's own process groups are formed anew; torchrun starts the worker of each node",
            _TORCHRUN,
            ("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--monitor-interval=0.05"),
            server=("-c", _LIGHTHOUSE, PORT),
            alone=True,
            kind="torchft",
            env=(("TORCHFT_LIGHTHOUSE", f"http://127.0.0.1:{PORT}"),),
        ),
        Launcher(
            "torchrun-defaults",
            "torchrun, default timers",
            _TORCHRUN,
            ("--rdzv-backend=c10d",),
            env=_NOSHARE,
            limit_s=150.0,
        ),
    )
}


class DidNotHappen(Exception):
    """What was waited for did not come within its limit, or cannot come any more."""


@dataclass
class Node:
    """One agent."""

    index: int
    process: subprocess.Popen[bytes]
    launched_s: float  # monotonic
    events_file: Path
    log: Path
    slot: int  # which of the machine's GPUs are its own
    leaves: bool = False  # its end is wanted

    @property
    def pid(self) -> int:
        return self.process.pid


@dataclass
class JobUnderTest:
    """Use as a context manager; `start` each node, then wait for worlds and make things happen."""

    launcher: Launcher
    nnodes: str  # MIN:MAX
    nproc: int = 1
    step_s: float = 0.02
    save_every: int = 50
    checkpoints: bool = False  # really saves them, in a folder that all nodes share
    script: Path = TRAIN_STEPS
    arguments: tuple[str, ...] | None = None  # of the script, between OUT_FILE and its kind; None: of train_steps.py
    nodes: list[Node] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    last_group: int = 0  # the one that trains now, once somebody has waited for it

    def __enter__(self) -> JobUnderTest:
        self._folder = tempfile.TemporaryDirectory(prefix="spotrun-bench-", ignore_cleanup_errors=True)
        self.dir = Path(self._folder.name)
        self._out = self.dir / "steps.jsonl"
        self._out.touch()
        self._read_bytes = 0
        self._server: subprocess.Popen[bytes] | None = None
        self._etcd = EmbeddedEtcd() if self.launcher.etcd else None
        if self._etcd is not None:
            self._etcd.start()
            self.endpoint = self._etcd.endpoint
        else:
            self.endpoint = f"127.0.0.1:{_free_port()}"
            if self.launcher.server:
                self._start_server()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _uninterrupted():
            self._end_all()
            if self._etcd is not None:
                self._etcd.stop()
            self._folder.cleanup()

    # -- nodes

    def start(self) -> Node:
        """Start one more node. The first holds torchrun's store, and is never the victim."""
        index = len(self.nodes)
        slot = min(set(range(index + 1)) - {node.slot for node in self.staying()})
        log, events_file = self.dir / f"node{index}.log", self.dir / f"node{index}.events"
        launcher = self.launcher
        command = [
            *(sys.executable, *launcher.program, f"--nnodes={'1' if launcher.alone else self.nnodes}"),
            *(f"--nproc-per-node={self.nproc}", "--max-restarts=1000", *launcher.flags),
        ]
        if not launcher.alone:
            command += [f"--rdzv-endpoint={self.endpoint}", "--rdzv-id=bench"]
        if launcher.etcd:
            command += [f"--node-id=node{index}", f"--events={events_file}"]
        elif not launcher.alone:
            is_host = index == 0 and not launcher.server
            conf = [f"is_host={'true' if is_host else 'false'}", launcher.rdzv_conf]
            command.append(f"--rdzv-conf={','.join(filter(None, conf))}")
        arguments = (str(self.step_s), str(self.save_every)) if self.arguments is None else self.arguments
        command += [str(self.script), str(self._out), *arguments, launcher.kind]
        if self.checkpoints:
            command.append(str(self.dir / "checkpoints"))
        (self.dir / "tmp").mkdir(exist_ok=True)
        env = {
            **os.environ,
            **{name: value.replace(PORT, self._port) for name, value in launcher.env},
            MARK: str(self.dir),
            "BENCH_NODE": str(index),
            ADDRESS_ENV: str(self.notice_file(index)),
            "TMPDIR": str(self.dir / "tmp"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "CUDA_VISIBLE_DEVICES": self._devices(slot),
        }
        with log.open("wb") as file:
            launched_s = time.monotonic()
            process = subprocess.Popen(
                command,
                cwd=self.dir,
                env=env,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        node = Node(index, process, launched_s, events_file, log, slot)
        self.nodes.append(node)
        return node

    def _start_server(self) -> None:
        command = [self._port if part == PORT else part for part in self.launcher.server]
        env = {**os.environ, MARK: str(self.dir)}
        quiet = subprocess.DEVNULL
        self._server = subprocess.Popen(
            [sys.executable, *command], env=env, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
        )
        end_s = time.monotonic() + SERVER_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(self._port))):
                return
            if time.monotonic() > end_s or self._server.poll() is not None:
                raise SystemExit(f"{self.launcher.name}: its server did not start")
            time.sleep(LOOK_S)

    @property
    def _port(self) -> str:
        return str(self.endpoint).rpartition(":")[2]

    def notice_file(self, index: int) -> Path:
        """Where that node says how it is told of its end, if it was started with --notice=http."""
        return self.dir / f"node{index}.notice"

    def staying(self) -> list[Node]:
        return [node for node in self.nodes if not node.leaves]

    def _devices(self, slot: int) -> str:
        """The GPUs of that node: its own share where there are enough for the whole job, else none."""
        most, have = int(self.nnodes.rpartition(":")[2]) * self.nproc, visible_gpus()
        if len(have) < most:
            return ""
        return ",".join(have[slot * self.nproc : (slot + 1) * self.nproc])

    def processes(self, node: Node) -> list[psutil.Process]:
        """The agent, its workers, and everything they have started, parents first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            agent = psutil.Process(node.pid)
            return [agent, *agent.children(recursive=True)]
        return []

    def kill_node(self, node: Node) -> None:
        """The sudden end of a machine. torchrun's workers outlive their agent, so they are killed too."""
        node.leaves = True
        doomed = [] if self.launcher.etcd else self.processes(node)[1:]
        node.process.kill()
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _end_all(self) -> None:
        end_s = time.monotonic() + GONE_S
        while True:  # until a look finds none: what is killed may have been starting another
            left = [process for process in psutil.process_iter() if _belongs(process, str(self.dir))]
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            if not left:
                for child in (*(node.process for node in self.nodes), *([self._server] if self._server else [])):
                    child.wait(GONE_S)
                return
            if time.monotonic() > end_s:
                raise SystemExit(f"processes {[process.pid for process in left]} do not end")
            time.sleep(LOOK_S)

    # -- what the workers did

    def look(self) -> list[Line]:
        """All lines so far."""
        with self._out.open("rb") as file:
            file.seek(self._read_bytes)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        self.lines += [json.loads(line) for line in whole.splitlines()]
        return self.lines

    def until_world(self, size: int, limit_s: float, after_group: int = 0) -> int:
        """Wait until `size` ranks train steadily in a group later than `after_group`; that group.

        Raises DidNotHappen at the limit, or when a node that should stay has ended.
        """

        counts: dict[int, dict[int, int]] = {}
        looked = 0

        def found() -> int:
            nonlocal looked
            for line in self.look()[looked:]:
                looked += 1
                if line["what"] == "step" and line["world"] == size and line["group"] > after_group:
                    ranks = counts.setdefault(line["group"], {})
                    ranks[line["rank"]] = ranks.get(line["rank"], 0) + 1
            steady = [group for group, r in counts.items() if len(r) == size and min(r.values()) >= STEADY_STEPS]
            return min(steady, default=0)

        return self.until(f"a world of {size}", found, limit_s)

    def until(self, what: str, condition: Callable[[], int], limit_s: float) -> int:
        end_s = time.monotonic() + limit_s
        while not (value := condition()):
            for node in self.nodes:
                if node.process.poll() is not None and not node.leaves:
                    raise DidNotHappen(f"{what}: node {node.index} ended with code {node.process.returncode}")
            if time.monotonic() > end_s:
                raise DidNotHappen(f"{what}: not within {limit_s:g} s")
            time.sleep(LOOK_S)
        return value

    def events(self, node: Node) -> list[dict[str, Any]]:
        """What the agent recorded; none for torchrun."""
        return events.read(node.events_file)

    def tell(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"--- node {n.index}\n{n.log.read_text(errors='replace')[-2000:]}" for n in self.nodes)


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name."""
    import torch

    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    return [str(index) for index in range(torch.cuda.device_count())]


def _belongs(process: psutil.Process, folder: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == folder
    except (psutil.Error, OSError):
        return False


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until what is inside is done."""
    came: list[int] = []
    before = {sig: signal.signal(sig, lambda number, _: came.append(number)) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
    if came:
        raise KeyboardInterrupt


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
