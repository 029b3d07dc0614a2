"""spotrun: elastic PyTorch training on machines that can vanish.

This is what a training script imports; it pulls in neither grpc nor the launcher, and torch only when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spotrun.api import Job
    from spotrun.runner import init, run

__version__ = "0.1.0"

__all__ = ["Job", "init", "run"]

_HOME = {"Job": "spotrun.api", "init": "spotrun.runner", "run": "spotrun.runner"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'spotrun' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
