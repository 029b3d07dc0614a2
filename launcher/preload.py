"""What a zygote imports before it forks, and when a fork would not be safe."""

from __future__ import annotations

from typing import Any


class Preload:
    def __init__(self, modules: list[str], at_start: frozenset[str]) -> None:
        self.finished = True

    def step(self) -> None:
        """Import the next module."""

    def refuses(self, job: dict[str, Any]) -> str:
        """Why this worker has to be started cold; empty: it can be forked."""
        return "not there yet"
