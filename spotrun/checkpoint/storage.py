"""Where checkpoints lie: a local or NFS directory, or any fsspec URL, behind one small protocol.

Paths are relative to the root and use "/". Both kinds promise the same: what `create` wrote is under its final name
only when it is whole and durable, and `publish` never replaces what is there. A torn or failed write leaves nothing
under a final name.

What "durable" and "if absent" rest on:

    local, NFS   fsync of the file, rename, fsync of the directory; `publish` is link(2), which fails if the name exists
    s3           a completed upload (multipart uploads are aborted on failure); `publish` is a PUT with If-None-Match: *
    other        a completed upload or a rename, and its exclusive create, `pipe_file(mode="create")`, which some fsspec
                 filesystems imitate by looking first: two writers at the same instant are then not told apart
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from spotrun.errors import UsageError

TEMPORARY = ".tmp-"  # how the names of unfinished files start


class Sink(Protocol):
    def write(self, data: bytes | memoryview, /) -> int: ...


class Storage(Protocol):
    """Every method may raise OSError or what the fsspec filesystem raises; nothing is retried here."""

    @property
    def url(self) -> str: ...

    def create(self, path: str) -> contextlib.AbstractContextManager[Sink]:
        """A new file: durable and visible when the block ends, absent when the block raises."""
        ...

    def publish(self, path: str, data: bytes) -> None:
        """Write a small file at once unless one is there; raises FileExistsError unless that one holds `data`."""
        ...

    def open(self, path: str) -> BinaryIO:
        """The file, for reading and seeking; raises FileNotFoundError."""
        ...

    def read(self, path: str) -> bytes:
        """The whole of a small file; raises FileNotFoundError."""
        ...

    def files(self, directory: str = "") -> dict[str, int]:
        """Name -> size in bytes of the files right in `directory`; empty if there is no such directory."""
        ...

    def directories(self) -> list[str]:
        """The names of the directories right in the root."""
        ...

    def delete(self, path: str) -> None:
        """Delete one file; no error if it is not there."""
        ...

    def delete_directory(self, directory: str) -> None:
        """Delete a directory with all in it, unfinished uploads included; no error if it is not there."""
        ...


def open_storage(url: str | os.PathLike[str], **options: Any) -> Storage:
    """The storage at a path or fsspec URL; `options` go to the fsspec filesystem (credentials, timeouts, endpoint).

    Raises UsageError for a URL that fsspec does not know.
    """
    text = os.fspath(url)
    for scheme in ("file://", "local://"):
        text = text.removeprefix(scheme)
    if "://" not in text and "::" not in text:
        from spotrun.checkpoint.storage_local import LocalStorage

        return LocalStorage(Path(text))
    import fsspec

    from spotrun.checkpoint.storage_fsspec import FsspecStorage

    try:
        filesystem, root = fsspec.core.url_to_fs(text, **options)
    except (ImportError, ValueError) as error:  # the package of its kind is missing, or there is no such kind
        raise UsageError(f"Checkpoints cannot be at {text}: {error}") from error
    return FsspecStorage(filesystem, root, text)
