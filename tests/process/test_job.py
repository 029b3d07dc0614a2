"""Real agents, real etcd, real collectives: what the job does when nodes die, leave, fall silent and come."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.jobs import Node, RealJob, descendants
from tests.waiting import alive, until

MakeJob = Callable[..., RealJob]


def order(node: Node) -> list[str]:
    return list(node.events("round_formed")[-1]["nodes"])


def started(job: RealJob, size: int, nproc: int = 1) -> list[Node]:
    nodes = [job.start("abc"[i], nproc=nproc) for i in range(size)]
    job.until_steps(5, world=size * nproc)
    return nodes


@pytest.mark.parametrize(("victim", "nproc", "size"), [(0, 1, 3), (2, 1, 3), (0, 2, 2), (1, 2, 2)])
def test_the_survivors_of_a_killed_node_train_on(make_job: MakeJob, victim: int, nproc: int, size: int) -> None:
    job = make_job(nnodes=f"1:{size}")
    nodes = started(job, size, nproc)
    before = order(nodes[0])
    doomed = next(node for node in nodes if node.node_id == before[victim])
    workers = doomed.worker_pids()
    doomed.signal(signal.SIGKILL)
    job.until_steps(5, world=(size - 1) * nproc)
    until("the killed agent's workers die with it", lambda: not any(map(alive, workers)))
    survivor = next(node for node in nodes if node is not doomed)
    last = survivor.events("round_formed")[-1]
    assert last["nodes"] == [name for name in before if name != doomed.node_id], "survivors keep their order"
    assert (last["cause"], last["restarts"]) == ("lost", 0), "a lost node is not a failure"


def test_a_terminated_agent_tells_the_others_and_leaves(make_job: MakeJob) -> None:
    job = make_job()
    nodes = started(job, 3)
    nodes[1].signal(signal.SIGTERM)
    assert nodes[1].wait() == 0
    job.until_steps(5, world=2)
    last = nodes[0].events("round_formed")[-1]
    assert (last["cause"], last["restarts"]) == ("drained", 0)
    assert "Traceback" not in nodes[1].output()


def test_a_silent_node_is_noticed_by_its_lease_and_comes_back_as_a_newcomer(make_job: MakeJob) -> None:
    job = make_job()
    nodes = started(job, 3)
    silent = nodes[1]
    workers = silent.worker_pids()
    stopped = [silent.pid, *(child.pid for child in descendants(silent.pid))]
    assert set(workers) <= set(stopped)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    job.until_steps(5, world=2)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    job.until_steps(5, world=3)
    assert silent.events("fenced"), "it found itself fenced"
    assert order(nodes[0])[-1] == silent.node_id, "newcomers follow the survivors"
    assert not any(map(alive, workers)), "what the fenced workers did no longer counts"


def test_a_node_that_joins_is_taken_in(make_job: MakeJob) -> None:
    job = make_job()
    nodes = started(job, 2)
    job.start("z")
    job.until_steps(5, world=3)
    last = nodes[0].events("round_formed")[-1]
    assert (last["cause"], last["nodes"][-1], last["restarts"]) == ("joined", "z", 0)


def test_a_spare_above_max_takes_over(make_job: MakeJob) -> None:
    job = make_job(nnodes="2:2")
    nodes = started(job, 2)
    spare = job.start("spare")
    until("the spare is a member", lambda: spare.output() or spare.process.poll() is None)
    nodes[0].signal(signal.SIGKILL)
    until("a round with the spare", lambda: spare.events("workers_started"), detail=job.tell)
    job.until_steps(5, world=2)
    assert order(spare)[-1] == "spare"


def test_below_min_the_job_waits_and_goes_on_when_a_node_comes(make_job: MakeJob) -> None:
    job = make_job(nnodes="2:3")
    nodes = started(job, 2)
    nodes[0].signal(signal.SIGKILL)
    until("it says for what it waits", lambda: nodes[1].events("waiting"), detail=job.tell)
    assert nodes[1].process.poll() is None
    job.start("late")
    job.until_steps(5, world=2)


def test_a_job_that_finishes_ends_on_every_node(make_job: MakeJob) -> None:
    job = make_job(nnodes="2:2")
    nodes = [job.start(name, steps=20) for name in "ab"]
    assert [node.wait() for node in nodes] == [0, 0], job.tell()
    assert [line["step"] for line in job.steps()] == list(range(1, 21))
    late = job.start("late", steps=20)
    assert late.wait() == 4
    assert "has already ended (succeeded" in late.output()
    assert "Traceback" not in late.output()
    again = [job.start(name, steps=25, flags=("--fresh",)) for name in "ab"]
    assert [node.wait() for node in again] == [0, 0], job.tell()


def test_a_genuine_failure_is_charged_once_to_the_whole_job(make_job: MakeJob) -> None:
    job = make_job(nnodes="2:2", flags=("--max-restarts=1",))
    script = (str(Path(__file__).parents[1] / "scripts" / "steps.py"), str(job.out), "30", "0.01", "--fail-at", "10:1")
    nodes = [job.start(name, script=script) for name in "ab"]
    assert [node.wait() for node in nodes] == [0, 0], job.tell()
    last = nodes[0].events("round_formed")[-1]
    assert (last["cause"], last["restarts"], last["round"]) == ("failed", 1, 2)


def test_without_restarts_left_every_node_reports_the_root_cause(make_job: MakeJob) -> None:
    job = make_job(nnodes="2:2")
    script = (str(Path(__file__).parents[1] / "scripts" / "steps.py"), str(job.out), "30", "0.01", "--fail-at", "10:1")
    nodes = [job.start(name, script=script) for name in "ab"]
    assert [node.wait() for node in nodes] == [1, 1], job.tell()
    for node in nodes:
        ended = node.events("job_ended")[-1]
        assert ended["state"] == "failed"
        assert "rank 1 failed" in ended["reason"]
        report = node.output()[node.output().index("Root Cause") :]
        assert "rank      : 1 " in report


def test_settings_that_disagree_are_refused_with_both_values(make_job: MakeJob) -> None:
    job = make_job(nnodes="1:3")
    started(job, 1)
    job.nnodes = "1:2"
    other = job.start("other")
    assert other.wait() == 4
    assert "runs with max_nodes = 3, this node was started with 2" in other.output()
    assert "Traceback" not in other.output()


def test_a_second_node_of_the_same_name_is_refused(make_job: MakeJob) -> None:
    job = make_job()
    started(job, 1)
    twin = job.start("a", flags=("--lease-ttl=2",))
    assert twin.wait() == 4
    assert "A node named 'a' is already in the job" in twin.output()


def test_all_nodes_killed_and_started_again_resume_the_same_job(make_job: MakeJob) -> None:
    job = make_job(nnodes="2:2")
    nodes = started(job, 2)
    done = job.steps()[-1]["step"]
    for node in nodes:
        node.signal(signal.SIGKILL)
    for node in nodes:
        node.process.wait()
    again = [job.start(name) for name in "ab"]
    until("a later round", lambda: again[0].events("workers_started"), detail=job.tell)
    until("steps beyond the last", lambda: job.steps()[-1]["step"] > done + 5, detail=job.tell)
    assert again[0].events("round_formed")[-1]["round"] > 1


def test_the_workers_environment_is_that_of_torchrun(make_job: MakeJob, tmp_path: Path) -> None:
    script = tmp_path / "env.py"
    script.write_text(
        "import json, os, sys\njson.dump(dict(os.environ), open(sys.argv[1] + os.environ['RANK'], 'w'))\n"
    )
    job = make_job(nnodes="1:1")
    node = job.start("a", nproc=2, script=(str(script), str(tmp_path / "ours")))
    assert node.wait() == 0, job.tell()
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(job.scratch)}
    subprocess.run([*command, str(script), str(tmp_path / "theirs")], check=True, env=environment, capture_output=True)
    here = {
        "MASTER_PORT",
        "MASTER_ADDR",
        "TORCHELASTIC_RUN_ID",
        "TORCHELASTIC_ERROR_FILE",
        "TORCHELASTIC_SIGNALS_TO_HANDLE",
    }
    for rank in "01":
        ours, theirs = (json.loads((tmp_path / f"{who}{rank}").read_text()) for who in ("ours", "theirs"))
        assert ours.keys() >= theirs.keys()
        different = {name for name in theirs if ours[name] != theirs[name]}
        assert different <= here, {name: (ours[name], theirs[name]) for name in different - here}
        assert all(name.startswith("SPOTRUN_") for name in ours.keys() - theirs.keys())
