"""A stand-in of the C library libnvidia-ml.so.1, which is what pynvml loads: pynvml itself is the real one.

    with FakeNvml([FakeGpu(), FakeGpu()]) as nvml:
        nvml.gpus[1].lost = True
        nvml.xid(0, 79)

Only the functions that we call are there; all others are missing, as in an old driver.
"""

from __future__ import annotations

import ctypes
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import pynvml
from typing_extensions import Self

FIRST_HANDLE = 0x1000  # handles are opaque pointers, which nobody follows
EVENTS_HANDLE = 0x2000


@dataclass
class FakeGpu:
    uuid: str = ""
    temperature_c: int = 50
    slowdown_c: int = 92
    shutdown_c: int = 95
    uncorrectable: int = 0
    has_ecc: bool = True
    remap: tuple[int, int, int, int] = (0, 0, 0, 0)  # corrected, uncorrected, pending, failed
    lost: bool = False
    missing: int = 0  # the code with which a GPU that was gone before refuses a handle
    registered: int = 0  # the kinds of events that were asked for


@dataclass
class FakeNvml:
    gpus: list[FakeGpu] = field(default_factory=list)
    init_fails: int = 0
    initialized: int = 0
    event_sets: int = 0

    def __post_init__(self) -> None:
        self._events: deque[tuple[int, int]] = deque()
        for index, gpu in enumerate(self.gpus):
            gpu.uuid = gpu.uuid or f"GPU-{index:08x}-aaaa-bbbb-cccc-dddddddddddd"

    def __enter__(self) -> Self:
        """pynvml finds this library from now on."""
        self._before = pynvml.nvmlLib
        self._load(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._load(self._before)

    @staticmethod
    def _load(library: Any) -> None:
        pynvml.nvmlLib = library
        pynvml._nvmlGetFunctionPointer_cache.clear()

    def xid(self, index: int, code: int) -> None:
        """The driver reports an error of this GPU."""
        self._events.append((index, code))

    def _gpu(self, handle: Any) -> FakeGpu:
        address: int = _pointer(handle).value
        return self.gpus[address - FIRST_HANDLE]

    # What follows are the C functions: they return a code, and write to where a pointer points.

    def nvmlInitWithFlags(self, flags: Any) -> int:
        self.initialized += not self.init_fails
        return self.init_fails

    def nvmlShutdown(self) -> int:
        self.initialized -= 1
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.gpus)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        which: int = index.value
        _pointer(handle._obj).value = FIRST_HANDLE + which
        return self.gpus[which].missing

    def nvmlDeviceGetUUID(self, handle: Any, uuid: Any, size: Any) -> int:
        uuid.value = self._gpu(handle).uuid.encode()
        return self._code(handle)

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: Any, temperature: Any) -> int:
        temperature._obj.value = self._gpu(handle).temperature_c
        return self._code(handle)

    def nvmlDeviceGetTemperatureThreshold(self, handle: Any, which: Any, temperature: Any) -> int:
        gpu = self._gpu(handle)
        shutdown = which.value == pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN
        temperature._obj.value = gpu.shutdown_c if shutdown else gpu.slowdown_c
        return self._code(handle)

    def nvmlDeviceGetTotalEccErrors(self, handle: Any, kind: Any, since: Any, count: Any) -> int:
        gpu = self._gpu(handle)
        if not gpu.has_ecc:
            return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        count._obj.value = gpu.uncorrectable
        return self._code(handle)

    def nvmlDeviceGetRemappedRows(self, handle: Any, *counts: Any) -> int:
        for count, value in zip(counts, self._gpu(handle).remap, strict=True):
            count._obj.value = value
        return self._code(handle)

    def nvmlDeviceGetSupportedEventTypes(self, handle: Any, kinds: Any) -> int:
        kinds._obj.value = pynvml.nvmlEventTypeXidCriticalError | pynvml.nvmlEventTypeDoubleBitEccError
        return self._code(handle)

    def nvmlEventSetCreate(self, events: Any) -> int:
        _pointer(events._obj).value = EVENTS_HANDLE
        self.event_sets += 1
        return 0

    def nvmlEventSetFree(self, events: Any) -> int:
        self.event_sets -= 1
        return 0

    def nvmlDeviceRegisterEvents(self, handle: Any, kinds: Any, events: Any) -> int:
        self._gpu(handle).registered = kinds.value
        return self._code(handle)

    def nvmlEventSetWait_v2(self, events: Any, data: Any, timeout_ms: Any) -> int:
        if not self._events:
            return int(pynvml.NVML_ERROR_TIMEOUT)
        index, code = self._events.popleft()
        data._obj.eventType, data._obj.eventData = pynvml.nvmlEventTypeXidCriticalError, code
        ctypes.c_void_p.from_buffer(data._obj).value = FIRST_HANDLE + index  # the device is its first field
        return 0

    def _code(self, handle: Any) -> int:
        return int(pynvml.NVML_ERROR_GPU_IS_LOST) if self._gpu(handle).lost else 0


def _pointer(handle: Any) -> Any:
    """The pointer that an opaque handle is, to read and to write."""
    return ctypes.c_void_p.from_address(ctypes.addressof(handle))
