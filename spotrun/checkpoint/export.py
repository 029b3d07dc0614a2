"""One file from a checkpoint, for those who do not read DCP: `torch.save`, or safetensors."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from spotrun.checkpoint.manifest import Manifest
from spotrun.checkpoint.reader import SafeLoadPlanner, fill, read_metadata
from spotrun.checkpoint.storage import Storage
from spotrun.errors import CheckpointError

FORMATS = ("torch", "safetensors")


def read_whole(storage: Storage, manifest: Manifest) -> dict[str, Any]:
    """The state as it was saved, nested, with whole tensors in host memory."""
    metadata = read_metadata(storage, manifest)
    flat: dict[str, Any] = {
        key: torch.empty(held.size, dtype=held.properties.dtype) if isinstance(held, TensorStorageMetadata) else None
        for key, held in metadata.state_dict_metadata.items()
    }
    planner: DefaultLoadPlanner = SafeLoadPlanner(flatten_state_dict=False)
    planner.set_up_planner(flat, metadata, True)
    fill(storage, manifest.name, metadata, planner.finish_plan(planner.create_local_plan()), planner)
    paths = metadata.planner_data or {}
    nested: dict[str, Any] = {}
    for key, value in planner.state_dict.items():
        _set(nested, paths.get(key, (key,)), value)
    return nested


def _set(root: dict[str, Any], path: tuple[str | int, ...], value: Any) -> None:
    """root["a"][0]["b"] = value, making dicts and lists on the way."""
    here: Any = root
    for part, following in zip(path, (*path[1:], None), strict=True):
        fresh: Any = value if following is None else ([] if isinstance(following, int) else {})
        if isinstance(here, list):
            here.extend([None] * (int(part) + 1 - len(here)))
            if following is None or here[int(part)] is None:
                here[int(part)] = fresh
        elif following is None:
            here[part] = fresh
        else:
            here.setdefault(part, fresh)
        here = here[part]


def export_checkpoint(storage: Storage, manifest: Manifest, target: Path, *, format: str, prefix: str = "") -> None:
    """Write `target`, all or nothing. `prefix`: only keys below it, without it ("model." leaves the optimizer out).

    safetensors holds tensors alone; other values under the prefix are left out. Needs host memory for all of it.
    """
    if format not in FORMATS:
        raise CheckpointError(f"{format!r} is no export format; use {' or '.join(FORMATS)}")
    state = read_whole(storage, manifest)
    for part in [part for part in prefix.split(".") if part]:
        if not isinstance(state.get(part), dict):
            raise CheckpointError(f"{manifest.name} has no {prefix!r}; it holds: {', '.join(map(str, state))}")
        state = state[part]
    temporary = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
    try:
        if format == "torch":
            torch.save(state, temporary)
        else:
            _save_safetensors(state, temporary, manifest)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise CheckpointError(f"{target} could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _save_safetensors(state: dict[str, Any], path: Path, manifest: Manifest) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise CheckpointError("safetensors is not installed: pip install safetensors") from error
    tensors = _tensors(state, "")
    if not tensors:
        raise CheckpointError(f"{manifest.name} has no tensors to export")
    save_file(tensors, path, metadata={"format": "pt", "step": str(manifest.step), "extra": json.dumps(manifest.extra)})


def _tensors(value: Any, key: str) -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {key: value.contiguous()}
    parts: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: dict[str, torch.Tensor] = {}
    for name, part in parts:
        found |= _tensors(part, f"{key}.{name}" if key else str(name))
    return found
