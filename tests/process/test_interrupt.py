"""Ctrl-C: the first one saves the agreed step and leaves cleanly, the second one ends at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spotrun.checkpoint import list_checkpoints, newest, open_storage
from tests.process.test_api import SCRIPT
from tests.waiting import DEADLINE_S, until

LAUNCHERS = {
    "python": (),
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
    "spotrun": ("-m", "spotrun", "--standalone", "--nproc-per-node=2"),
}


class Training:
    """One launcher in a process group of its own, as a shell starts it."""

    def __init__(self, directory: Path, launcher: tuple[str, ...], step_s: float) -> None:
        self.out, self.checkpoints, self.log = directory / "steps", directory / "checkpoints", directory / "log"
        kind = "ddp" if launcher else "plain"
        command = [sys.executable, *launcher, str(SCRIPT), str(self.out), "10000", str(step_s), kind]
        (directory / "tmp").mkdir()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(directory / "tmp")}
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [*command, str(self.checkpoints)], env=environment, stdout=file, stderr=file, start_new_session=True
            )

    def steps(self) -> list[dict[str, Any]]:
        lines = self.out.read_bytes().split(b"\n")[:-1] if self.out.exists() else []
        return [json.loads(line) for line in lines]

    def until_steps(self, count: int) -> None:
        until(f"{count} steps", lambda: len(self.steps()) >= count, detail=lambda: self.log.read_text())

    def interrupt(self) -> None:
        """As a terminal does it: to every process of the group."""
        os.killpg(self.process.pid, signal.SIGINT)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Training]]:
    begun: list[Training] = []

    def start(launcher: str, step_s: float = 0.02) -> Training:
        begun.append(Training(tmp_path, LAUNCHERS[launcher], step_s))
        return begun[-1]

    yield start
    for one in begun:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_an_interrupt_saves_the_last_step_and_leaves(start: Callable[..., Training], launcher: str) -> None:
    training = start(launcher)
    training.until_steps(5)
    training.interrupt()
    code = training.process.wait(DEADLINE_S)
    said = training.log.read_text()
    saved = newest(list_checkpoints(open_storage(training.checkpoints)))
    assert saved is not None and saved.step == training.steps()[-1]["step"], said
    if launcher != "torchrun":  # which ends with a traceback of its own
        assert code == 128 + signal.SIGINT and "Traceback" not in said, said


@pytest.mark.parametrize("launcher", ["python", "spotrun"])
def test_a_second_interrupt_ends_at_once(start: Callable[..., Training], launcher: str) -> None:
    training = start(launcher, step_s=1000)
    training.until_steps(1)
    training.interrupt()
    told = {"python": "once more ends it at once", "spotrun": "SIGINT: this node leaves"}[launcher]
    until("it was told", lambda: told in training.log.read_text())
    training.interrupt()
    assert training.process.wait(DEADLINE_S) in (-signal.SIGINT, 128 + signal.SIGINT)
    assert "Traceback" not in training.log.read_text(), training.log.read_text()
    assert not open_storage(training.checkpoints).directories()
