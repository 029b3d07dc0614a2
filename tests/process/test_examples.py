"""The examples run as their first lines say, and go on on another number of workers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spotrun.rendezvous.embedded import EmbeddedEtcd

EXAMPLES = Path(__file__).parents[2] / "examples"
SPOTRUN = ("-m", "spotrun")
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs python with these arguments in a folder of the test; what it wrote to stdout."""
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)}

    def run(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, *args], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


def losses(output: str) -> dict[int, float]:
    return {int(step): float(loss) for step, loss in re.findall(r"^step +(\d+)  loss ([\d.]+)", output, re.MULTILINE)}


@pytest.mark.parametrize("name", ["ddp", "fsdp", "plain"])
def test_an_example_runs_alone_and_with_two_workers(run: Run, name: str) -> None:
    script = str(EXAMPLES / f"{name}.py")
    alone = losses(run(script, "--checkpoints=alone"))
    two = losses(run(*SPOTRUN, "--standalone", "--nproc-per-node=2", script, "--checkpoints=two"))
    assert list(alone) == list(two) == [10, 20, 30, 40]


@pytest.mark.parametrize("name", ["ddp", "fsdp", "plain"])
def test_an_example_goes_on_from_its_checkpoint_with_fewer_workers(run: Run, etcd: EmbeddedEtcd, name: str) -> None:
    script, meet = str(EXAMPLES / f"{name}.py"), (f"--rdzv-endpoint={etcd.endpoint}", f"--rdzv-id=example-{name}")
    run(*SPOTRUN, *meet, "--nproc-per-node=2", script, "--epochs=1")
    more = run(*SPOTRUN, *meet, "--fresh", script, "--epochs=2")
    assert more.startswith("goes on after step 20\n")
    assert list(losses(more)) == [30, 40]


def test_the_audit_of_an_example_proves_that_each_sample_was_used_once(run: Run) -> None:
    run(*SPOTRUN, "--standalone", "--nproc-per-node=2", "--audit=audit", str(EXAMPLES / "ddp.py"))
    assert run(*SPOTRUN, "audit", "audit").startswith("exactly once: 2560 samples in 2 whole epochs")
