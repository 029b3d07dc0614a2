"""`spotrun pool` with real agents: on this machine, and on a real Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.jobs import RealJob
from tests.process.test_api import SCRIPT
from tests.slurm_cluster import slurm
from tests.waiting import until

MakeJob = Callable[..., RealJob]
LINE = ("--nnodes=1:2", "--lease-ttl=4", "--join-window=2", str(SCRIPT))


@pytest.fixture
def pools() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for pool in started:
        pool.kill()
        pool.wait()


def start(
    job: RealJob, pools: list[subprocess.Popen[bytes]], *options: str, environment: dict[str, str] | None = None
) -> Path:
    """A pool that wants two nodes; its log, and theirs where they are on this machine."""
    log = job.dir / f"pool-{len(pools)}.log"
    job.scratch.mkdir(exist_ok=True)
    place = (f"--rdzv-endpoint={job.endpoint}", f"--rdzv-id={job.run_id}", "--want=2")
    command = [sys.executable, "-m", "spotrun", "pool", *place, *options, *LINE, str(job.out), "100000", "0.05", "ddp"]
    environ = {**(environment or os.environ), "OMP_NUM_THREADS": "1", "TMPDIR": str(job.scratch)}
    with log.open("wb") as file:
        pools.append(subprocess.Popen(command, stdout=file, stderr=file, env=environ))
    return log


def agents(job: RealJob) -> dict[str, psutil.Process]:
    """Of this job, by node id."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.NoSuchProcess:
            continue
        if f"--rdzv-id={job.run_id}" in words and "run" in words[:4] and process.status() != psutil.STATUS_ZOMBIE:
            found.update({word[10:]: process for word in words if word.startswith("--node-id=")})
    return found


def until_both_train(job: RealJob, tell: Callable[[], str]) -> None:
    """Two nodes have made steps since now."""
    before = len(job.steps())

    def made() -> bool:
        return len(job.steps()) > before + 5 and [line["world"] for line in job.steps()[-3:]] == [2] * 3

    until("both train", made, 60, detail=tell)


def test_a_killed_node_and_a_killed_pool_are_replaced_and_the_end_of_the_job_ends_all(
    make_job: MakeJob, pools: list[subprocess.Popen[bytes]]
) -> None:
    job = make_job()
    logs = [start(job, pools, "--provider=local")]

    def tell() -> str:
        return "\n".join(log.read_text() for log in logs)

    until_both_train(job, tell)
    nodes = agents(job)
    assert len(nodes) == 2
    logs.append(start(job, pools, "--provider=local"))
    until("the second one waits", lambda: "is active" in logs[1].read_text(), detail=tell)
    pools[0].send_signal(signal.SIGKILL)
    victim = sorted(nodes)[0]
    nodes[victim].send_signal(signal.SIGKILL)
    until("the second one has asked for one", lambda: logs[1].read_text().count("was asked for") == 1, detail=tell)
    until_both_train(job, tell)
    assert victim not in agents(job)
    assert len(agents(job)) == 2
    job.out.with_suffix(".end").touch()
    assert pools[1].wait(60) == 0, tell()
    assert "has ended (succeeded)" in logs[1].read_text()
    assert agents(job) == {}


@pytest.mark.timeout(240)
def test_slurm_replaces_a_node_that_was_cancelled(make_job: MakeJob, pools: list[subprocess.Popen[bytes]]) -> None:
    job = make_job()
    with slurm(3) as cluster:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        options = ("--provider=slurm", "--place=low", f"--sbatch=--output={job.dir}/%x.log")
        log = start(job, pools, *options, environment={**cluster.environment, "PATH": path})

        def tell() -> str:
            nodes = "\n".join(file.read_text()[-2000:] for file in job.dir.glob("pool-*-*.log"))
            return f"{log.read_text()}\n{nodes}\n{cluster.run('squeue')}\n{cluster.tell()}"

        until_both_train(job, tell)
        running = cluster.run("squeue", "--noheader", "--format=%j").split()
        assert len(running) == 2
        cluster.run("scancel", f"--name={running[0]}")
        until("another was asked for", lambda: log.read_text().count("was asked for") == 3, 60, detail=tell)
        until_both_train(job, tell)
        job.out.with_suffix(".end").touch()
        assert pools[0].wait(100) == 0, tell()
        until("no job is left", lambda: not cluster.run("squeue", "--noheader").strip(), 60, detail=tell)
