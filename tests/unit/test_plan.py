"""What a plan computes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from spotrun.checkpoint_policy import daly, goodput
from spotrun.cli.plan import Learned, learned, plan
from spotrun.errors import UsageError
from spotrun.plan.catalog import Offer, allowed, read
from spotrun.plan.cost import Limits, Market, Work, options, step_s
from spotrun.plan.memory import Model, predict
from spotrun.rendezvous.state import encode
from tests.unit.test_report import LEDGER

PRICES = Path(__file__).parents[2] / "docs" / "prices.csv"
MODEL = Model(1_000_000_000, 50_000_000)
WORK = Work(MODEL, tokens=1e9, batch_tokens=1e6)
L4X4 = Offer("g6.12xlarge", "L4", 4, 4.6, 1.95, "us-east-1")
QUIET = Market({})


def test_ddp_keeps_five_copies_and_fsdp_its_share_and_what_it_gathers() -> None:
    ddp, fsdp = predict(MODEL, "ddp", 8), predict(MODEL, "fsdp", 8)
    assert ddp.total == 4e9 * (1 + 1 + 2 + 1)
    assert fsdp.total == 4e9 * 4 / 8 + 3 * 50e6 * 4
    assert predict(MODEL, "ddp", 1).total == 16e9, "a lone rank has no buckets"
    assert predict(replace(MODEL, activation_bytes=int(9e9)), "ddp", 8).total == 4e9 * 4 + 9e9


def test_a_step_is_its_flops_and_the_exchange_that_is_not_hidden() -> None:
    alone = step_s(WORK, L4X4, 1)
    assert alone == pytest.approx(6e15 / (4 * 121e12 * 0.35))
    assert step_s(WORK, L4X4, 2) == pytest.approx(alone / 2), "hidden beside the backward pass"
    slow = replace(WORK, network_bytes_per_s=1e8)
    assert step_s(slow, L4X4, 2) == pytest.approx(alone / 2 + 4e9 / 1e8 - alone / 3)


def test_spot_costs_its_price_for_the_time_that_losses_make_longer() -> None:
    market = Market({"g6.12xlarge": 0.5}, restart_s=300, stall_s=5)
    found = {(it.nodes, it.spot): it for it in options(WORK, [L4X4], market, Limits(max_nodes=2))}
    spot, demand = found[1, True], found[1, False]
    assert spot.goodput == pytest.approx(goodput(daly(5, 7200), 5, 7200, 300))
    assert spot.interval_s == daly(5, 7200)
    assert demand.goodput == 1 and demand.interval_s == math.inf
    assert spot.wall_s * spot.goodput == pytest.approx(demand.wall_s)
    assert demand.compute_cost == pytest.approx(4.6 * demand.wall_s / 3600)
    assert found[2, True].goodput == spot.goodput, "the rate is that of the group, not of each node"


def test_what_will_do_comes_first_and_the_cheapest_of_it() -> None:
    found = options(WORK, read(PRICES), Market({"": 0.2}), Limits(max_nodes=4))
    good = [it for it in found if not it.why_not]
    assert good == found[: len(good)] and [it.cost for it in good] == sorted(it.cost for it in good)
    big = replace(WORK, model=replace(MODEL, parameters=70_000_000_000))
    assert all(it.why_not.startswith("needs ") for it in options(big, [L4X4], QUIET, Limits()))
    assert {it.why_not for it in options(WORK, [L4X4], QUIET, Limits(deadline_s=60))} == {"after the deadline"}
    assert {it.why_not for it in options(WORK, [L4X4], QUIET, Limits(budget=0.01))} == {"over the budget"}


def test_egress_and_storage_are_part_of_the_cost() -> None:
    plain = options(WORK, [L4X4], Market({"": 1.0}), Limits(max_nodes=1))[0]
    out = options(WORK, [L4X4], Market({"": 1.0}, egress_gb=0.09), Limits(max_nodes=1))[-1]
    assert plain.storage_cost > 0 and plain.egress_cost == 0
    dear = options(WORK, [L4X4], Market({"": 1.0}, egress_gb=0.09), Limits(max_nodes=1))
    spot = next(it for it in dear if it.spot)
    assert spot.egress_cost == pytest.approx(12 * 0.09 * spot.wall_s / spot.interval_s)
    assert out.cost > plain.cost


def test_regions_are_patterns_and_the_cheapest_zone_counts(tmp_path: Path) -> None:
    assert {it.region for it in allowed(read(PRICES), ("eu-*",))} == {"eu-central-1"}
    text = (
        PRICES.read_text()
        + "g6.xlarge,4,16,L4,1,,0.805,0.20,us-east-1,us-east-1b\nm5.large,2,8,,,,0.1,0.04,us-east-1,\n"
    )
    (tmp_path / "p.csv").write_text(text)
    found = {it.instance: it.spot_price for it in read(tmp_path / "p.csv") if it.region == "us-east-1"}
    assert found["g6.xlarge"] == 0.20 and "m5.large" not in found


def test_what_losses_cost_is_learned_from_a_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drained = replace(
        LEDGER[2], round=1, detail={"nodes": "a,b,c", "cause": "drained"}
    )  # 10 s; the lost one paused 5 s
    entries = [drained if it is LEDGER[2] else it for it in LEDGER]
    (tmp_path / "job-a.ledger.jsonl").write_bytes(b"".join(encode(it) + b"\n" for it in entries))
    assert learned(tmp_path) == Learned(pytest.approx(2 / (200 / 3600)), 0.5, 7.5)
    table = []
    for flags in (["--ledger", str(tmp_path)], ["--losses=36", "--noticed=0.5", "--restart=7.5"]):
        common = ["--prices", str(PRICES), "--tokens=1e9", "--batch-tokens=1e6", "--parameters=1e9"]
        plan.main([*common, *flags], standalone_mode=False)
        table.append(capsys.readouterr().out)
    assert table[0] == table[1]
    with pytest.raises(UsageError, match="has no ledger"):
        learned(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("InstanceType,Price\nx,1\n", "has no column AcceleratorName"),
        (
            "InstanceType,AcceleratorName,AcceleratorCount,Price,SpotPrice,Region\nx,L4,1,dear,,r\n",
            "bad number in line 2",
        ),
        (
            "InstanceType,AcceleratorName,AcceleratorCount,Price,SpotPrice,Region\nx,TPU,1,1,,r\n",
            "has no accelerator of",
        ),
    ],
)
def test_a_bad_table_is_told_in_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UsageError, match=said):
        read(tmp_path / "p.csv")


def test_the_command_prints_a_table_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--prices", str(PRICES), "--tokens=1e9", "--batch-tokens=1e6", "--losses=0.2"]
    picture = tmp_path / "plan.png"
    plan.main([*common, "--parameters=1e9", "--plot", str(picture)], standalone_mode=False)
    out = capsys.readouterr().out
    assert out.startswith("NODES") and "one node: " in out and picture.stat().st_size > 1000
    with pytest.raises(UsageError, match="either --model"):
        plan.main(common, standalone_mode=False)
    with pytest.raises(UsageError, match="--losses=often"):
        plan.main([*common, "--parameters=1e9", "--losses=often"], standalone_mode=False)
