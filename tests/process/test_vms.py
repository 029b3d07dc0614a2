"""Plain machines, each with an address of its own, that run the command line of the systemd unit in examples/."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs import Node, RealJob, real_job
from tests.networks import Host, etcd_on, needs_namespaces, network
from tests.process.test_api import SCRIPT, assert_the_same_curve, finish, one_process

__all__ = ["one_process"]
VM = Path(__file__).parents[2] / "examples" / "cluster" / "vm"
pytestmark = needs_namespaces


def environment_of(file: Path) -> dict[str, str]:
    """As systemd reads an EnvironmentFile."""
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def command_of(unit: Path, environ: dict[str, str]) -> list[str]:
    """As systemd reads ExecStart: ${NAME} stays one word, $NAME is split."""
    (line,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
    words: list[str] = []
    for word in shlex.split(line):
        if whole := re.fullmatch(r"\$(\w+)", word):
            words += environ[whole[1]].split()
        else:
            words.append(re.sub(r"\$\{(\w+)\}", lambda found: environ[found[1]], word))
    return words


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    with network(5) as made:
        yield made


def boot(job: RealJob, host: Host, name: str) -> Node:
    """The machine starts, and systemd starts the unit on it."""
    settings = {
        "PET_NNODES": "1:3",
        "PET_NPROC_PER_NODE": "1",
        "PET_RDZV_ENDPOINT": job.endpoint,
        "PET_RDZV_ID": job.run_id,
        "SCRIPT": str(SCRIPT),
        "ARGS": f"{job.out} 1500 0.05 ddp {job.dir / 'ckpt'}",
    }
    environ = environment_of(VM / "job.env")
    assert settings.keys() <= environ.keys(), "what a user changes stands in job.env"
    environ |= settings
    program, *arguments = command_of(VM / "spotrun.service", environ)
    assert program == "/opt/train/.venv/bin/spotrun"
    log, events_file = job.dir / f"{name}.log", job.dir / f"{name}.events"
    job.scratch.mkdir(exist_ok=True)
    with log.open("wb") as file:
        process = host.popen(
            [sys.executable, "-m", "spotrun", *arguments],
            stdout=file,
            stderr=file,
            start_new_session=True,
            env={
                **os.environ,
                **environ,
                "OMP_NUM_THREADS": "1",
                "TMPDIR": str(job.scratch),
                "SPOTRUN_NODE_ID": name,
                "SPOTRUN_EVENTS": str(events_file),
                "SPOTRUN_NOTICE": "none",
            },
        )
    job.nodes.append(Node(name, process, events_file, log))
    return job.nodes[-1]


def test_machines_meet_in_any_order_lose_one_by_a_cut_cable_and_get_a_replacement(
    hosts: list[Host], tmp_path: Path, one_process: dict[int, float]
) -> None:
    etcd_host, *machines = hosts
    with etcd_on(etcd_host, tmp_path) as endpoint, real_job(endpoint, tmp_path) as job:
        c, b, a = (boot(job, host, name) for host, name in zip(machines, "cba", strict=False))
        job.until_steps(5, world=3)

        machines[0].cut()
        job.until_steps(5, world=2)
        replacement = boot(job, machines[3], "d")
        job.until_steps(5, world=3)

        a.signal(signal.SIGTERM)
        assert a.wait() == 0, "a drained machine has ended well, so systemd does not start the unit again"
        job.until_steps(5, world=2)
        machines[0].mend()
        job.until_steps(5, world=3)
        finish(job, [b, c, replacement])
        assert_the_same_curve(job, one_process)
