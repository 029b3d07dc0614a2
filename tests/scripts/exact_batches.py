"""One rank that trains on exact batches, once for each line of JSON on stdin; answers each with a line on stdout.

A line holds the fields of `Task`. It stays alive between them because importing torch takes longer than the training.
"""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from spotrun.audit import AuditWriter
from spotrun.data import Batches
from spotrun.weighting import count_weight, mean_over_ranks

SAMPLES, BATCH, EPOCHS = 11, 4, 2  # batches of 4, 4 and 3: uneven on 3 ranks, and a rank without samples on 4


@dataclass(frozen=True)
class Task:
    kind: str  # ddp, fsdp2 or plain
    world: int
    directory: str
    micro: int = 0  # 0: none
    begin: int = 0  # steps
    end: int = 6
    number: int = 1  # of the round
    rank: int = 0

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def wrap(net: nn.Sequential, kind: str, world: int) -> nn.Module:
    if kind == "ddp":
        return DistributedDataParallel(net)
    if kind == "fsdp2":
        mesh = init_device_mesh("cpu", (world,))
        for layer in (net[0], net[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
    return net


def train(task: Task) -> dict[str, Any]:
    directory = Path(task.directory)
    noise = torch.Generator().manual_seed(0)
    xs = torch.randn(SAMPLES, 6, dtype=torch.float64, generator=noise)
    data = list(zip(xs, xs.sin().sum(dim=1, keepdim=True), strict=True))
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 1)).double()
    batches = Batches(
        data,
        global_batch_size=BATCH,
        rank=task.rank,
        world_size=task.world,
        seed=5,
        epochs=EPOCHS,
        micro_batch_size=task.micro or None,
        num_workers=1 if task.kind == "ddp" and not task.micro else 0,
    )
    if task.begin:
        net.load_state_dict(torch.load(directory / "model.pt"))
        batches.load_state_dict(json.loads((directory / "data.json").read_text()))
        assert batches.global_step == task.begin
    model = wrap(net, task.kind, task.world)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    audit = AuditWriter(
        directory / "audit", round=task.number, rank=task.rank, world_size=task.world, data=batches.state_dict()
    )
    losses, total = [], 0.0
    for x, y in batches:
        with batches.accumulate(model):
            loss = nn.functional.mse_loss(model(x), y)
            batches.scale(loss).backward()  # type: ignore[no-untyped-call]
        total += mean_over_ranks(loss, batches.weight).item()
        if batches.is_last_micro:
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total)
            total = 0.0
            audit.committed(batches.epoch, batches.step, batches.step_ids)
            batches.advance()
            if batches.global_step == task.end:
                break
    batches.close()
    audit.close()
    full = {
        name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in net.state_dict().items()
    }
    if task.rank == 0:
        torch.save(full, directory / "model.pt")
        (directory / "data.json").write_text(json.dumps(batches.state_dict()))
    return {"losses": losses, "weights": [value.flatten().tolist() for value in full.values()]}


def mean_of_unequal_counts(rank: int, world: int) -> float:
    """The mean of all ranks' items by `count_weight`, where rank r has r items of value r, and rank 0 none."""
    mine = torch.full((rank,), float(rank), dtype=torch.float64).sum() / max(rank, 1)
    return mean_over_ranks(mine * count_weight(torch.tensor(rank))).item()


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        task = Task(**json.loads(line))
        try:
            store = dist.FileStore(  # type: ignore[attr-defined]
                f"{task.directory}/store-{task.number}", task.world
            )
            dist.init_process_group(
                "gloo", store=store, rank=task.rank, world_size=task.world, timeout=timedelta(seconds=40)
            )
            answer = {**train(task), "counted": mean_of_unequal_counts(task.rank, task.world)}
            dist.barrier()
            dist.destroy_process_group()
        except Exception:  # noqa: BLE001  it is the answer
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
