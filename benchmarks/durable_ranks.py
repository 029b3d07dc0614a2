"""The ranks of `durable`: each turn saves, or restores, the same state once by each method.

    durable_ranks.py FOLDER RANK WORLD save|restore BYTES REPEAT

The state is that of FSDP: tensors that are cut along their first dimension, 1/WORLD on each rank. Rank 0 prints a line
of JSON for each act: the seconds from a barrier until the last rank was done.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from spotrun.checkpoint import Saver, load, open_storage

FOLDER, RANK, WORLD = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
WHAT, BYTES, REPEAT = sys.argv[4], int(sys.argv[5]), int(sys.argv[6])
TENSORS = 16
WIDTH = 1024
CHUNK = 64 << 20

Act = Callable[[int], dict[str, float]]


def make_state(device: torch.device, fill: float) -> dict[str, Any]:
    rows = BYTES // TENSORS // WIDTH // 4
    mesh = init_device_mesh(device.type, (WORLD,))
    mine = len(range(rows)[_share(rows)])

    def tensor() -> DTensor:
        local = torch.full((mine, WIDTH), fill, device=device)
        return DTensor.from_local(local, mesh, [Shard(0)], shape=torch.Size((rows, WIDTH)), stride=(WIDTH, 1))

    return {"model": {f"layer{index}": tensor() for index in range(TENSORS)}}


def _share(length: int) -> slice:
    """As Shard(0) cuts: pieces of equal length, the last ones shorter."""
    piece = -(-length // WORLD)
    return slice(min(length, RANK * piece), min(length, (RANK + 1) * piece))


def saves(state: dict[str, Any]) -> dict[str, Act]:
    own = torch.cat([tensor.to_local().flatten() for tensor in state["model"].values()]).cpu().numpy().tobytes()
    saver = Saver(open_storage(FOLDER / "spotrun"), run_id="bench", group=dist.new_group(backend="gloo"), keep_last=1)
    saver.prepare(state)

    def disk(turn: int) -> dict[str, float]:
        """Into a new file each time, as the others do."""
        (FOLDER / "disk").mkdir(exist_ok=True)
        with (FOLDER / "disk" / f"{RANK}-{turn}").open("wb", buffering=0) as file:
            left = memoryview(own)
            while left:
                left = left[file.write(left[:CHUNK]) :]
            os.fsync(file.fileno())
        return {}

    def by_spotrun(turn: int) -> dict[str, float]:
        handle = saver.save(state, step=turn + 1)
        assert handle is not None
        handle.result()
        return {"blocked_s": handle.blocked_s}

    def by_dcp(turn: int) -> dict[str, float]:
        dcp_save(state, checkpoint_id=FOLDER / "dcp" / str(turn))
        return {}

    return {"disk": disk, "spotrun": by_spotrun, "dcp": by_dcp}


def restores(state: dict[str, Any]) -> dict[str, Act]:
    group = dist.new_group(backend="gloo")
    newest = max(int(path.name) for path in (FOLDER / "dcp").iterdir())
    files = sorted((FOLDER / "disk").glob(f"*-{newest}"))
    buffer = bytearray(CHUNK)

    def disk(turn: int) -> dict[str, float]:
        """This rank's share of all bytes, into one buffer."""
        size = files[0].stat().st_size
        first, last = (RANK * len(files) * size // WORLD, (RANK + 1) * len(files) * size // WORLD)
        for index, path in enumerate(files):
            begin, end = max(first - index * size, 0), min(last - index * size, size)
            with path.open("rb", buffering=0) as file:
                file.seek(begin)
                while begin < end:
                    begin += file.readinto(memoryview(buffer)[: min(CHUNK, end - begin)]) or end
        return {}

    def by_spotrun(turn: int, verify: bool = False) -> dict[str, float]:
        assert load(open_storage(FOLDER / "spotrun"), state, group=group, verify=verify) is not None
        return {}

    def by_dcp(turn: int) -> dict[str, float]:
        dcp_load(state, checkpoint_id=FOLDER / "dcp" / str(newest))
        return {}

    return {
        "disk": disk,
        "spotrun": by_spotrun,
        "spotrun, verify=True": lambda turn: by_spotrun(turn, verify=True),
        "dcp": by_dcp,
    }


def main() -> None:
    logging.getLogger("spotrun").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    cuda = torch.cuda.device_count() >= WORLD
    device = torch.device("cuda", RANK) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cuda:nccl,cpu:gloo" if cuda else "gloo", init_method=f"file://{FOLDER}/{WHAT}", rank=RANK, world_size=WORLD
    )
    state = make_state(device, fill=RANK + 1.0 if WHAT == "save" else -1.0)
    acts = (saves if WHAT == "save" else restores)(state)
    names = list(acts)
    for turn in range(-1, REPEAT):  # the first warms up: imports, plans, buffers, the page cache
        for name in itertools.islice(itertools.cycle(names), max(turn, 0), max(turn, 0) + len(names)):
            dist.barrier()
            began_s = time.perf_counter()
            more = acts[name](turn + 1)
            if cuda:
                torch.cuda.synchronize(device)
            took = torch.tensor([time.perf_counter() - began_s, *more.values()], dtype=torch.float64)
            dist.all_reduce(took, dist.ReduceOp.MAX)
            if RANK == 0 and turn >= 0:
                seconds, *rest = took.tolist()
                print(json.dumps({"by": name, "turn": turn, "seconds": seconds, **dict(zip(more, rest, strict=True))}))
            if RANK == 0 and WHAT == "save":
                shutil.rmtree(FOLDER / "dcp" / str(turn), ignore_errors=True)
                for old in (FOLDER / "disk").glob(f"*-{turn}"):
                    old.unlink()
    if WHAT == "restore":
        assert all(bool((tensor.to_local() > 0).all()) for tensor in state["model"].values())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
