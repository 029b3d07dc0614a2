"""A slice of the campaign: fixed seeds against a job under DDP, one under FSDP2, and one that pools keep up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fault.figures import JobFigures, load

FAULTS = 8  # a job


def campaign(out: Path, *arguments: str) -> list[JobFigures]:
    """As `make campaign` does it: in a process whose network and mounts are its own, where that is allowed."""
    command = [sys.executable, "-m", "tests.fault.campaign", *arguments, f"--out={out}"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return load([out])


@pytest.mark.timeout(300)
def test_jobs_keep_every_promise_under_the_faults_of_a_seed(tmp_path: Path) -> None:
    jobs = campaign(tmp_path, "--seed=1392", "--jobs=2", f"--faults={FAULTS}")
    assert {job.kind for job in jobs} == {"ddp", "fsdp"}
    assert sum(sum(job.faults.values()) for job in jobs) == 2 * FAULTS


@pytest.mark.timeout(300)
def test_pools_keep_theirs_while_a_node_and_the_active_one_are_killed(tmp_path: Path) -> None:
    (job,) = campaign(tmp_path, "--seed=20681", "--jobs=1", "--faults=2", "--kind=exec")
    assert sum(job.faults.values()) == 2
