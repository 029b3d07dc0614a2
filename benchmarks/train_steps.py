"""What the jobs under test train: DDP on a tiny model, and a line of JSON for each step of each rank.

    train_steps.py OUT_FILE STEP_S SAVE_EVERY plain|api|torchft [CHECKPOINTS]

`plain` is a script as torchrun knows them. Every SAVE_EVERY steps it saves a checkpoint with DCP in CHECKPOINTS, and it
goes on after the last that is whole; without CHECKPOINTS these steps count as saved, at no cost. `api` keeps its state
through `spotrun.run` instead, which decides when to save in CHECKPOINTS; `torchft` is in torchft_steps.py.
Apart from the steps, each worker writes
when it reached its first line, had imported torch, was in its process group, and had wrapped the model; `group` is the
same number on all ranks of one process group, and larger in a later one.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    import spotrun

OUT, STEP_S, SAVE_EVERY, KIND = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
CHECKPOINTS = Path(sys.argv[5]) if len(sys.argv) > 5 else None
KEEP = 2  # checkpoints
TAIL_BYTES = 32768  # the last step stands in the last lines


def tell(what: str, **fields: Any) -> None:
    record = {"what": what, "mono_s": time.monotonic(), "node": os.environ["BENCH_NODE"], "pid": os.getpid(), **fields}
    with OUT.open("ab", buffering=0) as file:  # one write: lines of several ranks do not mix
        file.write(json.dumps(record).encode() + b"\n")


def last_step() -> int:
    """The newest step that any rank has made."""
    with OUT.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        lines = file.read().split(b"\n")[1 if size > TAIL_BYTES else 0 : -1]
    return max((json.loads(line).get("step", 0) for line in lines), default=0)


def saved_step() -> int:
    """The step to go on after."""
    if CHECKPOINTS is None:
        return last_step() // SAVE_EVERY * SAVE_EVERY
    return max((int(done.parent.name) for done in CHECKPOINTS.glob("*/.metadata")), default=0)


def save(folder: Path, step: int, state: dict[str, Any], rank: int) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

    dcp_save({**state, "step": step}, checkpoint_id=folder / str(step))
    if rank == 0:
        for old in sorted(folder.iterdir(), key=lambda path: int(path.name))[:-KEEP]:
            shutil.rmtree(old)


def load(folder: Path, step: int, state: dict[str, Any]) -> None:
    from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

    dcp_load(state, checkpoint_id=folder / str(step))


def train(device: torch.device, job: spotrun.Job | None) -> None:
    import torch
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    agreed = torch.tensor([time.monotonic_ns(), saved_step() if job is None else 0], device=device)
    dist.broadcast(agreed, 0)
    group, step = agreed.tolist()
    common = {"rank": rank, "world": world, "group": group}
    tell("group", **common)
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)).to(device)
    model = torch.nn.parallel.DistributedDataParallel(layers, device_ids=[device] if device.type == "cuda" else None)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    if job is not None:
        job.track(model=model, optimizer=optimizer)
        step = job.steps
    elif CHECKPOINTS is not None and step:
        load(CHECKPOINTS, step, {"model": layers.state_dict()})
    tell("model", **common)
    round_number = int(os.environ["TORCHELASTIC_RESTART_COUNT"]) if job is None else job.round
    x = torch.randn(8, 16, device=device)
    while True:
        began_s = time.monotonic()
        step += 1
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        time.sleep(max(0.0, began_s + STEP_S - time.monotonic()))
        tell("step", step=step, round=round_number, **common)
        if job is not None:
            job.step()
        elif CHECKPOINTS is not None and step % SAVE_EVERY == 0:
            save(CHECKPOINTS, step, {"model": layers.state_dict()}, rank)


def main() -> None:
    tell("main", rank=int(os.environ["RANK"]))
    import torch
    import torch.distributed as dist

    tell("imported", rank=int(os.environ["RANK"]))
    if KIND == "torchft":
        from spotrun.benchmarks.torchft_steps import train as train_with_torchft

        train_with_torchft(STEP_S, tell)
        return
    if KIND == "api":
        import spotrun

        spotrun.run(lambda job: train(job.device, job), checkpoint_dir=CHECKPOINTS)
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    train(device, None)


if __name__ == "__main__":
    main()
