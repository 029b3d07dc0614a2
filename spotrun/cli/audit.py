"""`spotrun audit DIR`: was every sample consumed exactly once an epoch?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from spotrun.errors import SpotrunError

_SHOWN = 20  # violations that are printed without --all


@click.command("audit")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--all", "show_all", is_flag=True, help=f"Print every violation, not only the first {_SHOWN}.")
def audit(directory: Path, show_all: bool) -> None:
    """Prove from the records in DIRECTORY, which a job with --audit writes, that every sample was consumed exactly
    once an epoch, or name each violation and exit with 1. Steps that were rolled back and done again count once."""
    from spotrun.audit import check, load  # numpy takes longer to load than `--help` may

    try:
        report = check(*load(directory))
    except SpotrunError as error:
        click.echo(f"spotrun: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo(report.summary())
    shown = report.violations if show_all else report.violations[:_SHOWN]
    for violation in shown:
        click.echo(f"  {violation.kind}: {violation.text}")
    if len(shown) < len(report.violations):
        click.echo(f"  and {len(report.violations) - len(shown)} more: --all prints them")
    sys.exit(1 if report.violations else 0)


def main(argv: Sequence[str]) -> None:
    audit.main(args=list(argv), prog_name="spotrun audit")
