"""The commit of one save, in two phases, in the background thread of each rank.

    rank 0                                            rank R
    claim a new directory (begin.json, if absent)
    ── its name ──────────────────────────────────>
    write __0_0.distcp                                write __R_0.distcp, durable
                            <── size, checksum, entries, or the error ──
    all there at their sizes? write .metadata, ranks.json, durable
    fence(manifest)          raises: nothing is published
    publish manifest.json    if absent: from here on the checkpoint exists
    record(manifest)
    ── the manifest, or why there is none ────────>

A rank that fails says so and all ranks raise its error. A rank that is killed is noticed by its connection, and no
manifest is published. If rank 0 is killed, the others cannot know whether it had published; the storage decides.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from spotrun import events
from spotrun.checkpoint.manifest import (
    BEGIN,
    MANIFEST,
    METADATA,
    RANKS,
    FileRecord,
    Manifest,
    decode,
    directory_name,
    encode,
    parse_name,
)
from spotrun.checkpoint.peers import PeerLost, Peers
from spotrun.checkpoint.storage import Storage
from spotrun.checkpoint.survey import list_checkpoints, owner_of
from spotrun.checkpoint.writer import Shard, pack_metadata, write_bytes
from spotrun.errors import CheckpointError

Hook = Callable[[Manifest], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What all ranks know about the save before it starts."""

    step: int
    round: int
    run_id: str
    extra: dict[str, Any]
    rank_state: Any  # JSON that this rank wants back


class Commit:
    """The part of a rank in the saves of one Saver. `cancelled` raises once somebody has given the save up."""

    def __init__(self, storage: Storage, peers: Peers, fence: Hook | None, record: Hook | None) -> None:
        self._storage = storage
        self._peers = peers
        self._fence = fence
        self._record = record
        self._generation: int | None = None
        self._versions = (torch.__version__, _own_version())

    def run(
        self, request: Request, write: Callable[[str], Shard | None], metadata: Metadata, cancelled: Callable[[], None]
    ) -> Manifest:
        """Blocks until the outcome is known; raises CheckpointError. `write` puts this rank's shard in a directory."""
        if self._peers.rank == 0:
            return self._lead(request, write, metadata, cancelled)
        return self._follow(request, write)

    def _follow(self, request: Request, write: Callable[[str], Shard | None]) -> Manifest:
        try:
            start = self._peers.receive(0)
            if "error" in start:
                raise CheckpointError(start["error"])
            self._peers.send(0, _fragment(self._peers.rank, write, start["name"], request))
            outcome = self._peers.receive(0)
        except PeerLost as lost:
            raise CheckpointError(
                f"{lost}; it publishes checkpoints, so only {self._storage.url} can tell whether step {request.step} "
                "was saved"
            ) from lost
        if "error" in outcome:
            raise CheckpointError(outcome["error"])
        return decode(outcome["manifest"].encode(), start["name"])

    def _lead(
        self, request: Request, write: Callable[[str], Shard | None], metadata: Metadata, cancelled: Callable[[], None]
    ) -> Manifest:
        followers = range(1, self._peers.size)
        lost: dict[int, str] = {}
        save_id = uuid.uuid4().hex
        try:
            name = self._begin(request, save_id)
        except Exception as error:  # whatever the storage's library raises, the other ranks must hear of it
            why = f"step {request.step} was not saved to {self._storage.url}: {_describe(0, error)}"
            self._tell(followers, {"error": why}, lost)
            raise CheckpointError(why) from error
        self._tell(followers, {"name": name}, lost)
        fragments = {0: _fragment(self._peers.rank, write, name, request)}
        for rank in followers:
            try:
                fragments[rank] = self._peers.receive(rank) if rank not in lost else {"error": lost[rank]}
            except PeerLost as gone:
                fragments[rank] = {"error": str(gone)}
        try:
            manifest = self._finish(request, name, save_id, fragments, metadata, cancelled)
        except CheckpointError as error:
            self._tell(followers, {"error": str(error)}, lost)
            raise
        self._tell(followers, {"manifest": encode(manifest).decode()}, lost)
        return manifest

    def _tell(self, ranks: range, message: dict[str, Any], lost: dict[int, str]) -> None:
        for rank in ranks:
            try:
                self._peers.send(rank, message)
            except PeerLost as gone:
                lost[rank] = str(gone)

    def _begin(self, request: Request, save_id: str) -> str:
        """Take a directory name that nobody has used, in this life of the job or an earlier one."""
        if self._generation is None:
            # Damaged ones count too: what is saved now must outrank a checkpoint that was skipped.
            before = [one.manifest.generation for one in list_checkpoints(self._storage) if one.manifest is not None]
            self._generation = max(before, default=0) + 1
        self._check_owner(request.run_id)
        used = [parsed for name in self._storage.directories() if (parsed := parse_name(name))]
        attempt = 1 + max((a for step, round, a in used if (step, round) == (request.step, request.round)), default=0)
        begin = json.dumps({"v": 1, "run_id": request.run_id, "save_id": save_id}).encode()
        while True:
            name = directory_name(request.step, request.round, attempt)
            try:
                self._storage.publish(f"{name}/{BEGIN}", begin)
            except FileExistsError:  # another saver of this step and round took it since the listing
                attempt += 1
            else:
                return name

    def _check_owner(self, run_id: str) -> None:
        owner = owner_of(self._storage)
        if owner is not None and owner != run_id:
            raise CheckpointError(f"the directory was taken over by job {owner!r}")

    def _finish(
        self,
        request: Request,
        name: str,
        save_id: str,
        fragments: dict[int, dict[str, Any]],
        metadata: Metadata,
        cancelled: Callable[[], None],
    ) -> Manifest:
        """From all shards durable to published; what fails before the publishing leaves no directory behind."""
        try:
            wrong = [fragment["error"] for fragment in fragments.values() if "error" in fragment]
            if wrong:
                raise CheckpointError("; ".join(wrong))
            files = self._write_tables(name, save_id, fragments, metadata)
            manifest = Manifest(
                request.step,
                request.round,
                (parse_name(name) or (0, 0, 0))[2],
                self._generation or 1,
                request.run_id,
                save_id,
                self._peers.size,
                tuple(files),
                *self._versions,
                time.time(),
                request.extra,
            )
            data = encode(manifest)
            self._check_owner(request.run_id)
            if self._fence is not None:
                self._fence(manifest)
            cancelled()
        except Exception as error:  # whatever it is, what was written must go
            self._discard(name)
            why = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
            raise CheckpointError(f"step {request.step} was not saved to {self._storage.url}: {why}") from error
        self._publish(name, data)
        if self._record is not None:
            try:
                self._record(manifest)
            except Exception as error:  # noqa: BLE001 - the checkpoint is whole without its record
                events.emit(
                    "checkpoint_record_failed",
                    f"checkpoint {name} is published, but could not be recorded: {type(error).__name__}: {error}",
                    level=logging.WARNING,
                    checkpoint=name,
                )
        return manifest

    def _write_tables(
        self, name: str, save_id: str, fragments: dict[int, dict[str, Any]], metadata: Metadata
    ) -> list[FileRecord]:
        shards = [_unpack(fragments[rank]["shard"]) for rank in sorted(fragments) if fragments[rank]["shard"]]
        present = self._storage.files(name)
        for shard in shards:
            if present.get(shard.file.name) != shard.file.size:
                raise CheckpointError(
                    f"rank 0 sees {present.get(shard.file.name, 'no')} bytes of {shard.file.name}, not the "
                    f"{shard.file.size} written; all ranks must use one shared directory"
                )
        states = {str(rank): fragments[rank]["state"] for rank in sorted(fragments)}
        ranks = json.dumps({"v": 1, "state": states}).encode()
        return [
            *(shard.file for shard in shards),
            write_bytes(self._storage, f"{name}/{RANKS}", ranks),
            write_bytes(self._storage, f"{name}/{METADATA}", pack_metadata(metadata, shards, save_id)),
        ]

    def _publish(self, name: str, data: bytes) -> None:
        path = f"{name}/{MANIFEST}"
        try:
            self._storage.publish(path, data)
        except Exception as error:  # whatever the storage's library raises
            try:
                if self._storage.read(path) == data:  # the answer was lost, not the request
                    return
            except Exception as unread:  # noqa: BLE001 - told below
                error.add_note(f"reading it back: {unread}") if hasattr(error, "add_note") else None
            raise CheckpointError(
                f"{name} is durable, but publishing its manifest in {self._storage.url} failed, so it may or may not "
                f"count: {type(error).__name__}: {error}"
            ) from error

    def _discard(self, name: str) -> None:
        """A failed save must not fill the disk that the next one needs."""
        try:
            self._storage.delete_directory(name)
        except Exception as error:  # noqa: BLE001 - the failure of the save itself is the one to raise
            logging.getLogger("spotrun").warning("the failed save %s is left behind: %s", name, error)


def _fragment(rank: int, write: Callable[[str], Shard | None], name: str, request: Request) -> dict[str, Any]:
    try:
        shard = write(name)
    except Exception as error:  # noqa: BLE001 - it is sent to rank 0, and raised by all ranks
        return {"error": _describe(rank, error)}
    packed = None
    if shard is not None:
        packed = {"name": shard.file.name, "size": shard.file.size, "crc32": shard.file.crc32, "entries": shard.entries}
    return {"shard": packed, "state": request.rank_state}


def _unpack(packed: dict[str, Any]) -> Shard:
    entries = tuple((key, None if off is None else tuple(off), at, size) for key, off, at, size in packed["entries"])
    return Shard(FileRecord(packed["name"], packed["size"], packed["crc32"]), entries)


def _describe(rank: int, error: Exception) -> str:
    what = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
    return f"rank {rank}: {what}"


def _own_version() -> str:
    try:
        return version("spotrun")
    except PackageNotFoundError:  # an uninstalled checkout
        return "unknown"
