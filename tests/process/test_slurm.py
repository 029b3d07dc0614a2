"""What `spotrun submit slurm` submits, on a real Slurm: nodes are preempted, lost, cancelled; the rest train on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.jobs import RealJob
from tests.process.test_api import MOST, SCRIPT, assert_the_same_curve, one_process, recomputed
from tests.slurm_cluster import Slurm, slurm
from tests.waiting import until

__all__ = ["one_process"]
MakeJob = Callable[..., RealJob]
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def cluster() -> Iterator[Slurm]:
    with slurm(4) as made:
        yield made


def submit(cluster: Slurm, job: RealJob, *options: str) -> str:
    """The id of the array, or of the job."""
    command = [
        *(sys.executable, "-m", "spotrun", "submit", "slurm", *options),
        *(f"--sbatch=--output={job.dir}/%a.log", f"--rdzv-endpoint={job.endpoint}", "--join-window=2"),
        *(str(SCRIPT), str(job.out), str(MOST), "0.05", "ddp", str(job.dir / "ckpt")),
    ]
    job.scratch.mkdir(exist_ok=True)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**cluster.environment, "PATH": path, "OMP_NUM_THREADS": "1", "TMPDIR": str(job.scratch)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def of_state(cluster: Slurm, array: str, state: str) -> list[str]:
    return [element for element, is_in in cluster.states(array).items() if is_in == state]


def logs(cluster: Slurm, job: RealJob) -> str:
    found = "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted(job.dir.glob("*.log")))
    return f"{found}\n{cluster.run('squeue', '-r')}\n{cluster.tell()}"


def steps_of(cluster: Slurm, job: RealJob, world: int) -> None:
    def made() -> bool:
        return [line["world"] for line in job.steps()[-5:]] == [world] * 5

    until(f"steps of {world} nodes", made, 60, detail=partial(logs, cluster, job))


def test_an_array_survives_preemption_a_lost_node_and_scancel_with_the_same_curve(
    cluster: Slurm, make_job: MakeJob, one_process: dict[int, float]
) -> None:
    job = make_job()
    tell = partial(logs, cluster, job)

    def start_now(elements: list[str]) -> None:
        """Instead of two minutes after it was queued again; in the very second of its end slurmd would refuse it."""
        for element in elements:
            until(f"{element} waits", lambda e=element: cluster.states(e).get(e) == "PENDING", 60, detail=tell)
            cluster.run("scontrol", "update", f"jobid={element}", "StartTime=now+3")

    array = submit(cluster, job, "--name=grows", "--nodes=1:4")
    steps_of(cluster, job, 4)
    everything = set(of_state(cluster, array, "RUNNING"))
    assert len(everything) == 4

    urgent = cluster.run("sbatch", "-p", "high", "-N", "2", "-o", "/dev/null", "--wrap", "sleep 600").split()[-1]
    steps_of(cluster, job, 2)
    assert recomputed(job) == 0, "those who were preempted left after an agreed step"
    preempted = until(
        "two elements wait",
        lambda: waiting if len(waiting := of_state(cluster, array, "PENDING")) == 2 else None,
        60,
        detail=tell,
    )
    cluster.run("scancel", urgent)
    start_now(preempted)
    steps_of(cluster, job, 4)
    assert {cluster.field(element, "Restarts") for element in preempted} == {"1"}
    assert {cluster.field(element, "Restarts") for element in everything - set(preempted)} == {"0"}

    cluster.run("scancel", preempted[0])
    steps_of(cluster, job, 3)
    assert recomputed(job) == 0
    until(
        "it is not queued again",
        lambda: preempted[0] not in of_state(cluster, array, "COMPLETING"),
        detail=tell,
    )
    assert cluster.states(array).get(preempted[0]) in (None, "CANCELLED")

    lost = preempted[1]
    node = cluster.field(lost, "NodeList")
    cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    steps_of(cluster, job, 2)
    until(f"{lost} waits", lambda: cluster.states(lost).get(lost) == "PENDING", 60, detail=tell)

    job.out.with_suffix(".end").touch()
    until("the array has ended", lambda: not of_state(cluster, array, "RUNNING"), 60, detail=tell)
    until(
        "what waits is not wanted",
        lambda: not of_state(cluster, array, "PENDING"),
        10,
        detail=tell,
    )
    assert_the_same_curve(job, one_process)


def test_one_job_that_must_not_be_killed_goes_on_without_a_machine_that_is_gone_with_the_same_curve(
    cluster: Slurm, make_job: MakeJob, one_process: dict[int, float]
) -> None:
    job = make_job()
    tell = partial(logs, cluster, job)
    number = submit(cluster, job, "--name=shrinks", "--nodes=1:3", "--shape=no-kill")
    steps_of(cluster, job, 3)
    nodes = cluster.run("scontrol", "show", "hostnames", cluster.field(number, "NodeList")).split()
    lost = next(node for node in nodes if node != cluster.field(number, "BatchHost"))
    cluster.lose(lost)
    steps_of(cluster, job, 2)
    until("Slurm knows", lambda: "down" in cluster.run("sinfo", "-h", "-n", lost, "-o", "%T"), 60, detail=tell)
    steps_of(cluster, job, 2)
    assert cluster.states(number) == {number: "RUNNING"}
    job.out.with_suffix(".end").touch()
    until("the job has ended", lambda: cluster.states(number).get(number) in (None, "COMPLETED"), 60, detail=tell)
    assert_the_same_curve(job, one_process)
