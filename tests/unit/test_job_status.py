"""How a job stands, and how that looks in 80 columns."""

from __future__ import annotations

import dataclasses
import json

import pytest
from rich.console import Console

from spotrun.cli.status_view import WIDTH, view
from spotrun.launcher.job_status import Found, JobStatus, latest, status_of
from spotrun.launcher.ledger import Cost, Entry
from spotrun.rendezvous.state import (
    Drain,
    GpuVitals,
    Job,
    Member,
    Node,
    Outcome,
    Progress,
    Quarantine,
    Round,
    Vitals,
)

GIB = 1 << 30
NODES = tuple(Node(name, f"{name}-1", "10.0.0.1", 1, 2, 8, labels={"zone": "eu-1a"}) for name in "abc")
MEMBERS = tuple(Member(node.node_id, node.incarnation, 8) for node in NODES[:2])
ROUND = Round(4, MEMBERS, "h", 1, "lost", "d lost", 1, "a-1")


def word(name: str, step: int, **changes: object) -> Progress:
    made = Progress(name, f"{name}-1", 4, (step,) * 8, step * 64, 0.5, 2.25, step, 100)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


FOUND = Found(
    run_id="llm",
    job=Job(1, 2, 3),
    nodes=NODES,
    round=ROUND,
    outcome=None,
    drains={"b": Drain("b", 30.0, "aws")},
    progress={
        "a": word("a", 121, data_share=0.3, last_replica_step=121),
        "b": word("b", 120, data_share=0.5, checkpoint_share=0.02, last_replica_step=119),
    },
    vitals={
        "a": Vitals("a", 0.5, 0.4, 16 * GIB, 4 * GIB, (GpuVitals(0, 0.9, 80, 60, 50), GpuVitals(1, 0.8, 80, 60, 50)))
    },
    quarantine=(Quarantine("z", "3 failures within 600 s"),),
    ledger=(
        Entry("1", "round_formed", "a", 1000.0, round=1),
        Entry(
            "2",
            "incident",
            "a",
            1005.0,
            round=1,
            cost=Cost(5.0, 0, 0, 15.0),
            detail={"cause": "start", "nodes": "a,b,d"},
        ),
        Entry(
            "3",
            "incident",
            "a",
            1050.0,
            round=4,
            cost=Cost(3.0, 4, 256, 10.0),
            detail={"cause": "lost", "nodes": "a,b"},
        ),
    ),
    durable_step=110,
    revision=7,
)


def shown(job: JobStatus) -> str:
    console = Console(width=WIDTH, no_color=True, force_terminal=False, record=False)
    with console.capture() as captured:
        console.print(view(job))
    return captured.get()


def test_a_job_is_as_far_as_its_slowest_node() -> None:
    job = status_of(FOUND, wall_s=1100.0)
    assert (job.state, job.step, job.samples, job.loss) == ("training", 120, 7680, 2.25)
    assert (job.snapshot_step, job.durable_step) == (120, 110)
    assert (job.incidents, job.paused_s, job.steps_recomputed) == (1, 8.0, 4), "the start is no incident, but a pause"
    assert job.goodput == 0.9, "10 s of 100 came to nothing"
    assert [node.state for node in job.nodes] == ["training", "leaving", "spare"]
    assert [node.first_rank for node in job.nodes] == [0, 8, None]
    assert json.loads(job.to_json())["nodes"][1]["seconds_left"] == 30.0


def test_time_that_went_into_saves_is_no_goodput_while_it_runs_and_when_it_was_stopped() -> None:
    saving = {name: dataclasses.replace(it, checkpoint_s=20.0) for name, it in FOUND.progress.items()}
    assert status_of(dataclasses.replace(FOUND, progress=saving), wall_s=1100.0).goodput == pytest.approx(0.7)
    left = Entry("4", "left", "a", 1099.0, round=4, detail={"checkpoint_s": "15.0"})
    stopped = Entry("5", "stopped", "", 1100.0)
    ended = dataclasses.replace(
        FOUND, progress={}, outcome=Outcome("stopped", "", "x"), ledger=(*FOUND.ledger, left, stopped)
    )
    assert status_of(ended, wall_s=99999.0).goodput == pytest.approx(0.75)


def test_a_running_job_is_told_of_up_to_now() -> None:
    found = latest(FOUND, 1100.0)
    assert [(it.node, it.wall_s, it.round, it.step) for it in found] == [("a", 1100.0, 4, 121), ("b", 1100.0, 4, 120)]
    assert found[1].detail["data_share"] == "0.5"
    assert latest(dataclasses.replace(FOUND, outcome=Outcome("stopped", "", "x")), 1100.0) == []


def test_a_missing_member_makes_the_job_wait_and_its_end_is_its_state() -> None:
    assert status_of(dataclasses.replace(FOUND, nodes=NODES[:1])).state == "waiting"
    ended = dataclasses.replace(FOUND, nodes=(), outcome=Outcome("succeeded", "all workers finished", "a"))
    assert status_of(ended).state == "succeeded"


def test_a_job_before_its_first_round_has_nothing_else_to_tell() -> None:
    empty = Found("new", Job(2, 4, 0), NODES[:1], None, None, {}, {}, {}, (), (), None, 1)
    job = status_of(empty, wall_s=1.0)
    assert (job.step, job.goodput, job.shares) == (None, None, {})
    assert shown(job).splitlines()[0] == "new  waiting  1 node of 2 to 4 here"


def test_it_fits_into_80_columns_without_colours() -> None:
    text = shown(status_of(FOUND, wall_s=1100.0))
    assert "\x1b" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    for part in ("llm  training  round 4", "step 120  2.00 steps/s  loss 2.25", "goodput 90.0%", "leaving 30 s", "0-7"):
        assert part in text
    assert "saved: 120 in memory, 119 on several nodes, 110 durable" in text
    for part in ("2 x 85%", "40%", "75%", "eu-1a", "kept out: z (3 failures within 600 s)"):
        assert part in text


def test_waiting_for_data_is_told_with_a_remedy_once_it_is_much() -> None:
    assert "40% of each step is waiting for data: give job.batches more num_workers" in shown(status_of(FOUND, 1100.0))
    quick = {name: dataclasses.replace(it, data_share=0.1) for name, it in FOUND.progress.items()}
    assert "num_workers" not in shown(status_of(dataclasses.replace(FOUND, progress=quick), 1100.0))


def test_long_names_and_many_nodes_do_not_break_the_table() -> None:
    names = [f"node-with-a-very-long-name-indeed-{number:04d}" for number in range(100)]
    nodes = tuple(dataclasses.replace(NODES[0], node_id=name, incarnation=name) for name in names)
    text = shown(status_of(dataclasses.replace(FOUND, nodes=nodes, run_id="r" * 50), 1100.0))
    assert text.splitlines()[1].rstrip() == "round 4, world size 16 (d lost)"
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "and 60 more" in text
