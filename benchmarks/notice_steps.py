"""What the jobs of `notice_success` train: nearly nothing, with a state of some size.

    notice_steps.py OUT_FILE BYTES plain|api CHECKPOINTS

`api` uses `spotrun.run`. `plain` is what a careful team writes by hand for torchrun: SIGTERM sets a flag, the ranks
agree on it at each step, and then all save with DCP. Each worker writes a line a step, like those of train_steps.py.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    import spotrun

OUT, BYTES, KIND, CHECKPOINTS = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
STEP_S = 0.02
told_to_go = False


def on_term(number: int, frame: object) -> None:
    global told_to_go
    told_to_go = True


def train(device: torch.device, job: spotrun.Job | None) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

    rank, world = dist.get_rank(), dist.get_world_size()
    layers = torch.nn.Linear(16, 16).to(device)
    layers.register_buffer("bulk", torch.ones(BYTES // 4, device=device))
    model = torch.nn.parallel.DistributedDataParallel(
        layers, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(8, 16, device=device)
    step = 0
    if job is not None:
        job.track(model=model, optimizer=optimizer)
        step = job.steps
    while True:
        step += 1
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        time.sleep(STEP_S)
        line = {"what": "step", "mono_s": time.monotonic(), "step": step, "rank": rank, "world": world, "group": 1}
        with OUT.open("ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")
        if job is not None:
            job.step()
            continue
        stop = torch.tensor([told_to_go], dtype=torch.int32, device=device)
        dist.all_reduce(stop, dist.ReduceOp.MAX)
        if stop.item():
            dcp_save({"model": layers.state_dict(), "step": step}, checkpoint_id=CHECKPOINTS / str(step))
            return


def main() -> None:
    import torch
    import torch.distributed as dist

    if KIND == "api":
        import spotrun

        spotrun.run(lambda job: train(job.device, job), checkpoint_dir=CHECKPOINTS)
        return
    signal.signal(signal.SIGTERM, on_term)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    train(device, None)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
