"""`spotrun report RUN|DIR`: what happened to a job, as one HTML file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from spotrun.cli.running_job import ETCD_OPTIONS, EtcdFlags, RunningJob, with_options
from spotrun.config import parse_price
from spotrun.errors import UsageError


@click.command()
@click.argument("source", metavar="RUN|DIR")
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), default="report.html", show_default=True)
@click.option("--rdzv-endpoint", envvar="PET_RDZV_ENDPOINT", help="The etcd of the job RUN.")
@click.option("--price-per-node-hour", metavar="PRICE", help="What was paid.")
@click.option("--on-demand-price", metavar="PRICE", help="What such a node costs on demand, an hour.")
@with_options(ETCD_OPTIONS)
def report(
    source: str,
    out: Path,
    rdzv_endpoint: str | None,
    price_per_node_hour: str | None,
    on_demand_price: str | None,
    **etcd: Any,
) -> None:
    """Write what happened to a job into one HTML file: world size, nodes, steps and loss, incidents, goodput, cost.

    DIR holds the ledgers that --log-dir makes, of all nodes or some; RUN is the --rdzv-id of a job in etcd, which keeps
    the newest thousand entries, and of steps only the newest.
    """
    from spotrun.launcher.job_status import latest, read
    from spotrun.launcher.ledger import FILES, of_file
    from spotrun.rendezvous.keys import Keys, check_run_id
    from spotrun.report.history import of
    from spotrun.report.page import Prices, page

    prices = Prices(
        None if price_per_node_hour is None else parse_price(price_per_node_hour),
        None if on_demand_price is None else parse_price(on_demand_price, "--on-demand-price"),
    )
    if Path(source).is_dir():
        name = Path(source).resolve().name
        entries = []
        for file in sorted(Path(source).rglob(FILES)):
            told = of_file(file)
            name = file.name.removesuffix(f"-{told[0].node}.ledger.jsonl") if told else name
            entries += told
        where = f"no ledger ({FILES}) in {source}: it is made by --log-dir"
    elif rdzv_endpoint:
        job = RunningJob(Keys(check_run_id(source)), EtcdFlags(**etcd).config(rdzv_endpoint))
        with job.client() as client:
            found = read(client, job.keys)
        name = source
        entries = [*found.ledger, *latest(found, time.time())]
        where = f"no ledger of a job {source!r} in etcd at {rdzv_endpoint}: check --rdzv-id"
    else:
        raise UsageError(
            f"{source} is no directory: give that of --log-dir, or --rdzv-endpoint for a job of that name."
        )
    if not entries:
        raise UsageError(f"There is {where}.")
    out.write_text(page(name, of(entries), prices), encoding="utf-8")
    click.echo(f"{out}: {len(entries)} entries")
