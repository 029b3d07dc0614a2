"""`spotrun demo`: see training survive on this one machine."""

from __future__ import annotations

from pathlib import Path

import click

SECONDS = 120.0  # time for four worlds to be seen, on two cores
SHORTEST_S = 30.0


@click.command()
@click.option(
    "--seconds",
    type=click.FloatRange(min=SHORTEST_S),
    default=SECONDS,
    show_default=True,
    help="About how long it takes; a slow machine takes longer.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    help="Folder for the loss curve, metrics, events and logs.",
)
@click.option("--plain", is_flag=True, help="Lines instead of a live view; so it is anyway without a terminal.")
def main(seconds: float, out: Path, plain: bool) -> None:
    """Train a small GPT on three local nodes: one is killed, one joins, one is reclaimed by a (fake) AWS spot notice.

    Everything runs on this machine: an etcd, three agents and their workers (DDP over gloo, on the CPU), on text that
    is here already: the source of Python's standard library. Nothing is left running at the end or after Ctrl-C.
    """
    import os

    from rich.console import Console

    from spotrun.demo.driver import run

    console = Console()
    run(seconds, out, console, plain=plain or not console.is_terminal or "NO_COLOR" in os.environ)
