"""--wipe-on-exit: one directory for what workers leave on this machine, overwritten and removed when the node ends.

    $TMPDIR/spotrun-scratch-<uid>-<random>/     0700; a lock on it says that its agent lives

It is the workers' TMPDIR, and holds the caches of torch.compile and Triton. What an agent that was killed has left is
wiped at the next start of one with this flag. Snapshots and replicas need none of that: they lie in memory of the agent
(memfd), which the kernel gives nobody before it has cleared it.

Overwriting means something on a plain disk. It does not on SSDs, which write elsewhere, nor on file systems that copy
on write or keep a journal of data: only encryption of the disk helps there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK = 1 << 20
CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "TMPDIR": "tmp"}


@contextmanager
def scratch() -> Iterator[dict[str, str]]:
    """What workers get in their environment; wipes all of it at the end, and at once what dead agents have left."""
    prefix = f"spotrun-scratch-{os.getuid()}-"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # its agent lives, or somebody else is at it
            lock = _lock(left)
            try:
                wipe(left)
            finally:
                os.close(lock)
    directory, lock = _make(prefix)
    try:
        for name in CACHES.values():
            (directory / name).mkdir()
        yield {variable: str(directory / name) for variable, name in CACHES.items()}
    finally:
        wipe(directory)
        os.close(lock)


def _make(prefix: str) -> tuple[Path, int]:
    """A new directory and the lock on it, unless an agent that started just now has taken it for a dead one's."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=prefix))
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            lock = _lock(directory)
            if directory.exists():
                return directory, lock
            os.close(lock)


def wipe(directory: Path) -> None:
    """Overwrite all files, then remove the directory. Links, hard ones too, are removed; what they lead to stays."""
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                _overwrite(Path(folder) / name)
    shutil.rmtree(directory, ignore_errors=True)


def _overwrite(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        left = found.st_size if found.st_nlink == 1 else 0  # a hard link: the same file has a name elsewhere
        while left > 0:
            left -= os.write(fd, bytes(min(CHUNK, left)))
        os.fsync(fd)
    finally:
        os.close(fd)


def _lock(directory: Path) -> int:
    """Raises OSError where another process has it, or the directory is not ours."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_uid != os.getuid():
            raise PermissionError(f"{directory} is another user's")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd
