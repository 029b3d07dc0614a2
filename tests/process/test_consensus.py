"""The agreed step among real ranks: all are told the same after the same step, and soon."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from spotrun.consensus import APART_STEPS, steps_apart
from tests.ranks import Run, ranks


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with ranks() as running:
        yield running


@pytest.mark.parametrize(
    "step_s, apart", [([0.001, 0.002, 0.001], APART_STEPS), ([0.001, 0.03, 0.001], 3), ([0.001, 0.001, 2.0], 1)]
)
def test_all_ranks_are_told_of_a_wish_after_the_same_step_and_the_slowest_says_how_soon(
    run: Run, tmp_path: Path, step_s: list[float], apart: int
) -> None:
    save, leave = 17, 38
    wishes = [[1, save, "save"], [0, leave, "leave"], [2, leave + 1, "durable"]]
    every = [3, 5, 4]
    found = run(3, "agreeing.wish", tmp_path, {"steps": 100, "wishes": wishes, "step_s": step_s, "every": every})
    told = found[0]
    assert found[1] == told and found[2] == told
    assert told[0] == [None, 0] and told[1] == [[], 5]
    when = {
        what: [n for n, (granted, _) in enumerate(told, 1) if what in (granted or [])] for what in ("save", "leave")
    }
    assert len(when["save"]) == 1 and save < when["save"][0] <= save + apart
    assert when["leave"] == [len(told)] and leave < len(told) <= leave + apart
    heard = [n for n, (granted, _) in enumerate(told, 1) if granted is not None]
    assert {later - earlier for earlier, later in itertools.pairwise(heard)} == {apart}


def test_steps_that_take_long_or_no_time_at_all_have_their_reductions_too() -> None:
    assert [steps_apart(seconds) for seconds in (0.0, 0.009, 0.026, 0.06, 100.0)] == [APART_STEPS, APART_STEPS, 3, 1, 1]
