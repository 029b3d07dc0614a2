"""How this machine is, as numbers: its GPUs through NVML, its memory and file systems through the kernel.

Only reading: what the numbers mean is in `health.py`. What cannot be read is left out. NVML (module pynvml) is an
option: without the module, the library or a driver there are simply no GPUs.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

EVENTS_AT_ONCE = 64  # a GPU that pours out Xids must not keep us from everything else
CGROUP, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. What counts up counts from when we began to look."""

    index: int
    uuid: str = ""
    lost: str = ""  # why the driver no longer reaches it; "" while it does
    busy_share: float | None = None  # of the time since the last reading, as NVML samples it
    memory_bytes: int = 0
    memory_used_bytes: int = 0
    temperature_c: int | None = None
    slowdown_c: int | None = None  # from there on it clocks down
    shutdown_c: int | None = None  # there it switches itself off
    uncorrectable: int = 0  # memory errors that ECC found and could not mend
    remap_failed: bool = False  # no spare row is left for a bad one
    remap_pending: bool = False  # a bad row is replaced at the next reset
    xids: frozenset[int] = frozenset()  # errors that the driver reported


@dataclass(frozen=True, slots=True)
class Space:
    path: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Vitals:
    gpus: tuple[Gpu, ...] = ()
    memory: Space | None = None  # of the host, or of our cgroup where that is tighter
    shm: Space | None = None
    disks: tuple[Space, ...] = ()


def space(path: str) -> Space | None:
    """None where there is no such file system."""
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None
    return Space(path, usage.total, usage.free)


def memory(cgroup: Path = CGROUP, own: Path = OWN_CGROUP) -> Space:
    """What is left before somebody is killed for memory: in the host or, if that is less, under the limit on us."""
    host = psutil.virtual_memory()
    whole = Space("host memory", host.total, host.available)
    limited = cgroup_memory(cgroup, own)
    return min((whole, limited), key=lambda it: it.free_bytes) if limited else whole


def cgroup_memory(cgroup: Path = CGROUP, own: Path = OWN_CGROUP) -> Space | None:
    """The memory under the limit of our own cgroup (version 2); None where there is no limit or no such cgroup."""
    try:
        name = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
        folder = cgroup / name.lstrip("/")
        folder = folder if (folder / "memory.max").exists() else cgroup  # a container sees its own as the root
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # Cached files count as used, and are given up before anybody is killed.
        used -= int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
        return Space("memory of this cgroup", limit, max(0, limit - max(0, used)))
    except (OSError, ValueError, StopIteration):  # "max" is no number: no limit
        return None


def visible(gpus: Sequence[Gpu], environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The GPUs that workers may use: CUDA_VISIBLE_DEVICES hides the others from them, but not from NVML.

    NVML numbers GPUs by bus address, as CUDA does on a machine whose GPUs are of one kind.
    """
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or chosen.startswith("MIG-"):  # slices are not told apart: all count
        return tuple(gpus)
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    return tuple(
        gpu
        for gpu in gpus
        if str(gpu.index) in names or any(n.startswith("GPU-") and gpu.uuid.startswith(n) for n in names)
    )


class Gpus:
    """The GPUs that NVML knows. For one thread; `close` it."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        self._names: list[Gpu] = []  # what is known from the start
        self._errors_before: list[int] = []
        self._xids: list[set[int]] = []
        self._events: Any = None
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:  # no driver, no GPU, or no right to see one
            return
        self._nvml = pynvml
        for index in range(self._read(0, pynvml.nvmlDeviceGetCount)):
            self._open(index)
        self._listen()

    def read(self) -> tuple[Gpu, ...]:
        """How each of them is now."""
        if self._nvml is None:
            return ()
        self._take_events()
        return tuple(self._gpu(index) for index in range(len(self._handles)))

    def close(self) -> None:
        if self._nvml is not None:
            if self._events is not None:
                self._read(None, self._nvml.nvmlEventSetFree, self._events)
            self._read(None, self._nvml.nvmlShutdown)
            self._nvml = None

    def _open(self, index: int) -> None:
        n = self._nvml
        handle, lost = None, ""
        try:
            handle = n.nvmlDeviceGetHandleByIndex(index)
        except n.NVMLError as error:
            # A GPU that fell off the bus before we came has no handle: lost, or "unknown error".
            lost = str(error) if error.value in (*self._lost_codes(), n.NVML_ERROR_UNKNOWN) else ""
        uuid = self._read("", n.nvmlDeviceGetUUID, handle) if handle is not None else ""
        self._handles.append(handle)
        self._names.append(Gpu(index, uuid, lost))
        self._xids.append(set())
        self._errors_before.append(self._uncorrectable(handle))

    def _listen(self) -> None:
        n = self._nvml
        self._events = self._read(None, n.nvmlEventSetCreate)
        for handle in self._handles:
            if handle is not None and self._events is not None:
                kinds = n.nvmlEventTypeXidCriticalError & self._read(0, n.nvmlDeviceGetSupportedEventTypes, handle)
                if kinds:
                    self._read(None, n.nvmlDeviceRegisterEvents, handle, kinds, self._events)

    def _take_events(self) -> None:
        n = self._nvml
        for _ in range(EVENTS_AT_ONCE if self._events is not None else 0):
            event = self._read(None, n.nvmlEventSetWait_v2, self._events, 1)  # 1 ms; a time-out when there is none
            if event is None:
                return
            for handle, xids in zip(self._handles, self._xids, strict=True):
                if handle is not None and _address(handle) == _address(event.device):
                    xids.add(int(event.eventData))

    def _gpu(self, index: int) -> Gpu:
        n, handle, known = self._nvml, self._handles[index], self._names[index]
        if handle is None:
            return known
        try:
            n.nvmlDeviceGetTemperature(handle, n.NVML_TEMPERATURE_GPU)
        except n.NVMLError as error:
            if error.value in self._lost_codes():
                return Gpu(index, known.uuid, str(error), xids=frozenset(self._xids[index]))
        rows = self._read((0, 0, 0, 0), n.nvmlDeviceGetRemappedRows, handle)
        rates = self._read(None, n.nvmlDeviceGetUtilizationRates, handle)
        space = self._read(None, n.nvmlDeviceGetMemoryInfo, handle)
        slowdown, shutdown = n.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN, n.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN
        return Gpu(
            index,
            known.uuid,
            busy_share=None if rates is None else rates.gpu / 100,
            memory_bytes=0 if space is None else int(space.total),
            memory_used_bytes=0 if space is None else int(space.used),
            temperature_c=self._read(None, n.nvmlDeviceGetTemperature, handle, n.NVML_TEMPERATURE_GPU),
            slowdown_c=self._read(None, n.nvmlDeviceGetTemperatureThreshold, handle, slowdown),
            shutdown_c=self._read(None, n.nvmlDeviceGetTemperatureThreshold, handle, shutdown),
            uncorrectable=max(0, self._uncorrectable(handle) - self._errors_before[index]),
            remap_pending=bool(rows[2]),
            remap_failed=bool(rows[3]),
            xids=frozenset(self._xids[index]),
        )

    def _uncorrectable(self, handle: Any) -> int:
        n = self._nvml
        if handle is None:
            return 0
        count = n.nvmlDeviceGetTotalEccErrors
        return int(self._read(0, count, handle, n.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, n.NVML_VOLATILE_ECC))

    def _lost_codes(self) -> tuple[int, int]:
        return self._nvml.NVML_ERROR_GPU_IS_LOST, self._nvml.NVML_ERROR_RESET_REQUIRED

    def _read(self, default: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        """What NVML says, or the default where this GPU or driver does not tell."""
        with contextlib.suppress(self._nvml.NVMLError):
            return function(*arguments)
        return default


def _address(handle: Any) -> int | None:
    """The pointer in an opaque handle: what two handles of one GPU have in common."""
    return ctypes.cast(handle, ctypes.c_void_p).value
