"""Jobs that use the training API: planned changes cost no step, the curve is that of one process, data are exact."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spotrun import audit
from spotrun.checkpoint import list_checkpoints, open_storage
from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig
from spotrun.rendezvous.keys import Keys
from spotrun.rendezvous.state import Checkpoint, decode
from tests.jobs import Node, RealJob
from tests.waiting import until

SCRIPT = Path(__file__).parents[1] / "scripts" / "api_steps.py"
MakeJob = Callable[..., RealJob]


NEVER = "1000000steps"
MOST = 1500  # steps; a test ends its job long before


def start(job: RealJob, name: str, kind: str = "ddp", save_every: str = "25steps") -> Node:
    where = str(job.dir / "ckpt"), str(job.dir / "audit")
    return job.start(name, script=(str(SCRIPT), str(job.out), str(MOST), "0.05", kind, *where, save_every))


def finish(job: RealJob, nodes: list[Node]) -> None:
    job.out.with_suffix(".end").touch()
    assert [node.wait() for node in nodes] == [0] * len(nodes), job.tell()


def curve(job: RealJob) -> dict[int, float]:
    """The loss of each step as it was last made."""
    return {line["step"]: line["loss"] for line in job.steps()}


def recomputed(job: RealJob) -> int:
    steps = [line["step"] for line in job.steps()]  # read once: the job goes on
    return len(steps) - len(set(steps))


@functools.cache
def curve_of_one_process() -> dict[int, float]:
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out"
        command = [sys.executable, str(SCRIPT), str(out), str(MOST), "0", "plain"]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": directory})
        lines = [json.loads(line) for line in out.read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


@pytest.fixture
def one_process() -> dict[int, float]:
    """The curve without any interruption; made once for all files that this process tests."""
    return curve_of_one_process()


def assert_the_same_curve(job: RealJob, reference: dict[int, float]) -> None:
    made = curve(job)
    assert sorted(made) == list(range(1, len(made) + 1))
    assert all(abs(made[step] - reference[step]) <= 1e-9 * max(1.0, abs(reference[step])) for step in made)


def proof(job: RealJob) -> Any:
    layout, parts = audit.load(job.dir / "audit")
    return audit.check(layout, parts)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_noticed_node_and_a_joining_one_cost_no_step(
    make_job: MakeJob, one_process: dict[int, float], kind: str
) -> None:
    job = make_job()
    nodes = [start(job, name, kind) for name in "abc"]
    job.until_steps(10, world=3)
    pids = {line["pid"] for line in job.steps()}
    order = nodes[0].events("round_formed")[-1]["nodes"]
    leaver = next(node for node in nodes if node.node_id == order[1])
    leaver.signal(signal.SIGTERM)
    assert leaver.wait() == 0, job.tell()
    job.until_steps(10, world=2)
    nodes.append(start(job, "d", kind))
    job.until_steps(10, world=3)
    finish(job, [node for node in nodes if node is not leaver])
    assert recomputed(job) == 0
    if kind == "ddp":
        assert {line["pid"] for line in job.steps()} == pids, "rank 0 went through all rounds in one process"
    assert_the_same_curve(job, one_process)
    assert not proof(job).violations, proof(job)


def test_etcd_has_a_record_of_each_checkpoint_that_there_is(make_job: MakeJob) -> None:
    job = make_job()
    node = start(job, "a")
    keys, storage = Keys(job.run_id), open_storage(job.dir / "ckpt")
    with EtcdClient(EtcdConfig((job.endpoint,))) as client:

        def recorded() -> set[str]:
            found = client.get_prefix(keys.checkpoints)[0]
            return {decode(Checkpoint, kv.value).name for kv in found if kv.key != keys.latest_checkpoint}

        def whole() -> list[str]:
            return [one.name for one in list_checkpoints(storage) if one.whole]

        job.until_steps(110, world=1)  # four saves, of which three are kept
        until("etcd knows those that are kept", lambda: recorded() == set(whole()), detail=job.tell)
        assert len(recorded()) <= 4 and not any("step-00000025" in name for name in recorded())
        finish(job, [node])
        latest = client.get(keys.latest_checkpoint)
        assert latest is not None and decode(Checkpoint, latest.value).name == whole()[0]


def test_a_model_that_is_whole_in_a_world_of_one_is_sharded_in_a_larger_one(
    make_job: MakeJob, one_process: dict[int, float]
) -> None:
    job = make_job()
    first = start(job, "a", "fsdp-of-several")
    job.until_steps(10, world=1)
    second = start(job, "b", "fsdp-of-several")
    job.until_steps(10, world=2)
    second.signal(signal.SIGTERM)
    assert second.wait() == 0, job.tell()
    job.until_steps(10, world=1)
    finish(job, [first])
    assert recomputed(job) == 0
    assert_the_same_curve(job, one_process)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_node_costs_no_more_than_the_steps_since_the_last_snapshot(
    make_job: MakeJob, one_process: dict[int, float], victim: int
) -> None:
    job = make_job()
    nodes = [start(job, name) for name in "abc"]
    job.until_steps(10, world=3)
    order = nodes[0].events("round_formed")[-1]["nodes"]
    doomed = next(node for node in nodes if node.node_id == order[victim])
    survivors = [node for node in nodes if node is not doomed]
    before = {node.node_id: node.worker_pids() for node in survivors}
    doomed.signal(signal.SIGKILL)
    job.until_steps(10, world=2)
    finish(job, survivors)
    assert all(node.worker_pids() == before[node.node_id] for node in survivors), "the survivors' processes went on"
    assert all(node.events("workers_admitted") for node in survivors)
    assert_the_same_curve(job, one_process)
    assert not proof(job).violations, proof(job)


def test_a_killed_node_costs_sharded_training_only_the_steps_since_the_last_copy_on_another(
    make_job: MakeJob, one_process: dict[int, float]
) -> None:
    job = make_job()
    nodes = [start(job, name, "fsdp", NEVER) for name in "abc"]
    job.until_steps(15, world=3)
    order = nodes[0].events("round_formed")[-1]["nodes"]
    doomed = next(node for node in nodes if node.node_id == order[0])
    doomed.signal(signal.SIGKILL)
    job.until_steps(10, world=2)
    rounds = [line["round"] for line in job.steps()]
    assert job.steps()[rounds.index(max(rounds))]["step"] > 1, "nothing was durable: it was in memory, or lost"
    finish(job, [node for node in nodes if node is not doomed])
    assert_the_same_curve(job, one_process)
    assert not proof(job).violations, proof(job)


def test_when_all_workers_of_a_node_die_their_state_lives_on_in_its_agent(
    make_job: MakeJob, one_process: dict[int, float]
) -> None:
    job = make_job(nnodes="1:1", flags=("--nproc-per-node=2", "--max-restarts=1"))
    node = start(job, "a", save_every=NEVER)
    job.until_steps(10, world=2)
    for pid in node.worker_pids():
        os.kill(pid, signal.SIGKILL)
    until("a second round", lambda: job.steps()[-1]["round"] == 2, detail=job.tell)
    assert next(line["step"] for line in job.steps() if line["round"] == 2) > 1, "nothing was durable"
    finish(job, [node])
    assert_the_same_curve(job, one_process)


def test_a_killed_worker_is_charged_and_its_successor_gets_the_state_from_the_others(
    make_job: MakeJob, one_process: dict[int, float]
) -> None:
    job = make_job(nnodes="2:2", flags=("--max-restarts=1",))
    nodes = [start(job, name) for name in "ab"]
    job.until_steps(10, world=2)
    os.kill(nodes[0].worker_pids()[0], signal.SIGKILL)
    until("a second round", lambda: job.steps()[-1]["round"] == 2, detail=job.tell)
    finish(job, nodes)
    last = nodes[0].events("round_formed")[-1]
    assert (last["cause"], last["restarts"]) == ("failed", 1)
    assert_the_same_curve(job, one_process)


def test_when_all_nodes_are_drained_the_state_is_durable_and_the_job_goes_on_later(
    make_job: MakeJob, one_process: dict[int, float]
) -> None:
    job = make_job(nnodes="1:2")
    nodes = [start(job, name) for name in "ab"]
    job.until_steps(10, world=2)
    for node in nodes:
        node.signal(signal.SIGTERM)
    assert [node.wait() for node in nodes] == [0, 0], job.tell()
    done = job.steps()[-1]["step"]
    again = start(job, "c")
    until("steps beyond", lambda: job.steps()[-1]["step"] > done + 5, detail=job.tell)
    finish(job, [again])
    assert recomputed(job) == 0, "nothing was lost"
    assert_the_same_curve(job, one_process)


def test_a_silent_node_does_not_hold_the_others_in_its_collective(make_job: MakeJob) -> None:
    job = make_job()
    nodes = [start(job, name) for name in "abc"]
    job.until_steps(10, world=3)
    silent = nodes[2]
    stopped = [silent.pid, *silent.worker_pids()]
    before = nodes[0].worker_pids()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        job.until_steps(5, world=2)
        assert nodes[0].worker_pids() == before, "the survivors' processes went on"
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    job.until_steps(5, world=3)
    until("it found itself fenced", lambda: silent.events("fenced"))
