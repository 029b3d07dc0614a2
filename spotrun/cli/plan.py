"""`spotrun plan`: which machines, how many, spot or on demand, before a job is paid for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import click

from spotrun.errors import UsageError

SHOWN = 12
RESTART_S = 120.0


@click.command()
@click.option("--prices", required=True, type=click.Path(path_type=Path), help="A CSV with SkyPilot's columns.")
@click.option("--model", "factory", metavar="MODULE:FUNCTION", help="Returns (model, inputs) with one rank's batch.")
@click.option(
    "--parameters", type=click.FloatRange(1), help="Instead of --model: such as 7e9; activations are left out."
)
@click.option("--tokens", required=True, type=click.FloatRange(1), help="Tokens (or samples) to process.")
@click.option("--batch-tokens", required=True, type=click.FloatRange(1), help="Of one step, over all ranks.")
@click.option("--optimizer", type=click.Choice(["sgd", "momentum", "adamw"]), default="adamw", show_default=True)
@click.option("--sharding", type=click.Choice(["ddp", "fsdp"]), default="ddp", show_default=True)
@click.option("--bytes-each", type=click.IntRange(1, 8), default=4, show_default=True, help="Of a parameter.")
@click.option(
    "--mfu",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.35,
    show_default=True,
    help="Share of the peak FLOPs.",
)
@click.option(
    "--network-gbps", type=click.FloatRange(0, min_open=True), default=50.0, show_default=True, help="Between nodes."
)
@click.option(
    "--losses", multiple=True, metavar="[TYPE=]RATE", help="Losses an hour of the spot group. May be repeated."
)
@click.option(
    "--ledger", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Learn losses from a --log-dir."
)
@click.option(
    "--noticed",
    type=click.FloatRange(0, 1),
    help="Share of losses that lead back to no save: noticed in time, or with the state on other nodes."
    "  [default: 0, or as --ledger says]",
)
@click.option(
    "--restart",
    "restart_s",
    type=click.FloatRange(0),
    help=f"Seconds from a loss to training again.  [default: {RESTART_S:g}, or as --ledger says]",
)
@click.option(
    "--stall",
    "stall_s",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    help="Seconds a save costs.",
)
@click.option("--storage-price", type=click.FloatRange(0), default=0.023, show_default=True, help="Per GB and month.")
@click.option("--egress-price", type=click.FloatRange(0), default=0.0, show_default=True, help="Per GB of checkpoints.")
@click.option("--regions", default="", metavar="PATTERN,...", help="Only these, such as eu-*.")
@click.option("--max-nodes", type=click.IntRange(1), default=8, show_default=True)
@click.option("--deadline-hours", type=click.FloatRange(0, min_open=True), help="Wall time.")
@click.option("--budget", type=click.FloatRange(0, min_open=True), help="Total cost.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Cost against time, as a picture.")
def plan(
    prices: Path,
    factory: str | None,
    parameters: float | None,
    tokens: float,
    batch_tokens: float,
    optimizer: str,
    sharding: str,
    bytes_each: int,
    mfu: float,
    network_gbps: float,
    losses: tuple[str, ...],
    ledger: Path | None,
    noticed: float | None,
    restart_s: float | None,
    stall_s: float,
    storage_price: float,
    egress_price: float,
    regions: str,
    max_nodes: int,
    deadline_hours: float | None,
    budget: float | None,
    plot: Path | None,
) -> None:
    """Rank machines, numbers of nodes, and spot against on demand by the total cost of the work.

    The price table has the columns InstanceType, AcceleratorName, AcceleratorCount, Price, SpotPrice and Region.
    """
    from spotrun.plan.activations import measure
    from spotrun.plan.catalog import allowed, read
    from spotrun.plan.cost import Limits, Market, Work, options
    from spotrun.plan.memory import Model
    from spotrun.plan.view import draw, table

    if (factory is None) == (parameters is None):
        raise UsageError("Give either --model=MODULE:FUNCTION or --parameters=N.")
    patterns = tuple(it for it in regions.split(",") if it)
    offers = allowed(read(prices), patterns)
    if not offers:
        raise UsageError(f"--regions={regions} fits no region in {prices}.")
    if factory is not None:
        model = measure(factory, optimizer)
    else:
        assert parameters is not None
        model = Model(int(parameters), 0, bytes_each, optimizer)
    rates = dict(_rate(it) for it in losses)
    seen = None if ledger is None else learned(ledger)
    if seen is not None:
        rates.setdefault("", seen.per_hour)
        noticed = seen.noticed if noticed is None else noticed
        restart_s = seen.restart_s if restart_s is None else restart_s
    restart_s = RESTART_S if restart_s is None else restart_s
    market = Market(rates, noticed or 0.0, restart_s, stall_s, storage_gb_month=storage_price, egress_gb=egress_price)
    limits = Limits(deadline_hours * 3600 if deadline_hours else math.inf, budget or math.inf, max_nodes)
    work = Work(model, tokens, batch_tokens, "fsdp" if sharding == "fsdp" else "ddp", mfu, network_gbps * 1e9 / 8)
    found = options(work, offers, market, limits)
    click.echo(table(found, SHOWN))
    if plot is not None:
        draw(found, plot)
        click.echo(f"{plot}: cost against time")


def _rate(text: str) -> tuple[str, float]:
    kind, _, number = text.rpartition("=")
    try:
        rate = float(number)
    except ValueError:
        rate = -1.0
    if not 0 <= rate < math.inf:
        raise UsageError(f"--losses={text} is not known: give RATE or TYPE=RATE an hour, such as g5.12xlarge=0.2.")
    return kind, rate


@dataclass(frozen=True, slots=True)
class Learned:
    """What an earlier job saw of losses."""

    per_hour: float  # losses and leavings of its whole group
    noticed: float  # the share of them after which no step was made again, as after a notice in time
    restart_s: float | None  # the mean pause after one; None: there was none


def learned(directory: Path) -> Learned:
    """From the ledgers that lie there. Raises UsageError where there is none."""
    from spotrun.launcher.ledger import FILES, of_file
    from spotrun.report.history import of

    history = of(entry for file in sorted(directory.rglob(FILES)) for entry in of_file(file))
    if not history.length_s:
        raise UsageError(f"--ledger={directory} has no ledger ({FILES}): give the --log-dir of a job.")
    lost = [it for it in history.incidents if it.detail.get("cause") in ("lost", "drained")]
    noticed = sum(
        it.detail["cause"] == "drained" or (it.cost is not None and it.cost.steps_recomputed == 0) for it in lost
    )
    pauses_s = [it.cost.paused_s for it in lost if it.cost is not None]
    return Learned(
        len(lost) / (history.length_s / 3600),
        noticed / len(lost) if lost else 0.0,
        sum(pauses_s) / len(pauses_s) if pauses_s else None,
    )
