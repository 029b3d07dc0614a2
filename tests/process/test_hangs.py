"""Workers that hang are noticed, looked into, and started anew; a rank that is busy with something else is not hung."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.jobs import RealJob
from tests.process import test_api

SCRIPT = Path(__file__).parents[1] / "scripts" / "hanging.py"


def test_the_rank_that_hangs_is_named_with_its_stack_and_the_job_goes_on_for_one_restart(
    make_job: Callable[..., RealJob],
) -> None:
    job = make_job(nnodes="2:2", flags=("--hang-timeout=2", "--max-restarts=1"))
    nodes = [job.start(name, script=(str(SCRIPT), str(job.out), "40")) for name in "ab"]
    assert [node.wait() for node in nodes] == [0, 0], job.tell()
    formed = nodes[0].events("round_formed")
    assert [(event["cause"], event["restarts"]) for event in formed] == [("start", 0), ("hung", 1)], job.tell()
    assert "the others wait for rank 1 on 127.0.0.1 (after step 20, hanging.py:" in formed[1]["reason"]
    assert "in never_returns" in formed[1]["reason"]
    hangs = next(node for node in nodes if node.node_id == formed[0]["nodes"][1])
    assert "in never_returns" in hangs.output().partition("File ")[2], "all of its stack, by faulthandler"
    assert job.steps()[-1]["step"] == 40
    assert [line["step"] for line in job.steps()] == sorted({line["step"] for line in job.steps()}), "no step is lost"


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_workers_do_not_wait_for_one_that_stands_still_on_its_way_out(
    make_job: Callable[..., RealJob], tmp_path: Path, kind: str
) -> None:
    """So it is, too, with a machine that vanishes between its notice and the agreed step, and closes no connection."""
    job, notice = make_job(nnodes="1:2"), tmp_path / "notice"
    script = (str(test_api.SCRIPT), str(job.out), str(test_api.MOST), "0.05", kind, str(job.dir / "ckpt"))
    stays = job.start("a", script=script)
    leaves = job.start("b", script=script, flags=(f"--notice=file:{notice}",))
    job.until_steps(10, world=2)
    (worker,) = leaves.events("workers_started")[-1]["pids"]
    os.kill(worker, signal.SIGSTOP)
    notice.write_text("120")
    job.until_steps(5, world=1)
    leaves.signal(signal.SIGKILL)
    test_api.finish(job, [stays])
    formed = stays.events("round_formed")[-1]
    assert (formed["cause"], formed["restarts"]) == ("drained", 0), job.tell()
    assert "they leave it at once" in stays.output()
    if kind == "ddp":  # FSDP goes back to the last snapshot of which there are copies here
        assert test_api.recomputed(job) == 0, job.tell()
