"""What people's training loops have in them works as before, and goes on in another world as if nothing had been."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import Run, ranks

STEPS = 12
HABITS = ["clip", "scaler", "compile", "accumulate", "schedule", "evaluate"]


@pytest.fixture(scope="module", autouse=True)
def run() -> Iterator[Run]:
    with ranks() as run:
        yield run


def train(run: Run, world: int, directory: Path, kind: str, habits: list[str], steps: int = STEPS) -> dict[str, Any]:
    results = run(world, "habits.train", directory, {"habits": habits, "kind": kind, "steps": steps})
    assert all(result == results[0] for result in results.values()), "all ranks end alike"
    found: dict[str, Any] = results[0]
    return found


def assert_goes_on(run: Run, directory: Path, worlds: tuple[int, int], kind: str, habits: list[str]) -> None:
    """`kind` in the first of `worlds` for 7 steps, then in the second, against one process all the way."""
    alone = train(run, 1, directory / "alone", "ddp", habits)
    first = train(run, worlds[0], directory / "parts", kind, habits, steps=7)
    second = train(run, worlds[1], directory / "parts", kind, habits)
    assert (first["step"], second["step"], alone["step"]) == (7, STEPS, STEPS)
    assert first["losses"] + second["losses"] == pytest.approx(alone["losses"], rel=1e-9)
    assert second["values"] == pytest.approx(alone["values"], abs=1e-9)
    assert (second["lr"], second["scale"]) == (alone["lr"], alone["scale"])


@pytest.mark.parametrize("habit", HABITS)
def test_a_habit_goes_on_in_another_world(run: Run, tmp_path: Path, habit: str) -> None:
    assert_goes_on(run, tmp_path, (2, 3), "ddp", [habit])


@pytest.mark.parametrize(("kind", "worlds"), [("ddp", (3, 1)), ("fsdp", (2, 3)), ("fsdp", (3, 1)), ("hsdp", (4, 2))])
def test_all_habits_together_go_on_in_another_world(
    run: Run, tmp_path: Path, kind: str, worlds: tuple[int, int]
) -> None:
    habits = HABITS if kind == "ddp" else ["clip", "accumulate", "schedule", "evaluate"]
    assert_goes_on(run, tmp_path, worlds, kind, habits)


def test_a_scale_that_was_halved_stays_halved(run: Run, tmp_path: Path) -> None:
    assert train(run, 2, tmp_path, "ddp", ["scaler"], steps=4)["scale"] == 2**11  # doubled after three steps
    assert train(run, 2, tmp_path, "ddp", ["scaler"], steps=5)["scale"] == 2**10  # the fifth overflows
    assert train(run, 1, tmp_path, "ddp", ["scaler"], steps=8)["scale"] == 2**11


def test_an_early_stop_is_final_and_at_the_same_step_in_every_world(run: Run, tmp_path: Path) -> None:
    stopped = [train(run, world, tmp_path / str(world), "ddp", ["stop"]) for world in (1, 3)]
    assert 1 < stopped[0]["step"] == stopped[1]["step"] < STEPS
    again = train(run, 2, tmp_path / "3", "ddp", ["stop"])
    assert (again["step"], again["losses"]) == (stopped[1]["step"], [])
