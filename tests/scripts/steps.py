"""A training script as torchrun knows them: a collective a step, and a line a step from rank 0.

    steps.py OUT_FILE STEPS SECONDS_A_STEP [--fail-at STEP:RANK]

It goes on after the last line in OUT_FILE, as a script with a checkpoint would.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


def main() -> None:
    out, steps, step_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    fail_step, fail_rank = map(int, sys.argv[5].split(":")) if sys.argv[4:] else (-1, -1)
    dist.init_process_group("gloo", timeout=timedelta(minutes=30))
    rank, world = dist.get_rank(), dist.get_world_size()
    done = [json.loads(line)["step"] for line in out.read_bytes().split(b"\n")[:-1]] if out.exists() else []
    start = torch.tensor([max(done, default=0)])
    dist.broadcast(start, 0)
    for step in range(int(start) + 1, steps + 1):
        total = torch.ones(1)
        dist.all_reduce(total)
        assert int(total) == world
        if (step, rank) == (fail_step, fail_rank) and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            raise RuntimeError("this rank was told to fail")
        if rank == 0:
            line = {
                "step": step,
                "world": world,
                "round": int(os.environ["TORCHELASTIC_RESTART_COUNT"]) + 1,
                "mono_s": time.monotonic(),
            }
            with out.open("ab", buffering=0) as file:
                file.write(json.dumps(line).encode() + b"\n")
        time.sleep(step_s)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
