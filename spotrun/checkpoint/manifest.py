"""What a whole checkpoint is: the record that is published last. Pure: names, codec, order.

A directory `step-00000120-r3-a1` (step, round, attempt) holds DCP's shards `__R_0.distcp`, its `.metadata`,
`ranks.json` (what each rank asked to keep for itself) and, published last and never replaced, `manifest.json`. Without
a valid manifest whose files are there at their sizes it is not a checkpoint. `begin.json` says who started it.

Which of two whole checkpoints is the newer one is read from the manifests alone, by `order`: generation, round, step,
attempt. The generation is one more than the highest that its saver found, so whoever continues from
a checkpoint outranks it, even if an older round, not knowing that it was replaced, still publishes a later step, and
even if the rounds start over because etcd has lost its data.
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass, field
from typing import Any

from spotrun.errors import CheckpointError

VERSION = 1
MANIFEST = "manifest.json"
BEGIN = "begin.json"
METADATA = ".metadata"
RANKS = "ranks.json"
OWNER = "owner.json"

_NAME = re.compile(r"step-(\d{8,})-r(\d+)-a(\d+)")


@dataclass(frozen=True, slots=True)
class FileRecord:
    name: str
    size: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Manifest:
    step: int
    round: int
    attempt: int
    generation: int
    run_id: str
    save_id: str  # random: tells two saves of one name apart
    world_size: int
    files: tuple[FileRecord, ...]
    torch_version: str
    spotrun_version: str
    created_wall_s: float  # for people; never compared
    extra: dict[str, Any] = field(default_factory=dict)  # JSON of the caller's: data position, epoch, ...

    @property
    def name(self) -> str:
        return directory_name(self.step, self.round, self.attempt)

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def order(self) -> tuple[int, int, int, int]:
        return (self.generation, self.round, self.step, self.attempt)


def directory_name(step: int, round: int, attempt: int) -> str:
    return f"step-{step:08d}-r{round}-a{attempt}"


def parse_name(name: str) -> tuple[int, int, int] | None:
    """(step, round, attempt), or None for a directory that is no checkpoint of ours."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def _canonical(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=True).encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"extra state of a checkpoint must be JSON: {error}") from error


def encode(manifest: Manifest) -> bytes:
    """The file's bytes; raises CheckpointError if `extra` is not JSON."""
    body: dict[str, Any] = {
        "v": VERSION,
        "step": manifest.step,
        "round": manifest.round,
        "attempt": manifest.attempt,
        "generation": manifest.generation,
        "run_id": manifest.run_id,
        "save_id": manifest.save_id,
        "world_size": manifest.world_size,
        "files": [{"name": f.name, "size": f.size, "crc32": f"{f.crc32:08x}"} for f in manifest.files],
        "torch": manifest.torch_version,
        "spotrun": manifest.spotrun_version,
        "created_wall_s": manifest.created_wall_s,
        "extra": manifest.extra,
    }
    body["crc32"] = f"{zlib.crc32(_canonical(body)):08x}"
    return json.dumps(body, indent=1, sort_keys=True).encode()


def decode(data: bytes, name: str) -> Manifest:
    """The manifest in `data`, found in directory `name`; raises CheckpointError naming what is wrong with it."""
    try:
        body = json.loads(data)
        if not isinstance(body, dict) or body.get("v") != VERSION:
            version = body.get("v") if isinstance(body, dict) else None
            raise CheckpointError(f"{name}/{MANIFEST} has version {version!r}, this spotrun reads {VERSION}")
        crc32 = body.pop("crc32")
        if f"{zlib.crc32(_canonical(body)):08x}" != crc32:
            raise CheckpointError(f"{name}/{MANIFEST} is damaged: its own checksum does not match")
        manifest = Manifest(
            step=int(body["step"]),
            round=int(body["round"]),
            attempt=int(body["attempt"]),
            generation=int(body["generation"]),
            run_id=str(body["run_id"]),
            save_id=str(body["save_id"]),
            world_size=int(body["world_size"]),
            files=tuple(FileRecord(str(f["name"]), int(f["size"]), int(f["crc32"], 16)) for f in body["files"]),
            torch_version=str(body["torch"]),
            spotrun_version=str(body["spotrun"]),
            created_wall_s=float(body["created_wall_s"]),
            extra=dict(body["extra"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{name}/{MANIFEST} is not a manifest: {type(error).__name__}: {error}") from error
    if manifest.name != name:
        raise CheckpointError(f"{name}/{MANIFEST} belongs to {manifest.name}: the directory was renamed or copied over")
    if any("/" in file.name or file.name in ("", ".", "..") for file in manifest.files):
        raise CheckpointError(f"{name}/{MANIFEST} names a file outside its directory")
    if METADATA not in {file.name for file in manifest.files}:
        raise CheckpointError(f"{name}/{MANIFEST} does not list {METADATA}")
    return manifest


def wrong_sizes(manifest: Manifest, present: dict[str, int]) -> list[str]:
    """What is missing or of another size, given name -> size of the files that are there."""
    problems = []
    for file in manifest.files:
        if file.name not in present:
            problems.append(f"{file.name} is missing")
        elif present[file.name] != file.size:
            problems.append(f"{file.name} has {present[file.name]} bytes, not {file.size}")
    return problems
