"""Checkpoints in a local or NFS directory: temporary name, fsync, rename, fsync of the directory."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from spotrun.checkpoint.storage import TEMPORARY, Sink

logger = logging.getLogger("spotrun")

SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h: start the write-back of dirty pages, do not wait
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Linux alone has it
WRITEBACK_BYTES = 8 << 20  # how much is written between two such starts


def _write_all(fd: int, data: bytes | memoryview) -> int:
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):  # the kernel takes at most 2 GiB a call, and may take less
        done += os.write(fd, view[done:])
    return done


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _start_writeback(fd: int, offset: int, size: int) -> None:
    """Let the disk work while the next bytes are checksummed; fsync, which makes it durable, then waits for less."""
    if _sync_file_range is not None:
        _sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(size), SYNC_FILE_RANGE_WRITE)


class _LocalSink:
    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = 0
        self._started = 0

    def write(self, data: bytes | memoryview, /) -> int:
        written = _write_all(self.fd, data)
        self.size += written
        if self.size - self._started >= WRITEBACK_BYTES:
            _start_writeback(self.fd, self._started, self.size - self._started)
            self._started = self.size
        return written


class LocalStorage:
    """A directory of this machine, or one that all nodes mount."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @property
    def url(self) -> str:
        return str(self._root)

    def _parent_of(self, path: str) -> Path:
        """The directory of `path`, made durable if it is new."""
        parent = (self._root / path).parent
        missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            _sync_directory(folder.parent)
        return parent

    @contextlib.contextmanager
    def _temporary(self, path: str) -> Iterator[tuple[Path, Path, _LocalSink]]:
        final = self._parent_of(path) / Path(path).name
        temporary = final.with_name(f"{TEMPORARY}{final.name}-{uuid.uuid4().hex}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            sink = _LocalSink(fd)
            try:
                yield temporary, final, sink
            finally:
                os.close(fd)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[Sink]:
        with self._temporary(path) as (temporary, final, sink):
            yield sink
            os.fsync(sink.fd)
            size = os.fstat(sink.fd).st_size
            if size != sink.size:
                raise OSError(f"{final} has {size} bytes after {sink.size} were written")
            temporary.rename(final)
            _sync_directory(final.parent)

    def publish(self, path: str, data: bytes) -> None:
        with self._temporary(path) as (temporary, final, sink):
            sink.write(data)
            os.fsync(sink.fd)
            try:
                os.link(temporary, final)
            except FileExistsError:
                # An NFS server that answers a repeated request says "exists" about our own link.
                if final.read_bytes() != data:
                    raise
            except OSError as error:
                logger.debug("no hard links at %s (%s): exclusive create instead", final, error)
                self._create_exclusively(final, data)
            _sync_directory(final.parent)

    @staticmethod
    def _create_exclusively(final: Path, data: bytes) -> None:
        """For filesystems without hard links. A crash in between leaves a torn file, which its checksum gives away."""
        fd = os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            _write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)

    def open(self, path: str) -> BinaryIO:
        return (self._root / path).open("rb")

    def read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()

    def _scan(self, directory: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._root / directory) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self, directory: str = "") -> dict[str, int]:
        found = {}
        for entry in self._scan(directory):
            with contextlib.suppress(FileNotFoundError):  # renamed or deleted since the scan
                if entry.is_file():
                    found[entry.name] = entry.stat().st_size
        return found

    def directories(self) -> list[str]:
        return [entry.name for entry in self._scan("") if entry.is_dir()]

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self._root / path).unlink()
            _sync_directory((self._root / path).parent)

    def delete_directory(self, directory: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._root / directory)
            _sync_directory(self._root)
