"""One rank's shard file in DCP's own format, and DCP's `.metadata`.

Tensors go from the staging buffer straight into the file: no second copy, one checksum on the way. The format is that
of `torch.distributed.checkpoint.FileSystemWriter` (torch 2.11 to 2.13: one torch.save a tensor, back to back), so plain
`torch.distributed.checkpoint.load` reads it. It is not written through DCP's StorageWriter, because that interface
stages before it plans and leaves the order of the commit to `dcp.save`.
"""

from __future__ import annotations

import contextlib
import pickle
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta

from spotrun.checkpoint.manifest import FileRecord
from spotrun.checkpoint.staging import Staged
from spotrun.checkpoint.storage import Sink, Storage

CHUNK_BYTES = 16 << 20  # how much is written between two looks at `cancelled`


@dataclass(frozen=True, slots=True)
class Shard:
    file: FileRecord
    entries: tuple[tuple[str, tuple[int, ...] | None, int, int], ...]  # key, offset in the tensor, position, length


class _Checked:
    """What torch.save writes to: counts, checksums and passes on."""

    def __init__(self, sink: Sink, cancelled: Callable[[], None]) -> None:
        self._sink = sink
        self._cancelled = cancelled
        self.position = 0
        self.crc32 = 0
        self.failure: BaseException | None = None

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        try:
            for start in range(0, len(view), CHUNK_BYTES):
                self._cancelled()
                part = view[start : start + CHUNK_BYTES]
                self._sink.write(part)
                self.crc32 = zlib.crc32(part, self.crc32)
        except BaseException as error:  # an interrupt too: see _save_tensor
            self.failure = error
            raise
        self.position += len(view)
        return len(view)

    def flush(self) -> None:
        pass


@contextlib.contextmanager
def _without_zip_checksums() -> Iterator[None]:
    """torch's zip checksums cost as much as ours, and torch never reads them (pytorch issue 126952).

    The switch is one of the whole process: what another thread saves meanwhile has no zip checksums either.
    """
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def shard_name(rank: int) -> str:
    return f"__{rank}_0.distcp"


def write_shard(
    storage: Storage, directory: str, rank: int, staged: Sequence[Staged], cancelled: Callable[[], None]
) -> Shard | None:
    """Write this rank's file durably; None if the rank has nothing to write. `cancelled` raises to stop it."""
    if not staged:
        return None
    entries: list[tuple[str, tuple[int, ...] | None, int, int]] = []
    name = shard_name(rank)
    with storage.create(f"{directory}/{name}") as sink, _without_zip_checksums():
        stream = _Checked(sink, cancelled)
        for one in staged:
            start = stream.position
            if isinstance(one.data, bytes):
                stream.write(one.data)
            else:
                _save_tensor(one.data, stream)
            index = one.piece.item.index
            offset = None if index.offset is None else tuple(index.offset)
            entries.append((index.fqn, offset, start, stream.position - start))
    return Shard(FileRecord(name, stream.position, stream.crc32), tuple(entries))


def _save_tensor(tensor: torch.Tensor, stream: _Checked) -> None:
    try:
        torch.save(tensor, stream)  # type: ignore[arg-type]
    except Exception:  # torch closes its archive on the way out, and whatever that raises hides the first failure
        if stream.failure is not None:
            raise stream.failure from None
        raise


def write_bytes(storage: Storage, path: str, data: bytes) -> FileRecord:
    with storage.create(path) as sink:
        sink.write(data)
    return FileRecord(path.rpartition("/")[2], len(data), zlib.crc32(data))


def pack_metadata(metadata: Metadata, shards: Sequence[Shard], save_id: str) -> bytes:
    """The bytes of `.metadata`: a pickle, as DCP reads it."""
    placed: dict[Any, Any] = {}
    for shard in shards:
        for key, offset, position, length in shard.entries:
            placed[MetadataIndex(key, offset)] = _StorageInfo(shard.file.name, position, length)
    return pickle.dumps(
        Metadata(
            state_dict_metadata=metadata.state_dict_metadata,
            planner_data=metadata.planner_data,
            storage_data=placed,
            storage_meta=StorageMeta(save_id=save_id),
        )
    )
