"""What workers tell of their steps, and what of it the other nodes hear."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from spotrun.launcher.progress import TELL_S, Steps, Teller, of_node
from spotrun.progress import Teller as WorkerTeller
from spotrun.rendezvous.state import Member, Progress, Round

ROUND = Round(3, (Member("a", "a-1", 2),), "h", 1, "start", "", 0, "x")
STEPS = Steps(3, 10, 640, 0.5, 2.25, 9, 5)


def test_a_nodes_word_is_that_of_its_slowest_worker() -> None:
    ahead = dataclasses.replace(STEPS, step=11, samples=704, step_s=0.6, snapshot_step=10, commit_step=8)
    found = of_node("a", "a-1", ROUND, [ahead, STEPS])
    assert found == Progress("a", "a-1", 3, (11, 10), 640, 0.6, 2.25, 9, 8)
    assert found.step == 10


@pytest.mark.parametrize("workers", [[], [STEPS, None], [STEPS, dataclasses.replace(STEPS, round=2)]])
def test_there_is_no_word_before_all_workers_have_stepped_in_the_round(workers: list[Steps | None]) -> None:
    assert of_node("a", "a-1", ROUND, workers) is None


def test_news_are_passed_on_once_and_at_most_once_a_second() -> None:
    words: list[Progress] = []
    teller = Teller(words.append)
    first = of_node("a", "a-1", ROUND, [STEPS])
    second = of_node("a", "a-1", ROUND, [dataclasses.replace(STEPS, step=12)])
    assert teller.tell(None, 99.0) is None
    assert teller.tell(first, 100.0) is None
    assert teller.tell(first, 105.0) is None
    assert teller.tell(second, 105.0) is None
    assert teller.tell(first, 105.0 + TELL_S / 2) == 105.0 + TELL_S, "later: the caller comes again"
    assert words == [first, second]


def test_a_worker_tells_its_first_step_at_once_and_the_others_now_and_then() -> None:
    said: list[dict[str, Any]] = []
    teller = WorkerTeller(lambda **fields: said.append(fields), 3)
    told = []
    for step in range(1, 101):
        now_s = 50.0 + 0.01 * step
        if teller.due(5.0 if step == 1 else 0.01, now_s):
            teller.tell(now_s, torch.tensor(1.5, requires_grad=True), step=step)
            told.append(step)
    assert told[0] == 1
    assert len(told) <= 6
    assert said[-1] == {"round": 3, "step": told[-1], "step_s": 0.01, "loss": 1.5}, "compiling is no step time"


@pytest.mark.parametrize("bad", [{}, {"round": "x"}, {"round": None}])
def test_what_is_no_progress_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises((KeyError, ValueError, TypeError)):
        Steps.of({**bad, "loss": None})


def test_a_loss_that_json_does_not_know_is_left_out() -> None:
    message = {"round": 1, "step": 1, "samples": 1, "step_s": 0.1, "snapshot_step": 0, "commit_step": 0}
    assert Steps.of({**message, "loss": math.nan}).loss is None
    assert Steps.of({**message, "loss": 1}).loss == 1.0
