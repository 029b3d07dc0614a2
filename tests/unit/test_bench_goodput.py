"""What counts of a job with many preemptions, and the traces that it is made to live through."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from spotrun.benchmarks.goodput_figures import figures, steps_made, timeline, useful
from spotrun.benchmarks.preemption_traces import (
    Change,
    NotATrace,
    compress,
    counts,
    generate,
    most_at_once,
    parse,
    thin,
    window,
)

STEP_S = 1.0


def steps(group: int, world: int, numbers: range, from_s: float) -> list[dict[str, Any]]:
    """A step each second, of each rank."""
    return [
        {"what": "step", "group": group, "world": world, "rank": rank, "step": step, "mono_s": from_s + index}
        for index, step in enumerate(numbers)
        for rank in range(world)
    ]


def test_steps_that_a_later_group_makes_again_do_not_count() -> None:
    made = steps(1, 2, range(1, 8), 0.0) + steps(2, 1, range(5, 9), 10.0)
    assert sorted({(line["group"], line["step"]) for line in useful(made)}) == [
        *((1, step) for step in range(1, 5)),
        *((2, step) for step in range(5, 9)),
    ]


def test_a_group_that_goes_back_far_undoes_those_in_between_too() -> None:
    made = steps(1, 1, range(1, 8), 0.0) + steps(2, 1, range(6, 9), 10.0) + steps(3, 1, range(3, 4), 20.0)
    assert [(line["group"], line["step"]) for line in useful(made)] == [(1, 1), (1, 2), (3, 3)]


def test_an_uninterrupted_job_has_a_goodput_of_one() -> None:
    found = figures(steps(1, 2, range(1, 11), 1.0), [(0.0, 2)], 0.0, 10.0, STEP_S)
    assert found["goodput"] == pytest.approx(1.0)
    assert found["progress"] == pytest.approx(1.0)
    assert (found["lost_steps"], found["still_s"], found["groups"]) == (0, 0, 1)


def test_a_pause_and_steps_made_again_both_cost() -> None:
    made = steps(1, 2, range(1, 6), 1.0) + steps(2, 1, range(4, 8), 17.0)  # node 2 goes at 5 s
    found = figures(made, [(0.0, 2), (5.0, 1)], 0.0, 20.0, STEP_S)
    assert found["goodput"] == pytest.approx((2 * 3 + 4) / (2 * 5 + 15))
    assert found["lost_steps"] == 2
    assert found["redone"] == pytest.approx(4 / 14)
    assert found["still_s"] == pytest.approx(12.0)


def test_while_no_node_is_there_nothing_stands_still() -> None:
    made = steps(1, 1, range(1, 6), 1.0) + steps(2, 1, range(6, 8), 19.0)
    found = figures(made, [(0.0, 1), (5.0, 0), (15.0, 1)], 0.0, 20.0, STEP_S)
    assert found["still_s"] == pytest.approx(4.0)
    assert found["progress"] == pytest.approx(7 / 10)


def test_what_came_after_the_end_is_not_looked_at() -> None:
    assert len(steps_made(steps(1, 1, range(1, 10), 0.0), 4.5)) == 5


def test_the_timeline_shows_when_nobody_trained() -> None:
    made = steps(1, 2, range(1, 6), 1.0) + steps(2, 1, range(5, 8), 15.0)
    line = timeline(made, [(0.0, 2), (5.0, 1)], 0.0, 20.0)
    assert line["worlds"] == [(1.0, 2), (5.0, 0), (15.0, 1), (17.0, 0)]
    assert line["nodes"][-1] == (20.0, 1)


def test_both_formats_are_read() -> None:
    rows = parse("0,add,a\n0,add,b\n120000,remove,a\n")
    assert rows == [Change(0.0, "add", "a"), Change(0.0, "add", "b"), Change(120.0, "remove", "a")]
    document = json.dumps({"metadata": {"gap_seconds": 300}, "data": [2, 2, 0, 1]})
    assert counts(parse(document)) == [(0.0, 0), (0.0, 1), (0.0, 2), (600.0, 1), (600.0, 0), (900.0, 1)]


@pytest.mark.parametrize("text", ["1,add", "x,add,n", "0,reboot,n", '{"data": [1]}', '{"metadata": ', "[1, 2]"])
def test_what_is_no_trace_is_refused(text: str) -> None:
    with pytest.raises(NotATrace, match="gap_seconds"):
        parse(text)


@pytest.mark.parametrize("seed", range(20))
def test_a_generated_cluster_never_loses_what_it_has_not(seed: int) -> None:
    changes = generate(seed, 4, 50_000.0)
    assert changes == generate(seed, 4, 50_000.0)
    assert changes == sorted(changes, key=lambda change: change.at_s)
    assert min(count for _, count in counts(changes)) >= 0
    assert most_at_once(changes) == 4


def test_losses_of_a_storm_come_together() -> None:
    lost = [change.at_s for change in generate(1, 8, 500_000.0) if change.what == "remove"]
    gaps = [b - a for a, b in pairwise(lost)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert spread > 1.5 * mean  # a Poisson process has 1
    assert 0.0 in gaps  # several nodes at once


def test_of_a_large_cluster_whole_lives_of_some_nodes_are_taken() -> None:
    changes = generate(1, 16, 50_000.0)
    thinned = thin(changes, 4)
    assert most_at_once(thinned) <= 4
    assert set(thinned) <= set(changes)
    left = {change.node: change.at_s for change in changes if change.what == "remove"}
    for change in thinned:
        if change.what == "add" and change.node in left:
            assert Change(left[change.node], "remove", change.node) in thinned


def test_a_window_begins_with_the_nodes_of_that_moment() -> None:
    changes = parse("0,add,a\n0,add,b\n10000,remove,a\n20000,add,c\n90000,remove,b\n")
    assert compress(window(changes, 15.0, 50.0), 5.0) == [Change(0.0, "add", "b"), Change(1.0, "add", "c")]
