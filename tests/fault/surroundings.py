"""What of a machine a campaign harms besides processes: networks, disks, clocks and memory, where that is allowed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.networks import Host, network

DISK_MB = 48
HOSTS = 12  # more than ever live at a time: those that leave take a while
SHM = Path("/dev/shm")
CLOCK = Path(__file__).parent / "clock"
MEMORY = Path("/sys/fs/cgroup/memory")  # version 1
EVERYTHING = frozenset({"hosts", "disk", "shm", "memory"})


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Without any of them, what is left are processes on loopback."""

    hosts: tuple[Host, ...] = ()  # network namespaces, one a node
    disk: bool = False  # checkpoints lie on a small disk of their own
    shm: Path | None = None  # a /dev/shm that nobody else uses
    memory: Path | None = None  # a memory cgroup that kills what is in it

    @property
    def can(self) -> frozenset[str]:
        """What kinds of faults may need."""
        there = {"hosts": self.hosts, "disk": self.disk, "shm": self.shm, "memory": self.memory}
        return frozenset(name for name, one in there.items() if one)

    @property
    def address(self) -> str:
        """Where nodes reach what runs beside them."""
        return f"{self.hosts[0].address.rpartition('.')[0]}.254" if self.hosts else "127.0.0.1"


@contextlib.contextmanager
def surroundings() -> Iterator[Surroundings]:
    """Everything that is possible here; the caller has a network and mounts of its own (see tests.networks)."""
    with contextlib.ExitStack() as stack:
        hosts = tuple(stack.enter_context(network(HOSTS, here=True)))
        disk = all(map(shutil.which, ("mkfs.ext4", "chattr", "fsfreeze"))) and any(Path("/dev").glob("loop*"))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "campaign", str(SHM)], check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", str(SHM)], check=True)
        yield Surroundings(hosts, disk, SHM, stack.enter_context(_memory()))


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """An ext4 of its own in a file beside `folder`."""
    image = folder.with_suffix(".img")
    image.touch()
    os.truncate(image, DISK_MB << 20)
    folder.mkdir()
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def _memory() -> Iterator[Path | None]:
    group = MEMORY / f"spotrun-campaign-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text("65536")
    except OSError:
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()
