"""What the other nodes may see of this machine: load, memory and how busy its GPUs are, every few seconds."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping

import psutil

from spotrun.launcher.vitals import Gpu, Gpus, memory, visible
from spotrun.rendezvous.state import GpuVitals, Vitals

INTERVAL_S = 5.0


def vitals_of(node_id: str, gpus: tuple[Gpu, ...]) -> Vitals:
    """This machine now."""
    space = memory()
    return Vitals(
        node_id=node_id,
        load=os.getloadavg()[0] / (os.cpu_count() or 1),
        cpu_share=psutil.cpu_percent() / 100,
        memory_bytes=space.total_bytes,
        memory_free_bytes=space.free_bytes,
        gpus=tuple(
            GpuVitals(gpu.index, gpu.busy_share or 0.0, gpu.memory_bytes, gpu.memory_used_bytes, gpu.temperature_c or 0)
            for gpu in gpus
            if not gpu.lost
        ),
    )


class HostWatch:
    """Tells of this machine until it is closed, on a thread of its own: NVML takes tenths of a second to open."""

    def __init__(self, node_id: str, say: Callable[[Vitals], None], environ: Mapping[str, str] = os.environ) -> None:
        self._node_id = node_id
        self._say = say
        self._environ = environ
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spotrun-host", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        psutil.cpu_percent()  # counts from here
        with contextlib.closing(Gpus()) as gpus:
            while not self._stop.is_set():
                self._say(vitals_of(self._node_id, visible(gpus.read(), self._environ)))
                self._stop.wait(INTERVAL_S)
