"""From lines of workers to the figures of one recovery."""

from __future__ import annotations

from typing import Any

import pytest

from spotrun.benchmarks.recovery_figures import Recovery, figures


def lines(group: int, ranks: dict[int, str], steps: range, from_s: float) -> list[dict[str, Any]]:
    """A group that is formed half a second before its first step, then a step each second; `ranks` maps to nodes."""
    common = [
        {"group": group, "world": len(ranks), "rank": rank, "node": node, "pid": 1} for rank, node in ranks.items()
    ]
    made = [{"what": "group", "mono_s": from_s - 0.5, **each} for each in common]
    for index, step in enumerate(steps):
        made += [{"what": "step", "step": step, "mono_s": from_s + index, **each} for each in common]
    return made


def test_a_world_that_stands_still_until_the_next_has_one_pause() -> None:
    told = lines(1, {0: "0", 1: "1"}, range(1, 6), 1.0) + lines(2, {0: "0"}, range(4, 7), 9.0)
    found = figures(Recovery(5.5, 1, 2), told, {})
    assert found["event_to_step_s"] == pytest.approx(3.5)
    assert found["pause_s"] == pytest.approx(4.0)
    assert (found["lost_steps"], found["groups"]) == (2, 1)


def test_nodes_that_train_on_while_one_is_away_do_not_pause_as_long() -> None:
    told = lines(1, {0: "0", 1: "1"}, range(1, 6), 1.0)
    told += lines(2, {0: "0"}, range(6, 10), 7.0) + lines(3, {0: "0", 1: "1"}, range(10, 12), 11.5)
    found = figures(Recovery(5.5, 1, 3), told, {})
    assert found["event_to_step_s"] == pytest.approx(6.0)
    assert found["pause_s"] == pytest.approx(2.0)
    assert found["groups"] == 2


def test_the_phases_of_a_recovery_are_all_of_it() -> None:
    told = lines(1, {0: "0"}, range(1, 6), 1.0) + lines(2, {0: "0"}, range(6, 8), 8.0)
    found = figures(Recovery(5.5, 1, 2), told, {})
    assert sum(value for name, value in found.items() if name in ("group_s", "step_s")) == pytest.approx(2.5)
