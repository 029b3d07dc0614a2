"""What becomes of a notice in a running job, whatever its source; and that an agent outlives what it writes to."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.fakes.clouds import AzureServer
from tests.jobs import RealJob
from tests.process.test_api import MOST, SCRIPT, finish, recomputed
from tests.process.test_drain import start
from tests.waiting import until

MakeJob = Callable[..., RealJob]
ROOT = Path(__file__).parents[2]
SICK_GPU = ROOT / "tests" / "fakes" / "sick_gpu"


def test_a_lost_gpu_drains_its_node_and_azure_hears_that_the_state_is_safe_when_it_is(
    make_job: MakeJob, tmp_path: Path
) -> None:
    sick = tmp_path / "sick"
    with AzureServer() as cloud:
        job = make_job()
        path = os.pathsep.join((str(ROOT), str(SICK_GPU)))
        ill = start(job, "ill", notice="health", env={"PYTHONPATH": path, "SICK_GPU": str(sick)})
        evicted = start(job, "evicted", notice="azure", env={"SPOTRUN_AZURE_METADATA_URL": cloud.url})
        stays = start(job, "stays")
        job.until_steps(5, world=3)
        sick.touch()
        assert ill.wait() == 0, job.tell()
        notice = ill.events("notice")[-1]
        assert (notice["source"], "GPU is lost" in notice["message"]) == ("health", True)
        job.until_steps(5, world=2)
        assert not cloud.approved
        cloud.event("Preempt", in_s=30)
        assert evicted.wait() == 0, job.tell()
        assert len(cloud.approved) == 1
        assert cloud.approved_s[0] >= evicted.events("workers_stopped")[-1]["mono_s"]
        job.until_steps(5, world=1)
        finish(job, [stays])
    assert recomputed(job) == 0, job.tell()
    assert [event["cause"] for event in stays.events("round_formed")[1:]] == ["drained", "drained"]


def test_a_withdrawn_notice_and_that_of_the_last_node_while_the_others_are_on_their_way_out_cost_no_step(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(nnodes="1:2")
    paths = {name: tmp_path / name for name in "ab"}
    script = (str(SCRIPT), str(job.out), str(MOST), "2", "ddp", str(job.dir / "ckpt"))
    nodes = [job.start(name, flags=(f"--notice=file:{paths[name]}",), script=script) for name in "ab"]
    noticed, other = nodes
    job.until_steps(1, world=2)
    paths["a"].write_text("60")
    until("the notice", lambda: noticed.events("notice"), detail=job.tell)
    paths["a"].unlink()  # while its workers still are on their way to the agreed step
    until("the withdrawal", lambda: noticed.events("notice_withdrawn"), detail=job.tell)
    until(
        "a later round of both", lambda: (last := job.steps()[-1])["round"] > 1 and last["world"] == 2, detail=job.tell
    )
    told = len(other.events("workers_told"))
    paths["a"].write_text("60")
    until("the workers know", lambda: len(other.events("workers_told")) > told, detail=job.tell)
    done = job.steps()[-1]["step"]
    until("that is agreed on", lambda: job.steps()[-1]["step"] > done, detail=job.tell)
    paths["b"].write_text("60")
    assert [node.wait() for node in nodes] == [0, 0], job.tell()
    later = start(job, "c")
    job.until_steps(5, world=1)
    finish(job, [later])
    assert recomputed(job) == 0, job.tell()


def test_an_agent_whose_logs_can_not_be_written_any_more_does_its_work_to_the_end(make_job: MakeJob) -> None:
    job = make_job()
    nodes = [job.start(name, steps=200) for name in "abc"]
    job.until_steps(3, world=3)
    full = nodes[0]
    psutil.Process(full.pid).rlimit(psutil.RLIMIT_FSIZE, (0, 0))  # each write to a file fails from now on
    nodes[2].signal(signal.SIGKILL)
    job.until_steps(3, world=2)
    assert [node.wait() for node in nodes[:2]] == [0, 0], job.tell()
    assert len(nodes[1].events("round_formed")) > len(full.events("round_formed")), "it wrote nothing, and went on"
