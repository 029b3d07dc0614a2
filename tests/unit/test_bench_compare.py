"""A figure is called worse only where the runs show it, and a recovery's figures are what its lines say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spotrun.benchmarks.compare import NotComparable, compare, judge, main, rank_p, samples
from spotrun.benchmarks.recovery_figures import Recovery, figures

SLOW, FAST = [5.9, 6.0, 6.1, 6.2, 6.3], [0.30, 0.31, 0.33, 0.35, 0.36]


def verdict(before: list[float], after: list[float], **how: Any) -> str:
    return judge("row", "event_to_step_s", before, after, **how).verdict


def test_clearly_slower_is_worse_and_clearly_faster_is_better() -> None:
    assert verdict(FAST, SLOW) == "worse"
    assert verdict(SLOW, FAST) == "better"


def test_where_more_is_better_the_verdict_turns_around() -> None:
    assert verdict(FAST, SLOW, higher_is_better=True) == "better"
    assert compare({"row": {"steps_per_s": FAST}}, {"row": {"steps_per_s": SLOW}})[0].verdict == "better"
    assert compare({"row": {"goodput": SLOW}}, {"row": {"goodput": FAST}}, ["goodput"])[0].verdict == "worse"


def test_a_change_within_the_spread_of_the_runs_is_none() -> None:
    assert verdict([1.0, 1.2, 1.4, 1.6, 1.8], [1.1, 1.3, 1.6, 1.7, 1.9]) == "same"


def test_a_certain_change_that_is_too_small_to_matter_is_none() -> None:
    assert verdict([1.000, 1.001, 1.002, 1.003, 1.004], [1.010, 1.011, 1.012, 1.013, 1.014]) == "same"


def test_one_run_shows_nothing() -> None:
    assert verdict([1.0], [9.0]) == "too few runs"


def test_a_recovery_that_never_came_is_worse_than_any_that_did() -> None:
    assert verdict(FAST, [math.inf] * 5) == "worse"
    assert verdict([math.inf] * 5, SLOW) == "better"
    assert verdict([math.inf] * 5, [math.inf] * 5) == "same"


def test_zero_steps_lost_before_and_after_is_no_change_and_some_after_is_worse() -> None:
    assert verdict([0.0] * 5, [0.0] * 5) == "same"
    assert verdict([0.0] * 5, [7.0, 20.0, 31.0, 12.0, 44.0]) == "worse"


def test_the_rank_test_is_exact_for_few_runs() -> None:
    assert rank_p([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(1 / 252)
    assert rank_p([1, 2], [3, 4]) == pytest.approx(1 / 6)
    assert rank_p([1, 1], [1, 1]) == 1.0


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(16)))
def test_the_approximation_for_many_runs_agrees_with_the_exact_test(values: list[int]) -> None:
    low, high = values[:8], values[8:]
    assert rank_p(low, high, most_orders=0) == pytest.approx(rank_p(low, high), abs=0.02)


def document(runs_by_launcher: dict[str, list[Any]], benchmark: str = "recovery") -> dict[str, Any]:
    results = [
        {"launcher": name, "scenario": "kill", "runs": [{"recovered": v is not None, "pause_s": v} for v in values]}
        for name, values in runs_by_launcher.items()
    ]
    return {"benchmark": benchmark, "machine": {"cpus": 2}, "results": results}


def files(tmp_path: Path, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    paths = [tmp_path / "before.json", tmp_path / "after.json"]
    for path, content in zip(paths, (before, after), strict=True):
        path.write_text(json.dumps(content))
    return [str(path) for path in paths]


def test_a_busier_machine_is_no_regression_relative_to_the_peer_of_the_same_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = document({"spotrun": [2 * v for v in FAST], "torchrun": [2 * v for v in SLOW]})
    paths = files(tmp_path, document({"spotrun": FAST, "torchrun": SLOW}), twice)
    assert main(paths) == 1
    assert main([*paths, "--relative-to", "torchrun"]) == 0
    assert "worse" in capsys.readouterr().out


def test_a_regression_relative_to_the_peer_is_found(tmp_path: Path) -> None:
    slower = document({"spotrun": SLOW, "torchrun": SLOW})
    paths = files(tmp_path, document({"spotrun": FAST, "torchrun": SLOW}), slower)
    assert main([*paths, "--relative-to", "torchrun"]) == 1


def test_rows_named_by_a_number_are_matched() -> None:
    scale = {"results": [{"agents": 64, "join_s": 0.3, "runs": [{"join_s": 0.2}, {"join_s": None}]}]}
    assert samples(scale) == {"agents 64": {"join_s": [0.2, math.inf]}}
    with pytest.raises(NotComparable):
        samples(scale, "torchrun")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"benchmark": 3, "results": []}'])
def test_what_is_no_result_is_refused_with_its_name(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = files(tmp_path, document({"spotrun": FAST}), {})
    Path(paths[1]).write_text(text)
    assert main(paths) == 2
    assert "after.json" in capsys.readouterr().err


def test_two_different_benchmarks_are_not_compared(tmp_path: Path) -> None:
    assert main(files(tmp_path, document({"spotrun": FAST}), document({"spotrun": FAST}, "scale"))) == 2


def line(what: str, mono_s: float, node: str, group: int = 0, **fields: Any) -> dict[str, Any]:
    grouped = {"group": group, "world": 2} if group else {}
    return {"what": what, "mono_s": mono_s, "node": node, "pid": int(node) + 10 * group, **grouped, **fields}


def test_a_recovery_is_measured_to_the_last_ranks_first_step_and_its_phases_add_up() -> None:
    lines = [
        *(line("step", 9.9, node, 1, rank=int(node), step=70) for node in "012"),
        line("step", 10.4, "2", 1, rank=2, step=71),  # the victim's: nobody who stays paused then
        *(line("main", 10.3, node, rank=int(node)) | {"pid": int(node) + 20} for node in "01"),
        *(line("imported", 10.31, node, rank=int(node)) | {"pid": int(node) + 20} for node in "01"),
        *(line("group", 10.4, node, 2, rank=int(node)) for node in "01"),
        *(line("model", 10.45, node, 2, rank=int(node)) for node in "01"),
        line("step", 10.5, "0", 2, rank=0, step=51),
        line("step", 10.6, "1", 2, rank=1, step=51),
        line("step", 10.7, "0", 2, rank=0, step=52),
    ]
    agent = [
        {"kind": "workers_started", "mono_s": 3.0},
        {"kind": "workers_stopped", "mono_s": 10.15, "seconds": 0.05},
        {"kind": "round_formed", "mono_s": 10.2},
    ]
    found = figures(Recovery(10.0, 1, 2), lines, {"0": agent, "1": agent, "2": []})
    want = {"event_to_step_s": 0.6, "pause_s": 0.7, "lost_steps": 21, "groups": 1}
    want |= {"detect_s": 0.1, "stop_s": 0.05, "rendezvous_s": 0.05, "start_s": 0.1, "import_s": 0.01}
    want |= {"group_s": 0.09, "model_s": 0.05, "step_s": 0.15}
    assert found == pytest.approx(want)


def test_phases_that_nobody_records_are_part_of_the_next() -> None:
    lines = [line("group", 5.0, "0", 1, rank=0), line("step", 6.0, "0", 1, rank=0, step=1)]
    found = figures(Recovery(2.0, None, 1), lines, {})
    assert found == pytest.approx({"event_to_step_s": 4.0, "groups": 1, "group_s": 3.0, "step_s": 1.0})
