"""How long a job takes on so many machines of a kind, and what it costs. Pure.

A step computes 6 FLOPs a parameter and token, and between nodes exchanges each gradient twice; what of it fits beside
the backward pass (two thirds of the computing) is not waited for. Within a node the exchange is not counted.
Losses come at the rate of the whole group: they are events that take one node or several, not nodes times a rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from spotrun.checkpoint_policy import goodput, interval
from spotrun.plan.catalog import Offer
from spotrun.plan.memory import Model, Sharding, predict, state_bytes

OVERLAP = 2 / 3
USABLE = 0.92  # of an accelerator's memory: the CUDA context, NCCL's buffers and fragments take the rest
HOURS_A_MONTH = 730.0


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done."""

    model: Model
    tokens: float
    batch_tokens: float  # of one step, over all ranks
    sharding: Sharding = "ddp"
    mfu: float = 0.35  # share of the peak that the model reaches
    network_bytes_per_s: float = 6.25e9  # of a node: 50 Gbit/s


@dataclass(frozen=True, slots=True)
class Market:
    """What befalls machines, and what else is paid."""

    losses_per_hour: Mapping[str, float]  # of spot machines, by instance type; "" for all others
    noticed: float = 0.0  # the share of losses with a notice long enough to save
    restart_s: float = 120.0  # from a loss to training again, capacity included
    stall_s: float = 2.0  # what one save costs the loop
    failures_per_hour: float = 0.0  # of machines on demand
    storage_gb_month: float = 0.023
    kept_checkpoints: int = 3
    egress_gb: float = 0.0  # a price: where checkpoints leave the region


@dataclass(frozen=True, slots=True)
class Limits:
    deadline_s: float = math.inf
    budget: float = math.inf
    max_nodes: int = 8


@dataclass(frozen=True, slots=True)
class Option:
    """One way to do the work."""

    offer: Offer
    nodes: int
    spot: bool
    memory_bytes: float  # of one rank
    step_s: float
    goodput: float
    interval_s: float  # between saves; infinite where nothing is lost
    wall_s: float
    compute_cost: float
    storage_cost: float
    egress_cost: float
    why_not: str = ""  # empty: it will do

    @property
    def cost(self) -> float:
        return self.compute_cost + self.storage_cost + self.egress_cost


def options(work: Work, offers: Iterable[Offer], market: Market, limits: Limits) -> list[Option]:
    """Every way, those that will do first, the cheapest first."""
    found = [
        option
        for offer in offers
        for nodes in range(1, limits.max_nodes + 1)
        for option in _both(work, offer, nodes, market, limits)
    ]
    return sorted(found, key=lambda it: (bool(it.why_not), it.cost, it.wall_s))


def step_s(work: Work, offer: Offer, nodes: int) -> float:
    """One step."""
    parameters = work.model.parameters
    compute_s = 6 * parameters * work.batch_tokens / (nodes * offer.count * offer.flops * work.mfu)
    moved = 2 * (nodes - 1) / nodes * parameters * work.model.bytes_each
    return compute_s + max(0.0, moved / work.network_bytes_per_s - OVERLAP * compute_s)


def _both(work: Work, offer: Offer, nodes: int, market: Market, limits: Limits) -> Iterator[Option]:
    if offer.spot_price is not None:
        rate = market.losses_per_hour.get(offer.instance, market.losses_per_hour.get("", 0.0))
        yield _option(work, offer, nodes, market, limits, rate, offer.spot_price, spot=True)
    if offer.price is not None:
        yield _option(work, offer, nodes, market, limits, market.failures_per_hour, offer.price, spot=False)


def _option(
    work: Work, offer: Offer, nodes: int, market: Market, limits: Limits, rate: float, price: float, *, spot: bool
) -> Option:
    memory = predict(work.model, work.sharding, nodes * offer.count)
    each_s = step_s(work, offer, nodes)
    loss_s = 3600 / rate if rate > 0 else math.inf
    silent_s = loss_s / (1 - market.noticed) if market.noticed < 1 else loss_s  # only these go back to the last save
    every_s = interval(market.stall_s, silent_s) if rate > 0 else math.inf
    share = goodput(every_s, market.stall_s, loss_s, market.restart_s, market.noticed) if rate > 0 else 1.0
    wall_s = work.tokens / work.batch_tokens * each_s / share if share > 0 else math.inf
    gigabytes = state_bytes(work.model) / 1e9
    saves = wall_s / every_s if every_s < math.inf else 1.0
    option = Option(
        offer,
        nodes,
        spot,
        memory.total,
        each_s,
        share,
        every_s,
        wall_s,
        nodes * price * wall_s / 3600,
        gigabytes * market.kept_checkpoints * market.storage_gb_month * wall_s / 3600 / HOURS_A_MONTH,
        gigabytes * saves * market.egress_gb if market.egress_gb else 0.0,
    )
    return _judged(option, limits)


def _judged(option: Option, limits: Limits) -> Option:
    room = USABLE * option.offer.memory_bytes
    if option.memory_bytes > room:
        return replace(option, why_not=f"needs {option.memory_bytes / 1e9:.1f} GB of {room / 1e9:.1f} a GPU")
    if option.wall_s > limits.deadline_s:
        return replace(option, why_not="after the deadline")
    if option.cost > limits.budget:
        return replace(option, why_not="over the budget")
    return option
