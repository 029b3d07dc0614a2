"""TorchElastic's own events, into the stream of all others: a handler for `--event-log-handler`, and the default."""

from __future__ import annotations

import json
import logging

from torch.distributed.elastic.events import handlers

from spotrun import events

NAME = "spotrun"


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        data = json.loads(record.getMessage())
        metadata = {name: value for name, value in data["metadata"].items() if value is not None}
        events.emit("torch", name=data["name"], source=data["source"], metadata=json.dumps(metadata))


def chosen(name: str) -> str:
    """The handler to give torch for what --event-log-handler says: ours, where nobody asked for another."""
    handlers._log_handlers.setdefault(NAME, _Handler())
    return NAME if name == "null" else name
