"""Reading what a checkpoint holds, trusting nothing in it to run.

`.metadata` is a pickle. It is read only if its checksum is the manifest's, and by an unpickler that knows DCP's own
classes and nothing else. Tensors and values are read with `weights_only=True`.
"""

from __future__ import annotations

import io
import pickle
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from spotrun.checkpoint.manifest import METADATA, Manifest
from spotrun.checkpoint.storage import Storage
from spotrun.errors import CheckpointError

_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
}
NAMED = 8  # how many keys an error names before it only counts


class Damaged(CheckpointError):
    """Raised by reading a checkpoint whose bytes are not those that were saved; an older one may still be whole.

    A storage that does not answer is no damage: its own errors are raised, because going back to an older checkpoint
    would throw work away that is still there.
    """


class _DcpUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise Damaged(f"{METADATA} asks for {module}.{name}, which no checkpoint needs: it was not written by DCP")


def unpack_metadata(data: bytes) -> Metadata:
    try:
        metadata = _DcpUnpickler(io.BytesIO(data)).load()
    except CheckpointError:
        raise
    except Exception as error:  # bytes that anybody may have written: unpickling them raises anything
        raise Damaged(f"{METADATA} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(metadata, Metadata):
        raise Damaged(f"{METADATA} holds a {type(metadata).__name__}")
    return metadata


def read_metadata(storage: Storage, manifest: Manifest) -> Metadata:
    return unpack_metadata(read_checked(storage, manifest, METADATA))


def read_checked(storage: Storage, manifest: Manifest, name: str) -> bytes:
    """A small file of the checkpoint, its checksum compared first; raises Damaged."""
    record = next((file for file in manifest.files if file.name == name), None)
    if record is None:
        raise Damaged(f"{manifest.name} has no {name}")
    try:
        data = storage.read(f"{manifest.name}/{name}")
    except FileNotFoundError as error:
        raise Damaged(f"{name} is missing") from error
    if zlib.crc32(data) != record.crc32:
        raise Damaged(f"{name} has another checksum than when it was saved")
    return data


class SafeLoadPlanner(DefaultLoadPlanner):
    """DCP's planner, except that values which are no tensors are restored with `weights_only=True`."""

    def __init__(self, *, flatten_state_dict: bool = True) -> None:
        super().__init__(flatten_state_dict=flatten_state_dict)
        self._seen: dict[bytes, Any] = {}

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        key, data = read_item.dest_index.fqn, value.getvalue()
        if data in self._seen:
            loaded = self._seen[data]
        else:
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            if loaded is None or isinstance(loaded, (bool, int, float, str)):  # a flattened optimizer repeats them
                self._seen[data] = loaded
        if not self.flatten_state_dict:
            self.state_dict[key] = loaded
            return
        *way, last = self.mappings[key]
        holder: Any = self.original_state_dict
        for part in way:
            holder = holder[part]
        holder[last] = loaded


def check_keys(wanted: Mapping[str, Any], metadata: Metadata, name: str) -> None:
    """Raises CheckpointError naming the keys by which a state (flat) and a checkpoint differ."""
    held = metadata.state_dict_metadata
    differences = []
    missing = sorted(set(wanted) - set(held))
    unexpected = sorted(set(held) - set(wanted))
    shapes = []
    for key in sorted(set(wanted) & set(held)):
        value, stored = wanted[key], held[key]
        if isinstance(stored, TensorStorageMetadata) and isinstance(value, torch.Tensor):
            if value.shape != stored.size:
                shapes.append(f"{key} ({_shape(stored.size)} saved, {_shape(value.shape)} now)")
        elif isinstance(stored, BytesStorageMetadata) == isinstance(value, torch.Tensor):
            kinds = "a value saved, a tensor now" if isinstance(value, torch.Tensor) else "a tensor saved, a value now"
            shapes.append(f"{key} ({kinds})")
    for what, keys in (("not in the checkpoint", missing), ("only in the checkpoint", unexpected), ("changed", shapes)):
        if keys:
            more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
            differences.append(f"{what}: {', '.join(keys[:NAMED])}{more}")
    if differences:
        raise CheckpointError(f"checkpoint {name} does not fit this model; {'; '.join(differences)}")


def _shape(size: torch.Size) -> str:
    return "x".join(map(str, size)) or "scalar"


def read_state(storage: Storage, manifest: Manifest, state_dict: dict[str, Any], *, strict: bool = True) -> None:
    """Fill `state_dict` in place with this rank's part; no collectives. Raises Damaged, or CheckpointError (keys).

    With `strict=False` keys that only the checkpoint has are left out.
    """
    metadata = read_metadata(storage, manifest)
    planner = SafeLoadPlanner()
    planner.set_up_planner(state_dict, metadata, True)
    if not strict:
        held = {key: value for key, value in metadata.state_dict_metadata.items() if key in planner.state_dict}
        check_keys(planner.state_dict, Metadata(held), manifest.name)
    else:
        check_keys(planner.state_dict, metadata, manifest.name)
    plan = planner.finish_plan(planner.create_global_plan([planner.create_local_plan()])[0])
    fill(storage, manifest.name, metadata, plan, planner)


def fill(storage: Storage, directory: str, metadata: Metadata, plan: LoadPlan, planner: DefaultLoadPlanner) -> None:
    """Read each file once from front to back, and put each item where the planner wants it."""
    per_file: dict[str, list[tuple[Any, ReadItem]]] = {}
    for item in plan.items:
        place = metadata.storage_data[item.storage_index]
        per_file.setdefault(place.relative_path, []).append((place, item))
    for name, wanted in per_file.items():
        try:
            with storage.open(f"{directory}/{name}") as file:
                last: tuple[int, Any] = (-1, None)
                for place, item in sorted(wanted, key=lambda pair: pair[0].offset):
                    if last[0] != place.offset:  # several reads may come from one stored piece
                        file.seek(place.offset)
                        last = (place.offset, _decode(file.read(place.length), place.length, item, planner, name))
                    if item.type != LoadItemType.BYTE_IO:
                        _put(last[1], item, planner)
        except FileNotFoundError as error:
            raise Damaged(f"{name} is missing") from error


def _decode(data: bytes, length: int, item: ReadItem, planner: DefaultLoadPlanner, name: str) -> torch.Tensor | None:
    if len(data) != length:
        raise Damaged(f"{name} ends within {item.storage_index.fqn}")
    try:
        if item.type == LoadItemType.BYTE_IO:
            planner.load_bytes(item, io.BytesIO(data))
            return None
        tensor: torch.Tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return tensor
    except Exception as error:  # the same holds for torch.load
        what = f"{type(error).__name__}: {error}"
        raise Damaged(f"{item.storage_index.fqn} in {name} cannot be decoded: {what}") from error


def _put(tensor: torch.Tensor, item: ReadItem, planner: DefaultLoadPlanner) -> None:
    for dimension, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
        tensor = tensor.narrow(dimension, start, length)
    target = planner.resolve_tensor(item).detach()
    target.copy_(tensor)
    planner.commit_tensor(item, target)
