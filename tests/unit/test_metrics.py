"""The metrics have the names that are documented, and are what Prometheus reads."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pytest

from spotrun.errors import UsageError
from spotrun.launcher.ledger import Cost
from spotrun.launcher.metrics import METRICS, Metrics, MetricsServer, registry_of
from spotrun.rendezvous.state import GpuVitals, Progress, Vitals

pytest.importorskip("prometheus_client", reason="the extra `metrics` is not installed")
ROOT = Path(__file__).parents[2]
ROUND = {"kind": "round_formed", "node": "a", "round": 4, "nodes": ["a", "b"], "world_size": 4, "restarts": 1}
INCIDENT = {"kind": "incident", "node": "a", "cause": "lost", "cost": Cost(1.5, 3, 96, 4.0, None)}


def told() -> Metrics:
    metrics = Metrics("llm", "a")
    for event in (ROUND, INCIDENT, INCIDENT, {"kind": "notice", "node": "a"}, {"kind": "left", "node": "a"}):
        metrics.hear(event)
    metrics.progress(Progress("a", "i", 4, (9, 8), 256, 0.5, 2.25, 8, 5, False, 0.2, 0.1, 0.3))
    metrics.vitals(Vitals("a", 0.5, 0.4, 100, 25, (GpuVitals(0, 0.9, 80, 60, 50),)))
    return metrics


def test_open_metrics_is_valid_and_complete() -> None:
    from prometheus_client.openmetrics.exposition import generate_latest
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    text = generate_latest(registry_of(told())).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {name: family.type for name, family in families.items()} == {
        name: definition.kind for name, definition in METRICS.items()
    }
    samples = [sample for family in families.values() for sample in family.samples]
    assert all((sample.labels["run"], sample.labels["node"]) == ("llm", "a") for sample in samples)
    values = {(sample.name, *(sample.labels.keys() - {"run", "node"})): sample.value for sample in samples}
    assert values["spotrun_step",] == 8
    assert values["spotrun_incidents_total", "cause"] == 2
    assert values["spotrun_recomputed_steps_total",] == 6
    assert values["spotrun_gpu_busy_share", "gpu"] == 0.9
    assert values["spotrun_leaving",] == 1
    shares = {sample.labels["what"]: sample.value for sample in families["spotrun_step_share"].samples}
    assert shares == {"data": 0.2, "checkpoint": 0.1, "communication": 0.3, "compute": pytest.approx(0.4)}


def test_what_is_not_known_is_left_out() -> None:
    names = [family.name for family in Metrics("llm", "a").collect()]
    assert "spotrun_step" not in names
    assert "spotrun_leaving" in names


def test_it_is_served_and_gone_when_closed() -> None:
    server = MetricsServer(told(), "127.0.0.1", 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
            assert b'spotrun_round{node="a",run="llm"} 4.0' in answer.read()
        with pytest.raises(UsageError, match="cannot listen"):
            MetricsServer(told(), "127.0.0.1", server.port)
    finally:
        server.close()


def test_every_metric_is_documented_and_no_other() -> None:
    documented = set(
        re.findall(r"^\| `(spotrun_\w+?)(?:_total)?(?:\{\w+\})?` ", (ROOT / "docs/observing.md").read_text(), re.M)
    )
    assert documented == set(METRICS)


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads((ROOT / "examples/grafana/spotrun.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    exposed = {name + ("_total" if it.kind == "counter" else "") for name, it in METRICS.items()}
    used = {name for expression in asked for name in re.findall(r"spotrun_\w+", expression)}
    assert used
    assert used <= exposed
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
