"""`spotrun checkpoints`: look at, verify, prune and export what a job has saved. DIR is a path or an fsspec URL."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spotrun.errors import CheckpointError

if TYPE_CHECKING:
    from spotrun.checkpoint import Found, Manifest, Storage

TRIED = 16  # names listed in an error


@click.group()
def checkpoints() -> None:
    """List, verify, prune and export checkpoints."""


def _open(directory: str) -> Storage:
    from spotrun.checkpoint import open_storage

    return open_storage(directory)


def _all(directory: str) -> tuple[Storage, list[Found]]:
    from spotrun.checkpoint import list_checkpoints

    storage = _open(directory)
    found = list_checkpoints(storage)
    if not found:
        raise CheckpointError(f"there are no checkpoints in {storage.url}")
    return storage, found


def _state_of(one: Found, best: Manifest | None) -> str:
    if one.unfinished:
        return "unfinished"
    if one.problem:
        return f"damaged: {one.problem}"
    return "whole, newest" if best is not None and best.name == one.name else "whole"


@checkpoints.command()
@click.argument("directory", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def ls(directory: str, as_json: bool) -> None:
    """List the checkpoints in DIR, the newest first."""
    from spotrun.checkpoint import newest

    _, found = _all(directory)
    best = newest(found)
    if not as_json:
        click.echo(f"{'CHECKPOINT':<26} {'STEP':>10} {'ROUND':>6} {'RANKS':>6} {'SIZE':>10}  {'SAVED':<19}  STATE")
    for one in found:
        manifest = one.manifest
        state = _state_of(one, best)
        if as_json:
            row: dict[str, Any] = {"name": one.name, "state": state}
            if manifest is not None:
                row |= {
                    "step": manifest.step,
                    "round": manifest.round,
                    "world_size": manifest.world_size,
                    "bytes": manifest.size_bytes,
                    "saved_wall_s": manifest.created_wall_s,
                    "run_id": manifest.run_id,
                    "extra": manifest.extra,
                }
            click.echo(json.dumps(row))
        elif manifest is None:
            click.echo(f"{one.name:<26} {'-':>10} {'-':>6} {'-':>6} {'-':>10}  {'-':<19}  {state}")
        else:
            saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.created_wall_s))
            size = _readable(manifest.size_bytes)
            click.echo(
                f"{one.name:<26} {manifest.step:>10} {manifest.round:>6} {manifest.world_size:>6} {size:>10}  {saved}  "
                f"{state}"
            )


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _choose(storage: Storage, found: list[Found], name: str | None) -> Manifest:
    from spotrun.checkpoint import newest

    chosen = newest(found if name is None else [one for one in found if one.name == name])
    if chosen is None:
        wanted = "whole checkpoint" if name is None else f"whole checkpoint {name}"
        names = ", ".join(one.name for one in found[:TRIED])
        raise CheckpointError(f"there is no {wanted} in {storage.url}; it holds: {names}")
    return chosen


@checkpoints.command()
@click.argument("directory", metavar="DIR")
@click.argument("names", metavar="[NAME]...", nargs=-1)
def verify(directory: str, names: tuple[str, ...]) -> None:
    """Read every byte and compare it with the checksums; all checkpoints in DIR, or those named."""
    from spotrun.checkpoint import wrong_checksums

    storage, found = _all(directory)
    if unknown := set(names) - {one.name for one in found}:
        raise CheckpointError(f"there is no checkpoint {', '.join(sorted(unknown))} in {storage.url}")
    damaged = []
    for one in found:
        if names and one.name not in names:
            continue
        problem = one.problem
        if one.unfinished:
            click.echo(f"{one.name}: unfinished, not a checkpoint")
            if one.name in names:
                damaged.append(one.name)
            continue
        if not problem and one.manifest is not None:
            try:
                problem = "; ".join(wrong_checksums(storage, one.name, one.manifest.files))
            except OSError as error:
                problem = f"cannot be read: {error}"
        click.echo(f"{one.name}: {problem or 'whole'}")
        if problem:
            damaged.append(one.name)
    if damaged:
        raise CheckpointError(f"not whole in {storage.url}: {', '.join(damaged)}")


@checkpoints.command()
@click.argument("directory", metavar="DIR")
@click.option("--keep-last", type=click.IntRange(1), required=True, help="Keep this many of the newest.")
@click.option("--keep-every", type=click.IntRange(1), metavar="STEPS", help="Also keep one every so many steps.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
def prune(directory: str, keep_last: int, keep_every: int | None, dry_run: bool) -> None:
    """Delete old checkpoints and dead unfinished ones; never the last whole one, nor damaged ones."""
    from spotrun.checkpoint import prune as delete

    storage, _ = _all(directory)
    doomed = delete(storage, keep_last=keep_last, keep_every=keep_every, dry_run=dry_run)
    for name in doomed:
        click.echo(f"{'would delete' if dry_run else 'deleted'} {name}")
    if not doomed:
        click.echo("nothing to delete")


@checkpoints.command()
@click.argument("directory", metavar="DIR")
@click.argument("target", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--name", metavar="NAME", help="Which checkpoint; the newest whole one by default.")
@click.option("--format", "form", type=click.Choice(["torch", "safetensors"]), help="By FILE's ending, else torch.")
@click.option("--prefix", default="", metavar="KEY", help='Only what lies below KEY, for example "model".')
def export(directory: str, target: Path, name: str | None, form: str | None, prefix: str) -> None:
    """Write one checkpoint as a single FILE for torch.load or safetensors."""
    from spotrun.checkpoint import export_checkpoint, wrong_checksums

    storage, found = _all(directory)
    manifest = _choose(storage, found, name)
    if problems := wrong_checksums(storage, manifest.name, manifest.files):
        raise CheckpointError(f"{manifest.name} in {storage.url} is damaged: {'; '.join(problems)}")
    form = form or ("safetensors" if target.suffix == ".safetensors" else "torch")
    export_checkpoint(storage, manifest, target, format=form, prefix=prefix)
    click.echo(f"{target}: {manifest.name}, {_readable(target.stat().st_size)}")
