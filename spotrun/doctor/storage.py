"""Whether checkpoints can be kept at a place, how fast, and whether it outlives this machine."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from spotrun.checkpoint.storage import Storage, open_storage
from spotrun.doctor.finding import Finding, Grade, ok

PROBE_BYTES = 64 << 20
SMALL_BYTES = 4096
SLOW_SYNC_S = 0.5  # every checkpoint waits for several
SHARED = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "lustre",
    "ceph",
    "gpfs",
    "beegfs",
    "fuse.sshfs",
    "fuse.gcsfuse",
    "9p",
    "virtiofs",
}
_DAMAGE = "without a place to save, a job that loses all of its nodes loses all of its work"


@dataclass(frozen=True, slots=True)
class Speed:
    write_s: float  # PROBE_BYTES, durable
    read_s: float
    small_s: float  # SMALL_BYTES, durable


def look(url: str) -> list[Finding]:
    """Writes, reads and deletes a file there; never raises for what the place does."""
    fresh = "://" not in url and not Path(url).exists()
    try:
        storage = open_storage(url)
        speed = measure(storage)
        if fresh:
            Path(url).rmdir()
    except Exception as error:  # noqa: BLE001  # fsspec's filesystems raise anything; each is a finding
        return [
            Finding(
                "storage",
                Grade.FAIL,
                f"{url} cannot be written and read: {type(error).__name__}: {error}",
                _DAMAGE,
                f"ls -ld {url}   # it must be writable by {os.environ.get('USER', 'this user')}"
                if "://" not in url
                else "check the credentials and the name of the bucket",
            )
        ]
    return [judge_speed(storage.url, speed), *([] if "://" in url else _local(Path(url)))]


def measure(storage: Storage) -> Speed:
    """Raises what the storage does."""
    folder = f".doctor-{secrets.token_hex(4)}"
    block = os.urandom(1 << 20)
    try:
        began_s = time.monotonic()
        with storage.create(f"{folder}/large") as sink:
            for _ in range(PROBE_BYTES >> 20):
                sink.write(block)
        written_s = time.monotonic()
        with storage.create(f"{folder}/small") as sink:
            sink.write(block[:SMALL_BYTES])
        small_s = time.monotonic()
        if len(storage.read(f"{folder}/large")) != PROBE_BYTES:
            raise OSError("what was read is not what was written")
        return Speed(written_s - began_s, time.monotonic() - small_s, small_s - written_s)
    finally:
        storage.delete_directory(folder)


def judge_speed(url: str, speed: Speed) -> Finding:
    size = PROBE_BYTES / 1e6
    text = (
        f"{url}: {size / speed.write_s:.0f} MB/s until durable, {size / speed.read_s:.0f} MB/s read (or cached), "
        f"{speed.small_s * 1e3:.0f} ms until a small file is durable"
    )
    if speed.small_s <= SLOW_SYNC_S:
        return ok("storage", text)
    return Finding(
        "storage", Grade.WARN, text, "a notice of 30 s leaves little time to save", "choose a nearer or faster place"
    )


def _local(path: Path) -> list[Finding]:
    kind = filesystem(path.resolve(), [(it.mountpoint, it.fstype) for it in psutil.disk_partitions(all=True)])
    if kind in SHARED:
        return [ok("storage kind", f"{path} is on {kind}")]
    if kind in ("tmpfs", "ramfs", "overlay"):
        text = f"{path} is on {kind}, which goes with the {'container' if kind == 'overlay' else 'machine'}"
        return [
            Finding("storage kind", Grade.WARN, text, _DAMAGE, "give a path on shared storage, or s3://bucket/path")
        ]
    text = f"{path} is on {kind or 'a local file system'}"
    why = "other nodes do not see it unless it is shared; --nodes-expected tests that"
    return [Finding("storage kind", Grade.WARN, text, why, "give a path on shared storage, or s3://bucket/path")]


def filesystem(path: Path, mounts: Sequence[tuple[str, str]]) -> str:
    """The type of the file system that holds `path`, of the (mount point, type) given."""
    fitting = [(len(point), kind) for point, kind in mounts if path.is_relative_to(point)]
    return max(fitting)[1] if fitting else ""
