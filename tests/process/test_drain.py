"""A noticed node costs the job nothing but a pause, wherever the notice comes from."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from spotrun.launcher import ledger
from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig
from spotrun.rendezvous.keys import Keys
from tests.fakes.clouds import AwsServer
from tests.jobs import Node, RealJob
from tests.process.test_api import MOST, SCRIPT, finish, recomputed
from tests.waiting import until

MakeJob = Callable[..., RealJob]


def start(job: RealJob, name: str, *, notice: str = "none", env: dict[str, str] | None = None) -> Node:
    script = (str(SCRIPT), str(job.out), str(MOST), "0.05", "ddp", str(job.dir / "ckpt"))
    return job.start(name, flags=(f"--notice={notice}",), script=script, env=env)


def spotrun_drain(job: RealJob, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spotrun", "drain", f"--rdzv-endpoint={job.endpoint}", f"--rdzv-id={job.run_id}"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True)


def by_rank(nodes: list[Node]) -> list[Node]:
    order = nodes[0].events("round_formed")[-1]["nodes"]
    return sorted(nodes, key=lambda node: order.index(node.node_id))


def test_a_spot_notice_of_aws_on_the_node_of_rank_0_costs_no_step(make_job: MakeJob) -> None:
    with AwsServer() as quiet, AwsServer() as cloud:
        job = make_job()
        first = start(job, "a", notice="aws", env={"SPOTRUN_AWS_METADATA_URL": cloud.url})
        until("a is in", lambda: first.events("workers_started"), detail=job.tell)
        others = [start(job, name, notice="aws", env={"SPOTRUN_AWS_METADATA_URL": quiet.url}) for name in "bc"]
        job.until_steps(10, world=3)
        assert by_rank([first, *others])[0] is first
        cloud.rebalance()
        until("a save for the rebalance recommendation", lambda: first.events("notice_may"), detail=job.tell)
        cloud.spot(in_s=30)
        assert first.wait() == 0, job.tell()
        job.until_steps(10, world=2)
        finish(job, others)
    assert first.events("notice")[-1]["source"] == "aws"
    assert "this node goes in" in first.output()
    assert recomputed(job) == 0, job.tell()
    formed = others[0].events("round_formed")[-1]
    assert (formed["cause"], formed["restarts"]) == ("drained", 0)


def test_notices_for_two_nodes_at_once_make_one_new_round(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job()
    files = [tmp_path / name for name in "ab"]
    leavers = [start(job, path.name, notice=f"file:{path}") for path in files]
    stays = start(job, "c")
    job.until_steps(10, world=3)
    for path in files:
        path.write_text("30")
    assert [node.wait() for node in leavers] == [0, 0], job.tell()
    job.until_steps(5, world=1)
    finish(job, [stays])
    assert recomputed(job) == 0, job.tell()
    formed = [event["world_size"] for event in stays.events("round_formed")]
    assert formed[-1] == 1
    assert len(formed) <= 3, "one round, or two where the second notice came after the window"


def test_a_notice_without_any_time_left_is_a_loss_that_the_others_survive(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job()
    path = tmp_path / "notice"
    doomed = start(job, "a", notice=f"file:{path}")
    other = start(job, "b")
    job.until_steps(10, world=2)
    path.write_text("0")
    assert doomed.wait() == 0, job.tell()
    job.until_steps(10, world=1)
    finish(job, [other])


def test_slurms_warning_signal_drains(make_job: MakeJob) -> None:
    job = make_job()
    nodes = [start(job, "a", env={"SLURM_JOB_ID": "1"}), start(job, "b")]
    job.until_steps(10, world=2)
    nodes[0].signal(signal.SIGUSR2)
    assert nodes[0].wait() == 75, "so that Slurm queues it again"
    job.until_steps(10, world=1)
    finish(job, nodes[1:])
    assert recomputed(job) == 0, job.tell()


def test_a_node_is_drained_from_anywhere(make_job: MakeJob) -> None:
    job = make_job()
    nodes = [start(job, "node-a"), start(job, "node-b")]
    job.until_steps(10, world=2)
    for wanted, said in (("nobody", "'nobody' is not in the job"), ("node-", "'node-' fits several nodes")):
        refused = spotrun_drain(job, wanted)
        assert refused.returncode == 2
        assert said in refused.stderr
        assert "Traceback" not in refused.stderr
    done = spotrun_drain(job, "node-a", "--deadline=30")
    assert (done.returncode, done.stdout) == (0, f"node-a has left the job {job.run_id}.\n"), done.stderr
    assert nodes[0].wait() == 0
    job.until_steps(10, world=1)
    finish(job, nodes[1:])
    assert recomputed(job) == 0, job.tell()
    with EtcdClient(EtcdConfig((job.endpoint,))) as client:
        found, _ = ledger.of_job(client, Keys(job.run_id))
    (incident,) = [e for e in found if e.what == "incident" and e.detail["cause"] == "drained"]
    names = [phase.name for phase in incident.phases]
    assert names[0] == "notice"
    assert [name for name in names if name != "round"][1:4] == ["agreed", "saved", "left"]
    assert "round" in names, "formed while the workers were still on their way to the agreed step"
    assert names[-2:] == ["restored", "first step"]
    assert incident.cost is not None
    assert (incident.cost.steps_recomputed, incident.cost.samples_recomputed) == (0, 0)
    assert 0 < incident.cost.paused_s <= incident.cost.node_s
    assert any(entry.what == "left" and entry.node == "node-a" and entry.phases for entry in found)
    assert found[-1].what == "job_ended"
