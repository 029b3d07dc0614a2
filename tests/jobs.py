"""Real jobs for the process and fault tests: each node is a real agent process, its etcd is real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from spotrun import events
from tests.waiting import DEADLINE_S, alive, until

STEPS = Path(__file__).parent / "scripts" / "steps.py"


@dataclass
class Node:
    """One agent."""

    node_id: str
    process: subprocess.Popen[bytes]
    events_file: Path
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in events.read(self.events_file) if event["kind"] == kind]

    def worker_pids(self) -> list[int]:
        started = self.events("workers_started")
        return list(started[-1]["pids"]) if started else []

    def signal(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        return self.process.wait(timeout_s)

    def output(self) -> str:
        return self.log.read_text(errors="replace")


@dataclass
class RealJob:
    """A job of real agents; `stop` kills what is left of them."""

    endpoint: str
    dir: Path
    run_id: str = "job"
    nnodes: str = "1:3"
    flags: tuple[str, ...] = ()
    nodes: list[Node] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.dir / "steps.jsonl"

    @property
    def scratch(self) -> Path:
        """The nodes' temporary directory, where torch leaves its error files.

        Its path is longer than the address of a Unix socket may be, as on many clusters.
        """
        return self.dir / ("tmp-" + "x" * 100)

    def start(
        self,
        node_id: str,
        *,
        nproc: int = 1,
        steps: int = 100_000,
        step_s: float = 0.02,
        flags: tuple[str, ...] = (),
        script: tuple[str, ...] | None = None,
        env: dict[str, str] | None = None,
        within: tuple[str, ...] = (),
    ) -> Node:
        """`within`: a command that runs another one in its own place, such as that of a network namespace."""
        count = len(self.nodes)
        log, events_file = self.dir / f"{count}-{node_id}.log", self.dir / f"{count}-{node_id}.events"
        command = [
            *within,
            *(sys.executable, "-m", "spotrun", "run", f"--nnodes={self.nnodes}", f"--nproc-per-node={nproc}"),
            *(f"--rdzv-endpoint={self.endpoint}", f"--rdzv-id={self.run_id}", f"--node-id={node_id}"),
            *(f"--events={events_file}", "--lease-ttl=4", "--join-window=2", *self.flags, *flags),
            *(script or (str(STEPS), str(self.out), str(steps), str(step_s))),
        ]
        # Longer than the address of a Unix socket may be, as on many clusters.
        scratch = self.dir / (
            "tmp-" + "x" * 100
        )  # torch keeps its error files in the temporary directory, and leaves them there
        scratch.mkdir(exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch), **(env or {})}
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
        node = Node(node_id, process, events_file, log)
        self.nodes.append(node)
        return node

    def steps(self) -> list[dict[str, Any]]:
        lines = self.out.read_bytes().split(b"\n")[:-1] if self.out.exists() else []
        return [json.loads(line) for line in lines]

    def until_steps(self, count: int, world: int, deadline_s: float = DEADLINE_S) -> list[dict[str, Any]]:
        """Wait until the newest `count` steps were made by `world` workers in one round."""

        def enough() -> list[dict[str, Any]]:
            last = self.steps()[-count:]
            same = {(line["world"], line["round"]) for line in last}
            return last if len(last) == count and len(same) == 1 and last[0]["world"] == world else []

        return until(f"{count} steps of {world} workers", enough, deadline_s, detail=self.tell)

    def tell(self) -> str:
        """The ends of all logs, for a failed test."""
        return "\n".join(f"--- {node.node_id} ({node.process.poll()})\n{node.output()[-3000:]}" for node in self.nodes)

    def stop(self) -> None:
        for node in self.nodes:
            if node.process.poll() is None:
                node.process.send_signal(signal.SIGCONT)
                node.process.kill()
            node.process.wait()
        for node in self.nodes:
            for pid in node.worker_pids():
                until(f"worker {pid} of {node.node_id} died with its agent", lambda pid=pid: not alive(pid), 10)


@contextmanager
def real_job(endpoint: str, directory: Path, **settings: Any) -> Iterator[RealJob]:
    job = RealJob(endpoint, directory, **settings)
    try:
        yield job
    finally:
        job.stop()


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
