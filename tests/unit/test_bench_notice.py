"""The stages of a notice, from what workers and agents wrote."""

from __future__ import annotations

from typing import Any

import pytest

from spotrun.benchmarks.notice import stages
from spotrun.benchmarks.recovery_figures import Recovery

ASKED = Recovery(event_s=10.0, old_group=1, new_group=2)


def step(number: int, at_s: float, group: int, rank: int, node: str) -> dict[str, Any]:
    return {"what": "step", "step": number, "mono_s": at_s, "group": group, "rank": rank, "node": node, "pid": 1}


LINES = [
    step(7, 10.3, 1, 0, "0"),
    step(7, 10.4, 1, 1, "1"),
    step(8, 10.9, 2, 0, "1"),
]


def told(at_s: float) -> dict[str, Any]:
    return {"kind": "workers_told", "mono_s": at_s}


def test_the_stages_follow_each_other_from_the_notice_to_the_first_step() -> None:
    found = stages(ASKED, 10.1, LINES, {"0": [told(4.0), told(10.15)], "1": [told(10.2)]})
    assert found == pytest.approx(
        {
            "notice_to_etcd_s": 0.1,
            "etcd_to_told_s": 0.1,
            "told_to_last_step_s": 0.2,
            "last_to_first_step_s": 0.5,
            "notice_to_first_step_s": 0.9,
            "lost_steps": 0,
        }
    )


def test_an_agent_that_has_told_its_workers_has_seen_it_in_etcd_before_us() -> None:
    found = stages(ASKED, 10.25, LINES, {"0": [told(10.1)], "1": [told(10.2)]})
    assert found["notice_to_etcd_s"] == pytest.approx(0.1)


def test_workers_that_cannot_be_told_have_no_such_stage() -> None:
    assert "etcd_to_told_s" not in stages(ASKED, 10.1, LINES, {"0": [], "1": []})
