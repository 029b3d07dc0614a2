"""Health as a notice: a machine on which training is hopeless drains itself, and one that is getting there says so.

`classify` is the judgement, pure; `vitals.py` reads the numbers. A GPU that is broken does not heal, so its findings
stay; a full file system or memory may, so these must last before they count, and are withdrawn when they are over.
A full disk never drains: training goes on in memory, and a disk that all nodes share would drain them all.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spotrun.launcher.notices.notice import Grade, Notice, Publish
from spotrun.launcher.notices.polling import Sighting, Standing
from spotrun.launcher.vitals import Gpu, Gpus, Space, Vitals, memory, space, visible

INTERVAL_S = 2.0  # a reading takes about a millisecond a GPU; a collective on a dead GPU hangs for minutes
LEAVE_S = 60.0  # a sick machine sets no deadline: what a save takes, and not much of a hang

# Xids after which NVIDIA's catalogue (docs.nvidia.com/deploy/xid-errors, October 2025) says to reset the GPU or to
# restart the machine, and 48, a double-bit error. Not 109: a kernel that runs too long causes it, too.
HOPELESS_XIDS = frozenset({46, 48, 62, 64, 79, 95, 110, 119, 120, 136, 140, 143, 155, 156, 158})
# Errors of the program, or what follows from them (the list of NVIDIA's k8s-device-plugin): the worker dies of them by
# itself, and the GPU is well. The others are worth a save: 63 and 94 (a bad row, contained), 74 (NVLink), and so on.
PROGRAM_XIDS = frozenset({13, 31, 43, 45, 68, 109})
SHUTDOWN_MARGIN_C = 2  # below the temperature at which the GPU switches itself off

SHM_LOW, SHM_FULL = 0.05, 0.01  # free share of /dev/shm: without any, data loaders die of SIGBUS as they start
MEMORY_LOW, MEMORY_OUT = 0.05, 0.015  # free share of memory: below, the kernel chooses whom to kill
LASTS_S = 30.0  # a peak of a few seconds is no reason to leave
DISK_LOW_BYTES = 1 << 30  # the logs of a day fit in it, a checkpoint of most models does not
RELIEVED_AFTER = 30  # readings without it, a minute: what comes and goes is one notice


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with this machine."""

    id: str
    grade: Grade
    detail: str
    lasting_s: float = 0.0  # it counts once it was there for so long without a break


def classify(vitals: Vitals) -> list[Finding]:
    """What is wrong, given how the machine is."""
    findings = [finding for gpu in vitals.gpus for finding in _gpu(gpu)]
    if vitals.shm is not None:
        findings += _running_out("shm", vitals.shm, SHM_LOW, SHM_FULL)
    if vitals.memory is not None:
        findings += _running_out("memory", vitals.memory, MEMORY_LOW, MEMORY_OUT)
    for disk in vitals.disks:
        if disk.free_bytes < DISK_LOW_BYTES:
            detail = f"{disk.path} has {disk.free_bytes >> 20} MiB left"
            findings.append(Finding(f"disk-{disk.path}", Grade.MAY, detail))
    return findings


def _gpu(gpu: Gpu) -> list[Finding]:
    name = f"gpu{gpu.index}"
    found = []

    def add(what: str, grade: Grade, detail: str) -> None:
        found.append(Finding(f"{name}-{what}", grade, f"GPU {gpu.index} {gpu.uuid}: {detail}"))

    if gpu.lost:
        add("lost", Grade.WILL, f"the driver does not reach it any more ({gpu.lost})")
    if gpu.uncorrectable:
        add("ecc", Grade.WILL, f"{gpu.uncorrectable} uncorrectable memory errors")
    if gpu.remap_failed:
        add("remap-failed", Grade.WILL, "a bad row of memory could not be replaced")
    if gpu.remap_pending:
        add("remap-pending", Grade.MAY, "a bad row of memory is replaced at the next reset")
    for xid in sorted(gpu.xids - PROGRAM_XIDS):
        add(f"xid{xid}", Grade.WILL if xid in HOPELESS_XIDS else Grade.MAY, f"Xid {xid}")
    if gpu.temperature_c is not None:
        if gpu.shutdown_c and gpu.temperature_c >= gpu.shutdown_c - SHUTDOWN_MARGIN_C:
            add("shutdown", Grade.WILL, f"{gpu.temperature_c} C, and it switches itself off at {gpu.shutdown_c} C")
        elif gpu.slowdown_c and gpu.temperature_c >= gpu.slowdown_c:
            add("hot", Grade.MAY, f"{gpu.temperature_c} C, and it clocks down from {gpu.slowdown_c} C on")
    return found


def _running_out(name: str, it: Space, low: float, out: float) -> list[Finding]:
    """Low at once, out once it lasts: whoever fills it may be about to free it, or to be killed for it."""
    share = it.free_bytes / it.total_bytes if it.total_bytes else 1.0
    detail = f"{it.path}: {it.free_bytes >> 20} MiB of {it.total_bytes >> 20} MiB left"
    found = [Finding(f"{name}-low", Grade.MAY, detail)] if share < low else []
    return found + ([Finding(f"{name}-out", Grade.WILL, detail, LASTS_S)] if share < out else [])


def lasting(
    findings: Sequence[Finding], since_s: Mapping[str, float], now_s: float
) -> tuple[list[Finding], dict[str, float]]:
    """The findings that were there for long enough, and since when each is there."""
    began = {finding.id: since_s.get(finding.id, now_s) for finding in findings}
    return [finding for finding in findings if now_s - began[finding.id] >= finding.lasting_s], began


class Machine:
    """Reads the vitals of this machine, but only of the GPUs that workers may use."""

    def __init__(self, disks: Sequence[str], environ: Mapping[str, str]) -> None:
        self._disks = disks
        self._environ = environ
        self._gpus = Gpus()

    def __call__(self) -> Vitals:
        gpus = visible(self._gpus.read(), self._environ)
        disks = tuple(found for path in self._disks if (found := space(path)) is not None)
        return Vitals(gpus, memory(), space("/dev/shm"), disks)

    def close(self) -> None:
        self._gpus.close()


class HealthMonitor:
    """The source `health`: every machine has it."""

    name = "health"

    def __init__(
        self,
        interval_s: float = INTERVAL_S,
        disks: Sequence[str] | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._interval_s = interval_s
        self._disks = ("/", tempfile.gettempdir()) if disks is None else disks
        self._environ = environ

    def detect(self) -> bool:
        return True

    def safe_to_go(self, notice: Notice) -> None:
        """Nobody waits for it."""

    def run(self, publish: Publish, stop: threading.Event) -> None:
        standing = Standing(self.name, LEAVE_S, withdrawn_after=RELIEVED_AFTER)
        since_s: dict[str, float] = {}
        # NVML is opened here and not before: it takes tenths of a second, in a thread that nobody waits for.
        with contextlib.closing(Machine(self._disks, self._environ)) as machine:
            while not stop.is_set():
                now_s = time.monotonic()
                findings, since_s = lasting(classify(machine()), since_s, now_s)
                sightings = [Sighting("health", it.grade, it.id, None, it.detail) for it in findings]
                for notice in standing.update(sightings, now_s):
                    publish(notice)
                stop.wait(self._interval_s)
