"""Workers that hang are noticed, looked into, and started anew; a rank that is busy with something else is not hung."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.jobs import RealJob

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
