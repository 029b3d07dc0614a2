"""The memory that a plan predicts, against processes that train."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from spotrun.errors import UsageError
from spotrun.plan.activations import measure
from spotrun.plan.memory import Model, predict
from tests.scripts import memory_of_steps

SCRIPT = memory_of_steps.__file__
ERROR = 0.1  # docs/plan.md tells what was seen


@pytest.fixture(scope="module")
def model() -> Model:
    return measure("tests.scripts.memory_of_steps:make", "adamw")


@pytest.fixture(scope="module")
def measured_bytes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, int]:
    """What a rank took at its peak, by the number of ranks."""
    meeting = tmp_path_factory.mktemp("measured") / "meeting"
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), str(meeting)],
            env={**os.environ, **memory_of_steps.ALLOCATOR, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=100)[0] for process in processes]
    return dict(enumerate(map(int, told[0].split()), start=1))


def test_the_model_is_measured_without_memory(model: Model) -> None:
    width, layers, batch = memory_of_steps.WIDTH, memory_of_steps.LAYERS, memory_of_steps.BATCH
    assert model.parameters == layers * (width * width + width)
    assert model.largest_block == width * width + width
    assert model.activation_bytes == layers * 2 * batch * width * 4  # of each layer's two parts


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_a_rank_takes_at_its_peak_is_what_was_predicted(
    model: Model, measured_bytes: dict[int, int], ranks: int
) -> None:
    predicted, measured = predict(model, "ddp", ranks).total, measured_bytes[ranks]
    print(f"{ranks} ranks: predicted {predicted / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB")
    assert abs(measured / predicted - 1) < ERROR, (measured, predicted)


def test_a_factory_that_fails_is_told_in_a_sentence() -> None:
    with pytest.raises(UsageError, match="made no step"):
        measure("tests.scripts.memory_of_steps:nothing", "adamw")
