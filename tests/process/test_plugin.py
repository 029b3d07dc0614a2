"""Stock torchrun with --rdzv-backend=etcd-v3: the rendezvous as a plug-in, torch's own agents."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from spotrun.rendezvous.embedded import EmbeddedEtcd
from tests.jobs import STEPS, Node, RealJob, descendants

MakeJob = Callable[..., RealJob]
SETTINGS = "join_window=1,lease_ttl=30"  # what is noticed within a test's deadline, no lease has told


@pytest.fixture
def start(etcd: EmbeddedEtcd, make_job: MakeJob) -> Iterator[Callable[..., Node]]:
    """Starts a stock agent of the job `start.job`; workers of theirs do not die with their agent."""
    job = make_job()
    started: list[psutil.Process] = []

    def agent(name: str, steps: int = 100_000) -> Node:
        log = job.dir / f"{name}.log"
        scratch = job.dir / "tmp"
        scratch.mkdir(exist_ok=True)
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=etcd-v3", "--nnodes=1:3"),
            *(f"--rdzv-endpoint={etcd.endpoint}", f"--rdzv-id={job.run_id}", "--nproc-per-node=1"),
            *("--max-restarts=3", f"--rdzv-conf=node_id={name},{SETTINGS}"),
            *(str(STEPS), str(job.out), str(steps), "0.02"),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)}
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
        node = Node(name, process, job.dir / "no-events", log)
        job.nodes.append(node)
        return node

    agent.job = job  # type: ignore[attr-defined]
    yield agent
    for node in job.nodes:
        started += descendants(node.pid)
    for process in started:
        process.kill()


def kill(node: Node) -> None:
    """The agent and its workers, as when a machine goes."""
    workers = descendants(node.pid)
    node.signal(signal.SIGKILL)
    for worker in workers:
        worker.kill()


@pytest.mark.timeout(300)
def test_torchrun_trains_takes_a_node_in_and_survives_the_loss_of_one(start: Callable[..., Node]) -> None:
    job: RealJob = start.job  # type: ignore[attr-defined]
    nodes = [start(name, steps=1500) for name in "ab"]
    job.until_steps(3, world=2)
    nodes.append(start("c", steps=1500))
    job.until_steps(3, world=3)
    kill(nodes[0])
    job.until_steps(3, world=2)
    assert [node.wait(150) for node in nodes[1:]] == [0, 0], job.tell()
    assert [line["step"] for line in job.steps()] == list(range(1, 1501))
    late = start("late", steps=1500)
    assert late.wait() != 0
    assert "RendezvousClosedError" in late.output()


def test_torchrun_is_told_in_words_what_is_wrong_with_the_endpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=etcd-v3", "--nnodes=2"]
    command += ["--rdzv-endpoint=127.0.0.1", "--rdzv-id=job", "never.py"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # torch leaves a folder there
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode != 0
    assert "has no port" in done.stderr
