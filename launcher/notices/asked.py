"""A drain that somebody on this machine asks for, as text: an empty one, a number of seconds, or a JSON object.

{"seconds_left": 30, "reason": "kernel update"}
"""

from __future__ import annotations

import json
import math
from typing import Any

DEFAULT_S = 30.0  # for one who gives no number: enough to save, and what the clouds give at least


class Unreadable(ValueError):
    """Raised by `parse_drain`; the message says what is wrong with the text."""


def parse_drain(text: str) -> tuple[float, str]:
    """(seconds left, reason). Raises Unreadable."""
    if not text.strip():
        return DEFAULT_S, ""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable("neither empty, nor a number of seconds, nor JSON") from None
    if isinstance(value, dict):
        reason = value.get("reason", "")
        seconds = value.get("seconds_left", DEFAULT_S)
    else:
        reason, seconds = "", value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise Unreadable("seconds_left must be a number, 0 or more")
    if not isinstance(reason, str):
        raise Unreadable("reason must be a string")
    try:
        return float(seconds), reason
    except OverflowError:
        raise Unreadable("seconds_left is too large") from None
