"""What lies in a checkpoint directory: which checkpoints are whole, which not and why, and whose directory it is."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from spotrun import events
from spotrun.checkpoint.manifest import MANIFEST, OWNER, FileRecord, Manifest, decode, parse_name, wrong_sizes
from spotrun.checkpoint.storage import Storage
from spotrun.errors import CheckpointError

READ_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """One directory. Whole: a manifest and no problem. Unfinished: no manifest. Damaged: a problem."""

    name: str
    manifest: Manifest | None = None
    problem: str = ""

    @property
    def whole(self) -> bool:
        return self.manifest is not None and not self.problem

    @property
    def unfinished(self) -> bool:
        return self.manifest is None and not self.problem


def look_at(storage: Storage, name: str) -> Found:
    """One directory by its manifest and the sizes of its files; checksums are read by `wrong_checksums`."""
    present = storage.files(name)
    if MANIFEST not in present:
        return Found(name)
    try:
        manifest = decode(storage.read(f"{name}/{MANIFEST}"), name)
    except FileNotFoundError:  # deleted since it was listed
        return Found(name)
    except CheckpointError as error:
        return Found(name, None, str(error))
    return Found(name, manifest, "; ".join(wrong_sizes(manifest, present)))


def list_checkpoints(storage: Storage) -> list[Found]:
    """All checkpoints, finished or not, the newest first, those without a readable manifest last."""
    found = [look_at(storage, name) for name in storage.directories() if parse_name(name) is not None]

    def place(one: Found) -> tuple[int, ...]:
        step, round, attempt = parse_name(one.name) or (0, 0, 0)
        return one.manifest.order if one.manifest else (-1, round, step, attempt)

    return sorted(found, key=place, reverse=True)


def newest(found: Iterable[Found]) -> Manifest | None:
    """The newest whole checkpoint by the manifests alone."""
    return max((one.manifest for one in found if one.manifest and one.whole), key=lambda m: m.order, default=None)


def report_damaged(storage: Storage, found: Iterable[Found]) -> None:
    for one in found:
        if one.problem:
            events.emit(
                "checkpoint_damaged",
                f"checkpoint {one.name} in {storage.url} is damaged and skipped: {one.problem}",
                level=logging.WARNING,
                checkpoint=one.name,
                problem=one.problem,
            )


def file_crc32(storage: Storage, path: str) -> tuple[int, int]:
    """(size, crc32) as read."""
    size = crc32 = 0
    with storage.open(path) as file:
        while data := file.read(READ_BYTES):
            crc32 = zlib.crc32(data, crc32)
            size += len(data)
    return size, crc32


def wrong_checksums(storage: Storage, name: str, files: Iterable[FileRecord]) -> list[str]:
    """Reads the files whole; what is wrong with each. Raises what the storage raises if it does not answer."""
    problems = []
    for file in files:
        try:
            size, crc32 = file_crc32(storage, f"{name}/{file.name}")
        except FileNotFoundError:
            problems.append(f"{file.name} is missing")
            continue
        if size != file.size:
            problems.append(f"{file.name} has {size} bytes, not {file.size}")
        elif crc32 != file.crc32:
            problems.append(f"{file.name} has checksum {crc32:08x}, not {file.crc32:08x}: its content has changed")
    return problems


def claim(storage: Storage, run_id: str, *, take_over: bool = False) -> None:
    """Make the directory that of job `run_id`; raises CheckpointError if it is another job's, unless `take_over`.

    A job whose directory was taken over is refused at its next commit. One that goes on in its own writes nothing: a
    disk that is full for a while costs it no round.
    """
    if owner_of(storage) == run_id:
        return
    data = json.dumps({"v": 1, "run_id": run_id}).encode()
    try:
        storage.publish(OWNER, data)
    except FileExistsError:
        owner = owner_of(storage)
        if owner == run_id:
            return
        if not take_over:
            raise CheckpointError(
                f"{storage.url} holds the checkpoints of job {owner!r}, not of {run_id!r}; "
                "give this job a directory of its own, or take that one over"
            ) from None
        events.emit("checkpoints_taken_over", f"{storage.url} is taken over from job {owner!r}", owner=owner)
        storage.delete(OWNER)
        claim(storage, run_id)


def owner_of(storage: Storage) -> str | None:
    try:
        owner = json.loads(storage.read(OWNER))
        return str(owner["run_id"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{storage.url}/{OWNER} is damaged ({error}); delete it if no job runs there") from error
