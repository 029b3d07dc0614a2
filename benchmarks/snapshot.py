"""What a snapshot in memory holds the training up for, beside a plain copy of the same bytes and DCP's async_save.

    python -m spotrun.benchmarks.snapshot [--mb 100,500] [--repeat 7] [--out FILE.json]

The state of a model and its AdamW, three tensors a parameter, of --mb in all. In each turn every way takes it once; a
small optimizer step between them makes each one copy what is new. All buffers have been used before, as in any training
but for its first steps. The ways:

    memcpy          each tensor into one of its own that is there already; with a GPU, into pinned memory
    spotrun         spotrun.memory.Memory.keep, as job.step() calls it: the checksum is taken in the background
    spotrun, 1 of 2 the same on one of two workers of a node that hold the same state (DDP): each copies its part
    dcp             torch.distributed.checkpoint.async_save as it is usually called, until it returns
    dcp, staged     the same with a stager that keeps its buffers

    blocked_ms      until the training may go on
    ratio           of that to memcpy in the same turn
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import async_save

from spotrun.benchmarks.measurement import Measurement
from spotrun.memory import Memory, PrivateShelf, Stamp

TITLE = "Snapshot: how long the training waits for a copy of its state in memory"
HOW = (
    "The state of a model and its AdamW is copied by each way in turn. blocked_ms: until the training may go on;"
    " ratio: to a plain copy of the same tensors in the same turn."
)
FEATURED = ("ratio", "blocked_ms")
WIDTH = 1024
PARAMETERS = 12
WARM_TURNS = 2


class Taker:
    """One state and all ways to take it; each returns the seconds that the training waited."""

    def __init__(self, size_mb: int, folder: Path) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        rows = (size_mb << 20) // (3 * PARAMETERS * WIDTH * 4)
        shape = (rows, WIDTH)
        self.state: dict[str, Any] = {
            kind: {str(index): torch.randn(shape, device=device) for index in range(PARAMETERS)}
            for kind in ("model", "exp_avg", "exp_avg_sq")
        }
        self._tensors = [tensor for group in self.state.values() for tensor in group.values()]
        self._copies = [torch.empty(shape, pin_memory=device.type == "cuda") for _ in self._tensors]
        self._device = device
        self._memories = {parts: Memory(PrivateShelf(), 0) for parts in (1, 2)}
        self._folder = folder
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=device.type == "cuda",
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=device.type == "cuda",
            )
        )
        self._turn = 0

    def ways(self) -> dict[str, Callable[[], float]]:
        return {
            "memcpy": self.memcpy,
            "spotrun": lambda: self.by_spotrun(1),
            "spotrun, 1 of 2": lambda: self.by_spotrun(2),
            "dcp": lambda: self.by_dcp(None),
            "dcp, staged": lambda: self.by_dcp(self._stager),
        }

    def close(self) -> None:
        self._stager.close()

    def memcpy(self) -> float:
        began_s = self._begin()
        for copy, tensor in zip(self._copies, self._tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        return self._end(began_s)

    def by_spotrun(self, parts: int) -> float:
        memory = self._memories[parts]
        self._turn += 1
        stamp = Stamp(1, self._turn, 0, parts, 0, parts)
        began_s = self._begin()
        memory.keep(stamp, self.state, {"extra": {"step": self._turn}, "own": None, "final": False})
        took_s = self._end(began_s)
        assert memory.wait()
        return took_s

    def by_dcp(self, stager: DefaultStager | None) -> float:
        folder = self._folder / "dcp"
        began_s = self._begin()
        saved: Any = async_save(self.state, checkpoint_id=folder, async_stager=stager)
        took_s = self._end(began_s)
        saved.result()
        shutil.rmtree(folder)
        return took_s

    def _begin(self) -> float:
        for tensor in self._tensors:
            tensor.mul_(0.999)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _end(self, began_s: float) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()  # with nothing to compute meanwhile, the copy itself is what is waited for
        return time.perf_counter() - began_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", default="100,500", help="sizes of the state, separated by commas")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    settings = {"mb": options.mb, "threads": torch.get_num_threads()}
    document = Measurement("snapshot", TITLE, HOW, FEATURED, settings)
    with tempfile.TemporaryDirectory(prefix="spotrun-bench-") as name:
        folder = Path(name)
        dist.init_process_group("gloo", store=FileStore(str(folder / "store"), 1), rank=0, world_size=1)
        for size_mb in map(int, options.mb.split(",")):
            taker = Taker(size_mb, folder)
            for turn in range(WARM_TURNS + options.repeat):
                took_s = {way: take() for way, take in taker.ways().items()}
                if turn < WARM_TURNS:
                    continue
                for way, each_s in took_s.items():
                    run = {"ratio": each_s / took_s["memcpy"], "blocked_ms": each_s * 1000}
                    document.add(run, way=way, state=f"{size_mb} MB")
                print(f"{size_mb} MB: {took_s}", file=sys.stderr)
            taker.close()
            document.write(options.out)
        dist.destroy_process_group()
    print(document.table())


if __name__ == "__main__":
    main()
