"""Real ranks: saved in one layout and world, loaded in any other, by spotrun and by DCP alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from spotrun.checkpoint import list_checkpoints, newest, open_storage, read_whole
from tests.ranks import Run, ranks
from tests.scripts.checkpoint_ranks import equal, small_state


@pytest.fixture(scope="module", autouse=True)
def run() -> Iterator[Run]:
    with ranks() as run:
        yield run


@pytest.mark.parametrize(
    ("saved", "loads"),
    [
        (("ddp", 3), [("fsdp2", 2), ("plain", 1)]),
        (("fsdp2", 2), [("ddp", 3), ("hsdp", 4)]),
        (("hsdp", 4), [("fsdp2", 3), ("ddp", 2)]),
        (("plain", 1), [("fsdp2", 2)]),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else None,
)
def test_a_checkpoint_loads_in_any_other_layout_and_world(
    run: Run, tmp_path: Path, saved: tuple[str, int], loads: list[tuple[str, int]]
) -> None:
    layout, world = saved
    name = run(world, "save_model", tmp_path, {"layout": layout})[0]["name"]
    for other, size in loads:
        for result in run(size, "load_model", tmp_path, {"layout": other}).values():
            assert result["equal"]
            assert result["extra"] == {"seen": 70}
            assert result["states"] == [{"rank": rank} for rank in range(world)]
        for result in run(size, "load_model", tmp_path, {"layout": other, "name": name}).values():
            assert result["equal"], "plain torch.distributed.checkpoint.load"
    storage = open_storage(tmp_path / "store")
    manifest = newest(list_checkpoints(storage))
    assert manifest is not None and manifest.world_size == world
    assert equal(read_whole(storage, manifest), torch.load(tmp_path / "reference.pt", weights_only=True))


@pytest.mark.parametrize(("layout", "world"), [("ddp", 3), ("hsdp", 4)])
def test_replicated_state_is_written_once_and_spread_evenly(run: Run, tmp_path: Path, layout: str, world: int) -> None:
    results = run(world, "save_model", tmp_path, {"layout": layout})
    shares = [result["staged"] for result in results.values()]
    reference = torch.load(tmp_path / "reference.pt", weights_only=True)
    assert sum(tensor_bytes(reference)) <= sum(shares) < sum(tensor_bytes(reference)) * 1.1  # and a few small values
    assert max(shares) < 1.25 * sum(shares) / world


def tensor_bytes(value: object) -> list[int]:
    if isinstance(value, dict):
        return [size for part in value.values() for size in tensor_bytes(part)]
    return [value.numel() * value.element_size()] if isinstance(value, torch.Tensor) else []


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # DCP says so in one process
def test_a_tensor_cut_over_ranks_is_whole_again_in_one_process(run: Run, tmp_path: Path) -> None:
    told = run(2, "save_with_failure", tmp_path, {"broken": str(tmp_path / "store")})
    assert told == {0: ["saved"] * 3, 1: ["saved"] * 3}
    name = newest(list_checkpoints(open_storage(tmp_path / "store"))).name  # type: ignore[union-attr]
    assert set(open_storage(tmp_path / "store").files(name)) >= {"__0_0.distcp", "__1_0.distcp"}
    state = small_state(0)
    dcp.load(state, checkpoint_id=tmp_path / "store" / name)
    assert equal(state["big"], small_state(3)["big"]) and state["step"] == 3


def test_a_rank_that_is_busy_makes_all_skip_the_save_and_none_wait(run: Run, tmp_path: Path) -> None:
    results = run(2, "save_two_busy", tmp_path)
    for result in results.values():
        assert result["second"] is None and result["third"] is None
        assert result["fourth"] == "step-00000004-r0-a1"
    assert results[1]["gave_up"] is False
    assert "given up" in results[0]["first"] and "rank 1" in results[0]["first"]
    assert [one.name for one in list_checkpoints(open_storage(tmp_path / "store"))] == ["step-00000004-r0-a1"]
