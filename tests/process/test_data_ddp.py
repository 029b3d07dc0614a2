"""Real process groups: with uneven, empty and micro batches DDP and FSDP2 train as one process does, to 1e-12."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spotrun.audit import check, load
from tests.scripts import exact_batches
from tests.scripts.exact_batches import EPOCHS, SAMPLES, Task

WORLD = 4


class Ranks:
    """Processes that train together, as many of them as a task says."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        environment = {
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": str(directory),
        }  # torch's optimizers make that directory
        self.processes = []
        for _ in range(WORLD):
            process = subprocess.Popen(
                [sys.executable, "-m", exact_batches.__name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            stack.enter_context(process)  # waits for it, once killed
            stack.callback(process.kill)
            self.processes.append(process)

    def run(self, task: Task) -> dict[str, Any]:
        """Rank 0's losses and the whole final weights."""
        members = self.processes[: task.world]
        for rank, process in enumerate(members):
            assert process.stdin is not None
            process.stdin.write(replace(task, rank=rank).line())
            process.stdin.flush()
        answers = []
        for process in members:
            assert process.stdout is not None
            answers.append(json.loads(process.stdout.readline()))
        errors = [answer["error"] for answer in answers if "error" in answer]
        assert not errors, errors[0]
        assert all(answer["losses"] == answers[0]["losses"] for answer in answers)
        first: dict[str, Any] = answers[0]
        return first


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with ExitStack() as stack:
        yield Ranks(stack, tmp_path_factory.mktemp("inductor"))


@pytest.fixture(scope="module")
def alone(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return ranks.run(Task("plain", 1, str(tmp_path_factory.mktemp("alone"))))


def assert_same(result: dict[str, Any], alone: dict[str, Any]) -> None:
    assert result["losses"] == pytest.approx(alone["losses"], rel=1e-12, abs=1e-12)
    for here, there in zip(result["weights"], alone["weights"], strict=True):
        assert here == pytest.approx(there, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize(("world", "micro"), [(2, 0), (2, 1), (3, 0), (3, 1), (4, 0)])
def test_training_on_several_ranks_is_training_on_one(
    kind: str, world: int, micro: int, ranks: Ranks, alone: dict[str, Any], tmp_path: Path
) -> None:
    result = ranks.run(Task(kind, world, str(tmp_path), micro))
    assert_same(result, alone)
    items = [rank for rank in range(world) for _ in range(rank)]
    assert result["counted"] == pytest.approx(sum(items) / len(items), rel=1e-12)
    report = check(*load(tmp_path / "audit"))
    assert not report.violations
    assert report.samples == SAMPLES * EPOCHS


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_world_that_changes_within_an_epoch_trains_the_same(
    kind: str, ranks: Ranks, alone: dict[str, Any], tmp_path: Path
) -> None:
    first = ranks.run(Task(kind, 3, str(tmp_path), begin=0, end=2, number=1))
    second = ranks.run(Task(kind, 2, str(tmp_path), begin=2, end=4, number=2))
    third = ranks.run(Task(kind, 4, str(tmp_path), begin=4, end=6, number=3))
    assert_same({**third, "losses": first["losses"] + second["losses"] + third["losses"]}, alone)
    assert check(*load(tmp_path / "audit")).summary() == (
        "exactly once: 22 samples in 2 whole epochs and 0 steps, 3 rounds with worlds of 3 > 2 > 4, 0 steps redone"
    )
