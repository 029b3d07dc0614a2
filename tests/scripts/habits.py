"""A training loop with what people's loops have in them; run by tests.ranks.

arguments: habits, kind (ddp, fsdp, hsdp), steps. The checkpoints in the directory are gone on from. The result is
the step it ended at, the losses that were made, and the parameters and the rest of the state at the end.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from spotrun.api import Job, Options
from spotrun.link import Place
from spotrun.memory import Memory, PrivateShelf
from spotrun.weighting import mean_over_ranks

GOOD_ENOUGH = 0.75  # the loss at which early stopping stops


class Samples(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __len__(self) -> int:
        return 97

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(8, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
        return x, x.sum().tanh().reshape(1)


def build(kind: str, world: int, habits: list[str]) -> torch.nn.Module:
    torch.manual_seed(0)
    net: torch.nn.Module = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Tanh(), torch.nn.Linear(12, 1)).double()
    if kind == "ddp":
        net = DistributedDataParallel(net)
    else:
        several = kind == "hsdp" and world > 1
        fully_shard(net, mesh=init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("a", "b")) if several else None)
    return torch.compile(net, backend="aot_eager") if "compile" in habits else net  # type: ignore[return-value]


def train(rank: int, world: int, directory: Path, arguments: dict[str, Any]) -> Any:
    habits: list[str] = arguments["habits"]
    place = Place(rank, rank, world, world, 1, "habits")
    options = Options(checkpoint_dir=directory / "checkpoints", save_every="1000steps")
    job = Job(place, None, Memory(PrivateShelf(), rank), options)
    model = build(arguments["kind"], world, habits)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3, enabled="scaler" in habits)
    micro = 2 if "accumulate" in habits else None
    batches = job.batches(Samples(), global_batch_size=10, seed=1, epochs=None, micro_batch_size=micro)
    tracked: dict[str, Any] = {"model": model, "optimizer": optimizer}
    if "schedule" in habits:
        tracked["scheduler"] = scheduler
    if "scaler" in habits:
        tracked["scaler"] = scaler
    job.track(**tracked)
    made: list[float] = []
    total = torch.zeros((), dtype=torch.float64)
    for x, y in batches:
        if job.steps >= arguments["steps"] or ("stop" in habits and job.steps and is_good(model)):
            break
        with batches.accumulate(model) if micro else contextlib.nullcontext():
            loss = torch.nn.functional.mse_loss(model(x), y)
            scaler.scale(job.scale(loss)).backward()
        total += loss.detach() * batches.weight
        if not batches.is_last_micro:
            continue
        if "scaler" in habits and job.steps == 4:  # one step overflows: it is left out, and the scale is halved
            next(model.parameters()).grad.mul_(float("inf"))  # type: ignore[union-attr]
        if "clip" in habits:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if "schedule" in habits:
            scheduler.step()
        made.append(mean_over_ranks(total).item())
        total.zero_()
        job.step(loss=loss)
        if "evaluate" in habits and job.steps % 3 == 0:
            with job.busy():
                evaluate(model)
    job.finish()
    parameters = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    values = torch.cat([p.detach().flatten() for p in parameters]).tolist()
    scale = scaler.get_scale() if "scaler" in habits else None
    dist.barrier()
    return {"step": job.steps, "losses": made, "values": values, "lr": scheduler.get_last_lr(), "scale": scale}


def evaluate(model: torch.nn.Module) -> float:
    """The loss on samples that are not trained on; draws random numbers, too."""
    model.eval()
    with torch.no_grad():
        x = torch.randn(6, 8, dtype=torch.float64)
        loss = mean_over_ranks(torch.nn.functional.mse_loss(model(x), x.sum(1, keepdim=True).tanh())).item()
    model.train()
    return loss


def is_good(model: torch.nn.Module) -> bool:
    """Alike on all ranks: the same samples, and a mean."""
    with torch.no_grad():
        x, y = torch.utils.data.default_collate([Samples()[index] for index in range(20)])
        return mean_over_ranks(torch.nn.functional.mse_loss(model(x), y)).item() < GOOD_ENOUGH
