"""A notice never ends in a state that is silently lost; a save that a dying node breaks off is made by the others."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from spotrun.checkpoint import Manifest, list_checkpoints, open_storage
from spotrun.launcher import ledger
from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig
from spotrun.rendezvous.keys import Keys
from tests.jobs import Node, RealJob
from tests.waiting import until

SCRIPT = Path(__file__).parents[1] / "scripts" / "edge_steps.py"
MakeJob = Callable[..., RealJob]


def start(job: RealJob, name: str, checkpoints: str = "edge", env: dict[str, str] | None = None) -> Node:
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), **(env or {})}  # the script uses tests.waiting
    return job.start(name, script=(str(SCRIPT), str(job.out), checkpoints), env=environment)


def saved(job: RealJob) -> list[Manifest]:
    """The whole checkpoints, the newest first."""
    found = list_checkpoints(open_storage(f"{job.out}.checkpoints"))
    return [one.manifest for one in found if one.manifest is not None and one.whole]


def last_step(job: RealJob) -> int:
    return int(job.steps()[-1]["step"])


def test_what_a_dying_node_breaks_off_is_saved_by_those_who_live(make_job: MakeJob) -> None:
    job = make_job(nnodes="1:2")
    hold, hang, die = (job.out.with_suffix(f".{name}") for name in ("hold", "hang", "die"))
    hang.touch()
    nodes = [start(job, name) for name in "ab"]
    job.until_steps(55, world=2)  # the save of step 50 is under way, and stays so
    order = nodes[0].events("round_formed")[-1]["nodes"]
    first, second = sorted(nodes, key=lambda node: order.index(node.node_id))
    second.signal(signal.SIGKILL)
    job.until_steps(5, world=1)
    assert saved(job) == []
    hang.unlink()
    until("the broken save is made up for", lambda: saved(job), detail=job.tell)
    assert saved(job)[0].round == 2 and saved(job)[0].step % 50, "at once, and not when the next one is due"

    third = start(job, "c")
    job.until_steps(5, world=2)
    die.write_text("1")
    hold.touch()
    for node in (first, third):  # nobody is left to hold the state in memory
        node.signal(signal.SIGTERM)
    for node in (first, third):
        until("both nodes' workers know it", lambda node=node: any(e["all"] for e in node.events("workers_told")))
    hold.unlink()
    assert third.wait() == -signal.SIGKILL, "half-way through its shard"
    assert first.wait() == 0, job.tell()
    newest = saved(job)[0]
    assert (newest.step, newest.world_size) == (last_step(job), 1)
    assert not first.events("state_lost")


def test_a_notice_without_a_place_for_the_state_says_what_is_lost(make_job: MakeJob) -> None:
    job = make_job(nnodes="1:2")
    node = start(job, "a", "none")
    job.until_steps(5, world=1)
    node.signal(signal.SIGTERM)
    assert node.wait() == 0, job.tell()
    (lost,) = node.events("state_lost")
    assert (lost["step"], lost["durable_step"]) == (last_step(job), 0)
    assert f"{lost['step']} steps up to step {lost['step']} are lost: there is no checkpoint_dir" in lost["message"]
    assert node.output().count(lost["message"]) == 1
    with EtcdClient(EtcdConfig((job.endpoint,))) as client:
        told = [entry.message for entry in ledger.of_job(client, Keys(job.run_id))[0] if entry.what == "state_lost"]
    assert told == [lost["message"]], "it is in the ledger, too"


def test_a_storage_that_hangs_does_not_keep_a_node_beyond_its_notice(make_job: MakeJob) -> None:
    job = make_job(nnodes="1:2")
    node = start(job, "a", env={"SPOTRUN_GRACE": "5"})
    job.until_steps(60, world=1)
    until("step 50 is saved", lambda: saved(job), detail=job.tell)
    job.out.with_suffix(".hang").touch()
    node.signal(signal.SIGTERM)
    assert node.wait(20) == 0, job.tell()
    (lost,) = node.events("state_lost")
    assert lost["durable_step"] == saved(job)[0].step and lost["durable_step"] % 50 == 0
    assert "was given up after" in lost["message"] and f"step {lost['durable_step']} is the last" in lost["message"]
