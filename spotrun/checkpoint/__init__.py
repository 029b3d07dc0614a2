"""Coordinated sharded checkpoints: whole or not there, in DCP's format, on any storage.

    storage = open_storage("s3://bucket/run")
    claim(storage, run_id)                                       # rank 0, once: refuses another job's directory
    loaded = load(storage, state, group=group)                   # fills `state` in place from the newest whole one
    saver = Saver(storage, run_id=run_id, group=group, fence=..., record=...)
    handle = saver.save(state, step=120, round=3, extra={...})   # returns when the state is copied
    handle.result()

Any checkpoint is also read by `torch.distributed.checkpoint.load(state, checkpoint_id=<its directory>)`. This package
knows nothing of etcd: who may commit is decided by the `fence` that the caller hands in. Names that need torch are
imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spotrun.checkpoint.export import export_checkpoint, read_whole
    from spotrun.checkpoint.loader import Loaded, load
    from spotrun.checkpoint.manifest import Manifest
    from spotrun.checkpoint.pruning import prune
    from spotrun.checkpoint.saver import SaveHandle, Saver
    from spotrun.checkpoint.storage import Storage, open_storage
    from spotrun.checkpoint.survey import Found, claim, list_checkpoints, newest, wrong_checksums

__all__ = [
    "Found",
    "Loaded",
    "Manifest",
    "SaveHandle",
    "Saver",
    "Storage",
    "claim",
    "export_checkpoint",
    "list_checkpoints",
    "load",
    "newest",
    "open_storage",
    "prune",
    "read_whole",
    "wrong_checksums",
]

_HOME = {
    "Found": "survey",
    "Loaded": "loader",
    "Manifest": "manifest",
    "SaveHandle": "saver",
    "Saver": "saver",
    "Storage": "storage",
    "claim": "survey",
    "export_checkpoint": "export",
    "list_checkpoints": "survey",
    "load": "loader",
    "newest": "survey",
    "open_storage": "storage",
    "prune": "pruning",
    "read_whole": "export",
    "wrong_checksums": "survey",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
