"""Checkpoints on any fsspec filesystem; S3 through s3fs is the one that is tested."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO

from spotrun.checkpoint.storage import TEMPORARY, Sink

logger = logging.getLogger("spotrun")

# Object stores: a file appears at once when its upload is completed. Elsewhere it is written beside and renamed.
AT_ONCE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}


class _FsspecSink:
    def __init__(self, file: Any) -> None:
        self._file = file
        self.size = 0

    def write(self, data: bytes | memoryview, /) -> int:
        self._file.write(data)
        size = memoryview(data).nbytes
        self.size += size
        return size


class FsspecStorage:
    """Any fsspec filesystem. Make it after a fork, not before: fsspec's event loop does not survive one."""

    def __init__(self, filesystem: Any, root: str, url: str) -> None:
        self.filesystem = filesystem
        self._root = root.rstrip("/")
        self._url = url
        protocols = {filesystem.protocol} if isinstance(filesystem.protocol, str) else set(filesystem.protocol)
        self._at_once = bool(protocols & AT_ONCE)

    @property
    def url(self) -> str:
        return self._url

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[Sink]:
        target = self._path(path)
        folder, _, name = target.rpartition("/")
        self.filesystem.makedirs(folder, exist_ok=True)
        written_to = target if self._at_once else f"{folder}/{TEMPORARY}{name}-{uuid.uuid4().hex}"
        file = self.filesystem.open(written_to, "wb", autocommit=not self._at_once)
        try:
            sink = _FsspecSink(file)
            yield sink
            file.close()
            if self._at_once:
                file.commit()
        except BaseException:  # an interrupt too: nothing half-written may stay
            self._abandon(file, written_to)
            raise
        self.filesystem.invalidate_cache(folder)
        size = self.filesystem.size(written_to)
        if size != sink.size:
            self.filesystem.rm_file(written_to)
            raise OSError(f"{target} has {size} bytes after {sink.size} were written")
        if written_to != target:
            self.filesystem.mv(written_to, target)
            self.filesystem.invalidate_cache(folder)

    def _abandon(self, file: Any, written_to: str) -> None:
        """Drop an unfinished file so that neither its close nor its finaliser uploads a part of it."""
        try:
            if self._at_once:
                file.discard()
                file.closed = True
            else:
                file.close()
                self.filesystem.rm_file(written_to)
        except Exception as error:  # noqa: BLE001 - the first failure is the one to report, and it is on its way
            logger.warning("the unfinished file %s may be left behind: %s", written_to, error)

    def publish(self, path: str, data: bytes) -> None:
        target = self._path(path)
        self.filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
        try:
            self.filesystem.pipe_file(target, data, mode="create")
        except OSError as error:
            # A retried request may have found what it had itself written; S3 answers 412 with more than one error.
            self.filesystem.invalidate_cache(target.rpartition("/")[0])
            if not self.filesystem.exists(target):
                raise
            if self.read(path) != data:
                raise FileExistsError(f"{target} exists") from error

    def open(self, path: str) -> BinaryIO:
        file: BinaryIO = self.filesystem.open(self._path(path), "rb")
        return file

    def read(self, path: str) -> bytes:
        data: bytes = self.filesystem.cat_file(self._path(path))
        return bytes(data)

    def _list(self, directory: str) -> list[dict[str, Any]]:
        target = self._path(directory)
        self.filesystem.invalidate_cache(target)  # other ranks write here too
        try:
            entries: list[dict[str, Any]] = self.filesystem.ls(target, detail=True)
        except FileNotFoundError:
            return []
        # An object store may list a marker of the directory itself.
        return [entry for entry in entries if entry["name"].rstrip("/") != target.rstrip("/")]

    def files(self, directory: str = "") -> dict[str, int]:
        found = {entry["name"].rpartition("/")[2]: entry for entry in self._list(directory) if entry["type"] == "file"}
        return {name: int(found[name]["size"]) for name in sorted(found)}

    def directories(self) -> list[str]:
        listed = (entry for entry in self._list("") if entry["type"] == "directory")
        return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in listed)

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(self._path(path))
        self.filesystem.invalidate_cache(self._path(path).rpartition("/")[0])

    def delete_directory(self, directory: str) -> None:
        target = self._path(directory)
        self._abort_uploads(target)
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm(target, recursive=True)
        self.filesystem.invalidate_cache(target)
        self.filesystem.invalidate_cache(self._root)

    def _abort_uploads(self, target: str) -> None:
        """S3 keeps, and bills, the parts of an upload whose process was killed."""
        if not hasattr(self.filesystem, "list_multipart_uploads"):
            return
        bucket, prefix, _ = self.filesystem.split_path(target)
        for upload in self.filesystem.list_multipart_uploads(bucket):
            if upload["Key"].startswith(prefix + "/"):
                self.filesystem.abort_mpu(bucket, upload["Key"], upload["UploadId"])
