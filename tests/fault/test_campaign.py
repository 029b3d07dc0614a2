"""A slice of the campaign: a fixed seed against a job under DDP and one under FSDP2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fault.figures import load

FAULTS = 8  # a job
SEED = 1392


@pytest.mark.timeout(300)
def test_jobs_keep_every_promise_under_the_faults_of_a_seed(tmp_path: Path) -> None:
    """As `make campaign` does it: in a process whose network and mounts are its own, where that is allowed."""
    arguments = (f"--seed={SEED}", "--jobs=2", f"--faults={FAULTS}", f"--out={tmp_path}")
    command = [sys.executable, "-m", "tests.fault.campaign", *arguments]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = load([tmp_path])
    assert {job.kind for job in jobs} == {"ddp", "fsdp"}
    assert sum(sum(job.faults.values()) for job in jobs) == 2 * FAULTS
