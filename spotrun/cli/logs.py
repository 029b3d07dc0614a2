"""Where the agent's log goes: stderr, one record an event, as lines for people or as JSON (--log-format=json).

On a terminal that the workers do not write to, the progress of training is one line that is written over.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

from spotrun import events

logger = logging.getLogger("spotrun")
CLEAR = "\r\x1b[K"


class JsonFormatter(logging.Formatter):
    """An object a line: level, message, and the fields of the event where the record is one."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = getattr(record, "event", {})
        fields = {"v": 1, "wall_s": record.created, **event, "level": record.levelname, "message": record.getMessage()}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=events.plain)


if TYPE_CHECKING:
    _ToStream = logging.StreamHandler[TextIO]
else:
    _ToStream = logging.StreamHandler  # generic only from Python 3.11 on


class Handler(_ToStream):
    """`in_place`: the stream is a terminal of our own, and the last line of progress stays at the bottom."""

    def __init__(self, stream: TextIO, *, in_place: bool) -> None:
        super().__init__(stream)
        self._in_place = in_place
        self._line = ""

    def emit(self, record: logging.LogRecord) -> None:
        if not self._in_place:
            super().emit(record)
            return
        kind = getattr(record, "event", {}).get("kind")
        if kind == "progress":
            self._line = self.format(record)
            self.stream.write(CLEAR + self._line)
        else:
            if kind in ("job_ended", "left"):
                self._line = ""  # the shell's prompt comes next
            self.stream.write(CLEAR + self.format(record) + self.terminator + self._line)
        self.flush()


def to_stderr(form: str, *, in_place: bool) -> None:
    """Unless the program around us has its own logging. LOGLEVEL, torch's variable, says what is logged."""
    ours = [handler for handler in logger.handlers if isinstance(handler, Handler)]
    if not ours and (logger.handlers or logging.getLogger().handlers):
        return
    handler = Handler(sys.stderr, in_place=in_place and form == "text")
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter("spotrun: %(message)s"))
    logger.handlers = [handler]
    logger.propagate = False  # nothing twice, should torch or the script's modules give the root logger a handler
    level = os.environ.get("LOGLEVEL", "INFO").upper()
    logger.setLevel(level if isinstance(logging.getLevelName(level), int) else logging.INFO)
