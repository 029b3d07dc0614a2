"""With this folder on PYTHONPATH, a process sees one GPU, which the driver loses once the file in SICK_GPU exists."""

from __future__ import annotations

import os
from typing import Any

import pynvml

from tests.fakes.nvml import FakeGpu, FakeNvml


class _SickNvml(FakeNvml):
    def _code(self, handle: Any) -> int:
        return int(pynvml.NVML_ERROR_GPU_IS_LOST) if os.path.exists(os.environ["SICK_GPU"]) else 0


_SickNvml([FakeGpu()]).__enter__()
