"""What a person wants to see now and then while all is well: where training is. From the node of rank 0 alone."""

from __future__ import annotations

import math

from spotrun import events
from spotrun.rendezvous.state import Progress

CURVE_S = 5.0  # the ledger's file gets a point of the curve so often


def text_of(word: Progress) -> str:
    parts = [f"step {word.step}"]
    if word.step_time_s > 0:
        parts.append(f"{1 / word.step_time_s:.2f} steps/s")
    if word.loss is not None:
        parts.append(f"loss {word.loss:.4g}")
    if word.last_commit_step:
        parts.append(f"saved {word.last_commit_step}")
    return "  ".join(parts)


class ProgressLine:
    """Says when the curve is due, and when a line is. Seconds are monotonic."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._shown_s = self._noted_s = -math.inf

    def tell(self, word: Progress, now_s: float) -> None:
        point, line = self.due(now_s)
        if point:
            events.emit(
                "progress",
                text_of(word) if line else "",
                round=word.round,
                step=word.step,
                samples=word.samples,
                loss=word.loss,
                step_s=word.step_time_s,
                data_share=word.data_share,
                checkpoint_share=word.checkpoint_share,
                communication_share=word.communication_share,
                checkpoint_s=word.checkpoint_s,
            )

    def due(self, now_s: float) -> tuple[bool, bool]:
        """(a point of the curve, a line as well)"""
        line = now_s >= self._shown_s + self._every_s
        point = line or now_s >= self._noted_s + CURVE_S
        if line:
            self._shown_s = now_s
        if point:
            self._noted_s = now_s
        return point, line
