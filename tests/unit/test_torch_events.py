"""TorchElastic's own events go through the stream of all others."""

from __future__ import annotations

from typing import Any

from torch.distributed.elastic import events as elastic_events

from spotrun import events
from spotrun.launcher import torch_events


def test_an_event_of_torchs_agent_is_one_of_ours() -> None:
    heard: list[dict[str, Any]] = []
    event = elastic_events.Event("torchelastic.worker.status.FAILED", elastic_events.EventSource.AGENT)
    event.metadata = {"global_rank": 3, "error": None}
    with events.to_listener(heard.append):
        elastic_events.record(event, torch_events.chosen("null"))
    (one,) = heard
    assert (one["kind"], one["name"], one["source"]) == ("torch", "torchelastic.worker.status.FAILED", "AGENT")
    assert one["metadata"] == '{"global_rank": 3}'


def test_a_handler_that_somebody_chose_is_theirs() -> None:
    assert torch_events.chosen("console") == "console"
