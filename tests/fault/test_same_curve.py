"""The proof: a world that goes 3 -> 2 -> 4 -> 1 -> 3 by notices, joins and kills gives the curve of one process."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.jobs import Node, RealJob
from tests.process.test_api import assert_the_same_curve, curve, finish, one_process, proof, recomputed, start
from tests.waiting import until

__all__ = ["one_process"]

SAVED_EVERY = 25  # steps, in api_steps.py


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_any_sequence_of_worlds_gives_the_curve_of_one_process(
    make_job: Callable[..., RealJob], one_process: dict[int, float], kind: str
) -> None:
    job = make_job(nnodes="1:4")
    living = {name: start(job, name, kind) for name in "abc"}
    job.until_steps(10, world=3)

    noticed = leave(living, "b", signal.SIGTERM)
    assert noticed.wait() == 0, job.tell()
    job.until_steps(10, world=2)
    assert recomputed(job) == 0, "a noticed node costs no step"

    living |= {name: start(job, name, kind) for name in "de"}
    job.until_steps(10, world=4, deadline_s=90)
    assert recomputed(job) == 0, "a joining node costs no step"

    before = job.steps()[-1]["step"]
    for name in ("a", "c", "d"):
        leave(living, name, signal.SIGKILL)
    job.until_steps(10, world=1, deadline_s=90)
    until("all is made again", lambda: job.steps()[-1]["step"] > before, detail=job.tell)
    lost = recomputed(job)
    if kind == "fsdp":  # under DDP it is the snapshot interval, which follows from what a snapshot costs here
        assert lost <= SAVED_EVERY + 3, f"{lost} steps done again after step {before}"

    living |= {name: start(job, name, kind) for name in "fg"}
    job.until_steps(10, world=3, deadline_s=90)
    assert recomputed(job) == lost, "joining nodes cost no step"
    finish(job, list(living.values()))

    assert_the_same_curve(job, one_process)
    assert len(curve(job)) >= 50
    report = proof(job)
    assert not report.violations, report


def leave(living: dict[str, Node], name: str, signum: signal.Signals) -> Node:
    node = living.pop(name)
    node.signal(signum)
    return node
