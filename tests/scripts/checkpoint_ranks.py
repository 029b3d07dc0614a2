"""What the rank processes of the checkpoint tests do; run by tests.ranks."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from spotrun.checkpoint import Manifest, Saver, Storage, load, open_storage
from spotrun.checkpoint.storage import Sink
from spotrun.errors import CheckpointError
from tests.waiting import until


def net(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(13, 1201), torch.nn.BatchNorm1d(1201), torch.nn.Linear(1201, 1701))


def build(layout: str, seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """The same model in any layout, after one optimizer step on the same data."""
    model = net(seed)
    if layout == "ddp":
        model = DistributedDataParallel(model)
    elif layout == "fsdp2":
        for part in (model[0], model[2]):  # type: ignore[index]
            fully_shard(part)
        fully_shard(model)
    elif layout == "hsdp":
        mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("replicate", "shard"))
        fully_shard(model, mesh=mesh)
    else:
        assert layout == "plain"
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01 * seed, betas=(0.8, 0.99))
    torch.manual_seed(seed)
    model(torch.randn(8, 13)).square().mean().backward()
    optimizer.step()
    return model, optimizer


def state_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optimizer": optimizer_state}


def whole(value: Any) -> Any:
    """With full tensors; a collective for DTensors."""
    if isinstance(value, dict):
        return {key: whole(part) for key, part in value.items()}
    if isinstance(value, DTensor):
        return value.full_tensor().clone()
    return value.clone() if isinstance(value, torch.Tensor) else value


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    return bool(a == b)


def save_model(rank: int, world: int, directory: Path, arguments: dict[str, Any]) -> Any:
    model, optimizer = build(arguments["layout"], seed=3)
    state = state_of(model, optimizer)
    reference = whole(state)
    if rank == 0:
        torch.save(reference, directory / "reference.pt")
    group = dist.new_group(backend="gloo")
    saver = Saver(open_storage(directory / "store"), run_id="job", group=group)
    handle = saver.save(state, step=7, extra={"seen": 70}, rank_state={"rank": rank})
    assert handle is not None
    name = handle.result().name
    assert saver.close(10)
    return {"name": name, "staged": handle.staged_bytes}


def load_model(rank: int, world: int, directory: Path, arguments: dict[str, Any]) -> Any:
    """Into another layout and world; by spotrun, or by DCP alone."""
    model, optimizer = build(arguments["layout"], seed=4)
    state = state_of(model, optimizer)
    reference = torch.load(directory / "reference.pt", weights_only=True)
    assert not equal(whole(state), reference)
    extra, states = {}, []
    if "name" in arguments:
        dcp.load(state, checkpoint_id=directory / "store" / arguments["name"])
    else:
        group = dist.new_group(backend="gloo")
        loaded = load(open_storage(directory / "store"), state, group=group, verify=True)
        assert loaded is not None
        extra, states = loaded.extra, list(loaded.rank_states)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return {"equal": equal(whole(state_of(model, optimizer)), reference), "extra": extra, "states": states}


class Deadly:
    """A storage that kills at a named moment: `before create __1_0.distcp`, `half create ...`, `after publish ...`."""

    def __init__(self, inner: Storage, moment: str, victims: list[int], directory: Path) -> None:
        self._inner = inner
        self._moment = moment
        self._victims = victims
        self._directory = directory

    def at(self, moment: str) -> None:
        if moment == self._moment:
            kill(self._victims, self._directory)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[Sink]:
        name = path.rpartition("/")[2]
        self.at(f"before create {name}")
        with self._inner.create(path) as sink:
            yield Half(self, sink, name)
        self.at(f"after create {name}")

    def publish(self, path: str, data: bytes) -> None:
        name = path.rpartition("/")[2]
        self.at(f"before publish {name}")
        self._inner.publish(path, data)
        self.at(f"after publish {name}")

    def open(self, path: str) -> BinaryIO:
        return self._inner.open(path)


class Half:
    def __init__(self, storage: Deadly, sink: Sink, name: str) -> None:
        self._storage, self._sink, self._name, self._written = storage, sink, name, 0

    def write(self, data: bytes | memoryview, /) -> int:
        self._written += self._sink.write(data)
        if self._written > 1_000_000:
            self._storage.at(f"half create {self._name}")
        return self._written


def kill(victims: list[int], directory: Path) -> None:
    pids = [int((directory / f"pid-{rank}").read_text()) for rank in victims]
    for pid in sorted(pids, key=lambda pid: pid == os.getpid()):  # itself last
        os.kill(pid, signal.SIGKILL)


def small_state(step: int, rows: int = 3000) -> dict[str, Any]:
    """16 MB, one tensor of it large enough to be cut."""
    return {"big": torch.full((rows, 1000), float(step)), "w": [torch.full((1000, 1000), float(step))], "step": step}


def save_and_die(rank: int, world: int, directory: Path, arguments: dict[str, Any]) -> Any:
    """Step 1 is saved; the save of step 2 is killed. What a survivor is told."""
    group = dist.new_group(backend="gloo")
    inner = open_storage(directory / "store")

    def first(step: int) -> None:
        saver = Saver(inner, run_id="job", group=group)
        handle = saver.save(small_state(step), step=step, round=1)
        assert handle is not None
        handle.result()
        assert saver.close(10)

    first(1)
    dist.barrier()
    storage = Deadly(inner, arguments["moment"], arguments["victims"], directory)

    def fence(_: Manifest) -> None:
        storage.at("fence")

    def record(_: Manifest) -> None:
        storage.at("record")

    saver = Saver(storage, run_id="job", group=group, fence=fence, record=record)
    handle = saver.save(small_state(2), step=2, round=1)
    assert handle is not None
    try:
        return {"saved": handle.result(30).name}
    except CheckpointError as error:
        return {"error": str(error)}


def save_with_failure(rank: int, world: int, directory: Path, arguments: dict[str, Any]) -> Any:
    """Rank 1's storage fails at step 2, then works again."""
    group = dist.new_group(backend="gloo")
    storage = open_storage(directory / "store")
    broken = open_storage(arguments["broken"]) if rank == 1 else storage
    told = []
    for step, store in ((1, storage), (2, broken), (3, storage)):
        saver = Saver(store, run_id="job", group=group)
        handle = saver.save(small_state(step), step=step, round=1)
        assert handle is not None
        try:
            handle.result(30)
            told.append("saved")
        except CheckpointError as error:
            told.append(str(error))
        saver.close(30)
        dist.barrier()
    return told


def save_two_busy(rank: int, world: int, directory: Path, arguments: dict[str, Any]) -> Any:
    """Rank 1's storage hangs: no rank's training waits for it, and all skip the same saves."""
    group = dist.new_group(backend="gloo")
    storage = Hanging(open_storage(directory / "store"), directory / "go") if rank == 1 else None
    saver = Saver(storage or open_storage(directory / "store"), run_id="job", group=group)
    first = saver.save(small_state(1), step=1)
    assert first is not None
    second = saver.save(small_state(2), step=2)
    gave_up = first.give_up(0.2) if rank == 1 else None
    third = saver.save(small_state(3), step=3)
    if rank == 1:
        (directory / "go").touch()
    try:
        outcome = first.result(30).name
    except CheckpointError as error:
        outcome = str(error)
    until("the saver is idle", lambda: not saver.busy)
    dist.barrier()
    fourth = saver.save(small_state(4), step=4)
    assert fourth is not None
    return {"second": second, "third": third, "gave_up": gave_up, "first": outcome, "fourth": fourth.result(30).name}


class Hanging:
    def __init__(self, inner: Storage, until: Path) -> None:
        self._inner = inner
        self._until = until

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[Sink]:
        with self._inner.create(path) as sink:
            until("the storage answers", self._until.exists)
            yield sink


def load_damaged(rank: int, world: int, directory: Path, arguments: dict[str, Any]) -> Any:
    state = small_state(0)
    try:
        loaded = load(open_storage(directory / "store"), state, group=dist.new_group(backend="gloo"), verify=True)
    except CheckpointError as error:
        return {"error": str(error)}
    assert loaded is not None
    return {"step": loaded.manifest.step, "value": float(state["big"][2999, 999]), "held": state["step"]}


def load_changed(rank: int, world: int, directory: Path, arguments: dict[str, Any]) -> Any:
    state = {"big": torch.zeros(3000, 999), "w": [torch.zeros(1000, 1000)], "new": torch.zeros(1)}
    try:
        load(open_storage(directory / "store"), state, group=dist.new_group(backend="gloo"))
    except CheckpointError as error:
        return str(error)
    return "loaded"
