"""Metrics for Prometheus, of one node, at --metrics=[HOST:]PORT: loopback unless a host is given. Extra `metrics`.

The names in METRICS are stable: dashboards are built on them. Every metric has the labels `run` (--rdzv-id) and `node`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spotrun.errors import UsageError
from spotrun.launcher.ledger import Cost
from spotrun.rendezvous.state import Progress, Vitals

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

LABELS = ("run", "node")


@dataclass(frozen=True, slots=True)
class Definition:
    kind: str  # gauge or counter; a counter's samples end in _total
    help: str
    labels: tuple[str, ...] = ()


METRICS = {
    "spotrun_round": Definition("gauge", "The number of the round that this node is in."),
    "spotrun_nodes": Definition("gauge", "Nodes in that round."),
    "spotrun_world_size": Definition("gauge", "Workers in that round."),
    "spotrun_first_node": Definition("gauge", "1 on the node of rank 0: count what all nodes tell alike there."),
    "spotrun_restarts": Definition("counter", "Failures of workers charged to --max-restarts."),
    "spotrun_step": Definition("gauge", "The last step that all workers of this node have made."),
    "spotrun_samples": Definition("counter", "Samples that the whole job has consumed."),
    "spotrun_step_seconds": Definition("gauge", "The median time of a step."),
    "spotrun_loss": Definition("gauge", "The loss as the script last told it."),
    "spotrun_snapshot_step": Definition("gauge", "The step of the last snapshot in memory."),
    "spotrun_durable_step": Definition("gauge", "The step of the newest whole checkpoint."),
    "spotrun_step_share": Definition("gauge", "The share of a step's time, by what it goes into.", ("what",)),
    "spotrun_leaving": Definition("gauge", "1 once this node has a notice that it has to go."),
    "spotrun_incidents": Definition("counter", "Rounds that began while the agent ran, by cause.", ("cause",)),
    "spotrun_paused_seconds": Definition("counter", "Time without a step in these incidents."),
    "spotrun_recomputed_steps": Definition("counter", "Steps that were made again after them."),
    "spotrun_lost_node_seconds": Definition("counter", "Time of all nodes that came to nothing."),
    "spotrun_cpu_share": Definition("gauge", "How busy the processors of this host are."),
    "spotrun_memory_bytes": Definition("gauge", "Memory of this host, or its limit."),
    "spotrun_memory_free_bytes": Definition("gauge", "What of it is left."),
    "spotrun_gpu_busy_share": Definition("gauge", "How busy a GPU is, by NVML.", ("gpu",)),
    "spotrun_gpu_memory_used_bytes": Definition("gauge", "Its memory in use.", ("gpu",)),
    "spotrun_gpu_temperature_celsius": Definition("gauge", "Its temperature.", ("gpu",)),
}


@dataclass(slots=True)
class _Known:
    progress: Progress | None = None
    vitals: Vitals | None = None
    round: Mapping[str, Any] = field(default_factory=dict)
    first: bool = False
    leaving: bool = False
    incidents: dict[str, int] = field(default_factory=dict)
    paused_s: float = 0.0
    recomputed: int = 0
    node_s: float = 0.0


class Metrics:
    """What this node knows of itself; told from any thread."""

    def __init__(self, run_id: str, node_id: str) -> None:
        self._place = (run_id, node_id)
        self._lock = threading.Lock()
        self._known = _Known()

    def progress(self, progress: Progress) -> None:
        self._known.progress = progress

    def vitals(self, vitals: Vitals) -> None:
        self._known.vitals = vitals

    def hear(self, event: Mapping[str, Any]) -> None:
        """An event, as `spotrun.events` records it."""
        known, kind = self._known, event["kind"]
        with self._lock:
            if kind == "round_formed":
                known.round, known.first = dict(event), event["nodes"][0] == event["node"]
            elif kind in ("notice", "notice_withdrawn"):
                known.leaving = kind == "notice"
            elif kind == "incident":
                cost: Cost = event["cost"]
                known.incidents[event["cause"]] = known.incidents.get(event["cause"], 0) + 1
                known.paused_s += cost.paused_s
                known.recomputed += cost.steps_recomputed or 0
                known.node_s += cost.node_s

    def samples(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Metric -> label values beyond run and node -> value; what is not known is left out."""
        with self._lock:
            known = self._known
            found: dict[str, dict[tuple[str, ...], float]] = {
                "spotrun_leaving": {(): float(known.leaving)},
                "spotrun_incidents": {(cause,): float(count) for cause, count in known.incidents.items()},
                "spotrun_paused_seconds": {(): known.paused_s},
                "spotrun_recomputed_steps": {(): float(known.recomputed)},
                "spotrun_lost_node_seconds": {(): known.node_s},
            }
            if known.round:
                found["spotrun_round"] = {(): float(known.round["round"])}
                found["spotrun_nodes"] = {(): float(len(known.round["nodes"]))}
                found["spotrun_world_size"] = {(): float(known.round["world_size"])}
                found["spotrun_restarts"] = {(): float(known.round["restarts"])}
                found["spotrun_first_node"] = {(): float(known.first)}
        if known.progress is not None:
            found |= _of_progress(known.progress)
        if known.vitals is not None:
            found |= _of_vitals(known.vitals)
        return found

    def collect(self) -> Iterator[Metric]:
        """For prometheus_client, whose collectors have this method."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for name, samples in self.samples().items():
            definition = METRICS[name]
            make = CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily
            family = make(name, definition.help, labels=(*LABELS, *definition.labels))
            for labels, value in samples.items():
                family.add_metric((*self._place, *labels), value)
            yield family


def _of_progress(word: Progress) -> dict[str, dict[tuple[str, ...], float]]:
    shares = {"data": word.data_share, "checkpoint": word.checkpoint_share}
    if word.communication_share is not None:
        shares["communication"] = word.communication_share
    shares["compute"] = max(0.0, 1.0 - sum(shares.values()))
    found: dict[str, dict[tuple[str, ...], float]] = {
        "spotrun_step": {(): float(word.step)},
        "spotrun_samples": {(): float(word.samples)},
        "spotrun_step_seconds": {(): word.step_time_s},
        "spotrun_snapshot_step": {(): float(word.last_snapshot_step)},
        "spotrun_durable_step": {(): float(word.last_commit_step)},
        "spotrun_step_share": {(what,): share for what, share in shares.items()},
    }
    if word.loss is not None:
        found["spotrun_loss"] = {(): word.loss}
    return found


def _of_vitals(word: Vitals) -> dict[str, dict[tuple[str, ...], float]]:
    return {
        "spotrun_cpu_share": {(): word.cpu_share},
        "spotrun_memory_bytes": {(): float(word.memory_bytes)},
        "spotrun_memory_free_bytes": {(): float(word.memory_free_bytes)},
        "spotrun_gpu_busy_share": {(str(gpu.index),): gpu.busy_share for gpu in word.gpus},
        "spotrun_gpu_memory_used_bytes": {(str(gpu.index),): float(gpu.memory_used_bytes) for gpu in word.gpus},
        "spotrun_gpu_temperature_celsius": {(str(gpu.index),): float(gpu.temperature_c) for gpu in word.gpus},
    }


def registry_of(metrics: Metrics) -> CollectorRegistry:
    """Raises UsageError where the extra is not installed."""
    try:
        from prometheus_client import CollectorRegistry
    except ImportError:
        raise UsageError("--metrics needs prometheus-client: pip install 'spotrun[metrics]'.") from None
    registry = CollectorRegistry()
    registry.register(metrics)
    return registry


class MetricsServer:
    """Serves /metrics until it is closed."""

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        """Raises UsageError where the port cannot be had."""
        registry = registry_of(metrics)
        from prometheus_client import start_http_server

        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise UsageError(
                f"--metrics cannot listen at {host}:{port} ({error.strerror}): give another one."
            ) from None
        self.port = int(self._server.server_port)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
