"""A node that waits above max has the state of the others in its own memory, and takes over without fetching it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from spotrun import events
from tests.jobs import Node, RealJob
from tests.process.test_api import assert_the_same_curve, curve_of_one_process, finish, recomputed, start
from tests.waiting import alive, until

MakeJob = Callable[..., RealJob]


def restored(job: RealJob, round_number: int) -> list[dict[str, Any]]:
    found = [event for event in events.read(job.out.with_suffix(".workers")) if event["kind"] == "restored"]
    return [event for event in found if event["round"] == round_number]


def held(job: RealJob, spare: Node) -> int:
    """The step at which the job is held, once the spare has its state."""
    known = -1

    def same() -> bool:
        nonlocal known
        made = job.steps()[-1]["step"]
        there = spare.events("standby")
        before, known = known, made
        return before == made and made % 25 == 0 and bool(there) and there[-1]["step"] == made

    until("the spare has the step at which the job is held", same, detail=job.tell)
    return known


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_spare_takes_over_from_its_own_memory(make_job: MakeJob, kind: str) -> None:
    """Of a sharded state the killed node's part is nowhere else: there are no replicas."""
    job = make_job(nnodes="2:2", flags=("--replicas=0",))
    nodes = [start(job, name, kind) for name in "ab"]
    job.until_steps(5, world=2)
    spare = start(job, "c", kind)
    until("it waits and follows", lambda: spare.events("standby"), detail=job.tell)
    job.out.with_suffix(".hold").touch()
    step = held(job, spare)
    first = nodes[0].events("round_formed")[-1]
    last = next(node for node in nodes if node.node_id == first["nodes"][-1])
    last.signal(signal.SIGKILL)
    until("its worker dies with it", lambda: not any(map(alive, last.worker_pids())))
    job.out.with_suffix(".hold").unlink()
    until("it takes over", lambda: spare.events("round_formed"), detail=job.tell)
    made = len(job.steps())
    until("the next steps", lambda: len(job.steps()) > made + 5, detail=job.tell)
    assert spare.events("round_formed")[-1]["nodes"][-1] == "c"
    after = restored(job, first["round"] + 1)
    assert [(event["step"], event["source"], event["fetched_bytes"]) for event in after] == [(step, "memory", 0)] * 2
    assert recomputed(job) == 0
    finish(job, [node for node in (*nodes, spare) if node is not last])
    assert_the_same_curve(job, curve_of_one_process())
