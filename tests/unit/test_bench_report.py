"""Every document of a benchmark becomes a section of one page that fetches nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from spotrun.benchmarks.measurement import Measurement, quartiles, summary
from spotrun.benchmarks.report import write

MACHINE = {"cpus": 2, "torch": "2.13.0", "versions": {"numpy": "2.4"}, "memory_bytes": 2**30}


def measured(name: str = "things", title: str = "How long <things> take") -> Measurement:
    document = Measurement(name, title, "By a stop watch.", ("took_s",), {"size": 3}, machine=dict(MACHINE))
    for took_s in (1.0, 2.0, None):
        document.add({"took_s": took_s, "bytes": 10}, launcher="ours", size=3)
    document.add({"took_s": 5.0, "bytes": 10}, launcher="theirs", size=3)
    return document


def test_a_run_that_did_not_end_counts_as_infinite() -> None:
    found = summary([{"s": 1.0}, {"s": None}, {"s": None}])
    assert found["s"] == {"median": None, "q1": 1.0, "q3": None, "n": 3}


@pytest.mark.parametrize("values", [[3.0], [1.0, 2.0], [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, math.inf]])
def test_quartiles_enclose_the_median(values: list[float]) -> None:
    low, middle, high = quartiles(values)
    assert min(values) <= low <= middle <= high <= max(values)


def test_runs_of_one_row_are_gathered() -> None:
    rows = measured().document()["results"]
    assert [(row["launcher"], len(row["runs"])) for row in rows] == [("ours", 3), ("theirs", 1)]


def test_the_report_holds_each_document_with_its_plot_and_its_machine(tmp_path: Path) -> None:
    measured().write(tmp_path / "a.json")
    measured("others", "Others").write(tmp_path / "b.json")
    (tmp_path / "torn.json").write_text('{"benchmark": ')
    assert write(tmp_path, tmp_path / "report.html") == [tmp_path / "torn.json"]
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 2
    assert "How long &lt;things&gt; take" in page
    assert "torch 2.13.0" in page
    assert "∞" in page
    assert "http" not in page.replace("http-equiv", "")


def test_curves_and_timelines_have_plots_of_their_own(tmp_path: Path) -> None:
    scale = Measurement("rendezvous_scale", "Scale", "", ("join_s",), {}, machine=dict(MACHINE))
    for agents in (8, 64):
        scale.add({"join_s": 0.1, "lost_s": 0.2, "grow_s": 0.1}, agents=agents)
    scale.write(tmp_path / "scale.json")
    goodput = Measurement("goodput", "Goodput", "", ("goodput",), {}, machine=dict(MACHINE))
    goodput.add({"goodput": 0.5}, launcher="ours")
    line = {
        "launcher": "ours",
        "trace": "storm",
        "nodes": [[0, 2], [9, 1]],
        "worlds": [[0, 2]],
        "steps": [[0, 0], [9, 8]],
    }
    goodput.extra["timelines"] = [line]
    goodput.write(tmp_path / "goodput.json")
    same = Measurement("same_curve", "Same curve", "", ("largest_difference",), {}, machine=dict(MACHINE))
    same.add({"largest_difference": 1e-6}, kind="ddp", dtype="float32")
    made = [{"step": step, "loss": 1 / step, "world": 2} for step in (1, 2)]
    same.extra["curves"] = [{"kind": "ddp", "dtype": "float32", "made": made, "reference": [1.0, 0.4999]}]
    same.write(tmp_path / "same.json")
    assert write(tmp_path, tmp_path / "report.html") == []
    assert json.loads((tmp_path / "goodput.json").read_text())["timelines"] == [line]
