"""Nodes and commands of two versions of the protocol: real agents of a copy of the package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from spotrun.errors import VersionRefused
from spotrun.rendezvous.state import PROTOCOL
from tests.jobs import RealJob
from tests.other_version import OTHER, OtherSpotrun, other_version
from tests.waiting import until

MakeJob = Callable[..., RealJob]


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> OtherSpotrun:
    return other_version(tmp_path_factory.mktemp("newer"))


def refusal(job: RealJob, theirs: int, ours: int) -> str:
    return (
        f"spotrun: The job {job.run_id!r} runs with version {theirs} of the protocol, this spotrun speaks {ours}: "
        "use the spotrun of its nodes, or another --rdzv-id.\n"
    )


@pytest.mark.parametrize("first", ["ours", "newer"])
def test_a_node_of_another_version_is_refused_and_the_job_goes_on(
    make_job: MakeJob, newer: OtherSpotrun, first: str
) -> None:
    job = make_job()
    theirs: dict[str, Any] = {"within": newer.within, "env": newer.env}
    inside, outside = ({}, theirs) if first == "ours" else (theirs, {})
    members = [job.start(name, **inside) for name in ("a", "b")]
    job.until_steps(5, world=2)
    rounds = [len(node.events("round_formed")) for node in members]  # two, where one of them came late
    late = job.start("late", **outside)
    assert late.wait() == VersionRefused.exit_code, job.tell()
    versions = (PROTOCOL, OTHER) if first == "ours" else (OTHER, PROTOCOL)
    assert late.output() == refusal(job, *versions)
    before = len(job.steps())
    until("the job goes on", lambda: len(job.steps()) > before + 5, detail=job.tell)
    assert [len(node.events("round_formed")) for node in members] == rounds, job.tell()
    assert not any("left out" in node.output() for node in members), job.tell()


@pytest.mark.parametrize("command", ["status", "drain", "stop", "events"])
def test_a_command_of_another_version_says_so_and_changes_nothing(
    make_job: MakeJob, newer: OtherSpotrun, command: str
) -> None:
    job = make_job()
    node = job.start("a")
    job.until_steps(1, world=1)
    flags = [f"--rdzv-endpoint={job.endpoint}", f"--rdzv-id={job.run_id}", *(["a"] if command == "drain" else [])]
    ran = subprocess.run(
        [*newer.within, sys.executable, "-m", "spotrun", command, *flags],
        env={**os.environ, **newer.env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (VersionRefused.exit_code, "", refusal(job, PROTOCOL, OTHER))
    assert not node.events("draining") and node.process.poll() is None
