"""The job of train_steps.py for torchft: each node is a replica group of its own; groups are formed anew in place."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

# As in torchft's own example. With 2 s workers that were only slow were given up, and the job began anew.
COLLECTIVE_TIMEOUT, TIMEOUT = timedelta(seconds=5), timedelta(seconds=10)


def train(step_s: float, tell: Callable[..., None]) -> None:
    import torch
    from torchft import DistributedDataParallel, Manager, Optimizer, ProcessGroupGloo, ProcessGroupNCCL

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)).to(device)
    sgd = torch.optim.SGD(layers.parameters(), lr=1e-3)

    def state() -> dict[str, Any]:
        return {"model": layers.state_dict(), "optimizer": sgd.state_dict()}

    def load(saved: dict[str, Any]) -> None:
        layers.load_state_dict(saved["model"])
        sgd.load_state_dict(saved["optimizer"])

    manager = Manager(
        pg=ProcessGroupNCCL(timeout=COLLECTIVE_TIMEOUT) if cuda else ProcessGroupGloo(timeout=COLLECTIVE_TIMEOUT),
        load_state_dict=load,
        state_dict=state,
        min_replica_size=1,
        timeout=TIMEOUT,
        replica_id=f"node{os.environ['BENCH_NODE']}",
        hostname="127.0.0.1",
    )
    model = DistributedDataParallel(manager, layers)
    optimizer = Optimizer(manager, sgd)
    x = torch.randn(8, 16, device=device)
    group = 0
    while True:
        began_s = time.monotonic()
        before = manager.current_step()
        optimizer.zero_grad()  # joins the quorum of this step
        model(x).square().mean().backward()
        optimizer.step()  # if all have it
        time.sleep(max(0.0, began_s + step_s - time.monotonic()))
        common = {
            "rank": manager.participating_rank(),
            "world": manager.num_participants(),
            "group": manager._quorum_id + 1,
        }
        if common["rank"] is None:  # it is being healed
            continue
        if common["group"] != group:
            group = common["group"]
            tell("group", **common)
            tell("model", **common)
        if manager.current_step() > before:
            tell("step", step=manager.current_step(), round=group, **common)
