"""Providers name a moment on their clock; this turns it into the seconds that are left, whatever our own clock says."""

from __future__ import annotations

import email.utils
import math
from datetime import datetime, timezone

from spotrun.launcher.notices.fetch import Answer, Unanswered

MAINTENANCE_NEAR_S = 600.0  # of planned maintenance: before, staying earns more than leaving; after, leave in peace


def utc_s(text: str) -> float:
    """Seconds since 1970 of `2020-04-24T17:11:44Z` or `[Mon, ]21 Jan 2019 09:00:43 GMT`. Raises Unanswered."""
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        pass
    try:
        moment = email.utils.parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, TypeError, OverflowError) as error:
        raise Unanswered(f"not a time: {text[:60]!r}") from error


def seconds_until(text: str, answer: Answer, most_s: float = math.inf) -> float:
    """Seconds from `answer` to the moment `text`: by the server's own clock where it tells it, from 0 to `most_s`.

    The moment and the Date header are of one clock, so an error of ours cancels out. `most_s` is the longest lead that
    the provider gives: it bounds the error where there is no Date header.
    """
    try:
        now_s = utc_s(answer.headers.get("date", ""))
    except Unanswered:
        now_s = answer.wall_s
    return min(max(0.0, utc_s(text) - now_s), most_s)
