"""What a worker tells its agent of its steps: a few times a second at most, and without waiting for a GPU."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TELL_S = 0.2
STEPS = 101  # whose median is the step time: compiling, saving and restoring do not move it


class Teller:
    """One rank's word on one round."""

    def __init__(self, say: Callable[..., None], round_number: int) -> None:
        self._say = say
        self._round = round_number
        self._took_s: deque[float] = deque(maxlen=STEPS)
        self._told_s = -math.inf  # the first step is told at once: that stepping has begun
        self._loss: float | None = None
        self._on_its_way: tuple[torch.Tensor, Any] | None = None

    def due(self, took_s: float, now_s: float) -> bool:
        """Take in a step; whether to tell now."""
        self._took_s.append(took_s)
        return now_s - self._told_s >= TELL_S

    def tell(self, now_s: float, loss: torch.Tensor | float | None, **fields: float | None) -> None:
        self._told_s = now_s
        self._look_at(loss)
        self._say(round=self._round, step_s=statistics.median(self._took_s), loss=self._loss, **fields)

    def _look_at(self, loss: torch.Tensor | float | None) -> None:
        """On a GPU: take the loss that was copied since the last call, and have this one copied."""
        if loss is None or isinstance(loss, float | int):
            self._loss = loss
            return
        if loss.device.type != "cuda":
            self._loss = float(loss.detach())
            return
        import torch

        if self._on_its_way is not None and self._on_its_way[1].query():
            self._loss, self._on_its_way = float(self._on_its_way[0]), None
        if self._on_its_way is None:
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._on_its_way = loss.detach().to("cpu", non_blocking=True), copied
            copied.record()
