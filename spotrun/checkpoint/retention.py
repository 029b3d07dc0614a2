"""Which checkpoints to keep. Pure.

Kept are: the last `keep_last` whole ones (at least one), one every `keep_every` steps (the first whole one at or after
each multiple), and every unfinished directory that is not older than the newest whole checkpoint, because it may be a
save that is still under way.
"""

from __future__ import annotations

from collections.abc import Iterable

from spotrun.checkpoint.manifest import Manifest, parse_name


def to_delete(
    whole: Iterable[Manifest], unfinished: Iterable[str], *, keep_last: int | None, keep_every: int | None = None
) -> list[str]:
    """Directory names to delete, oldest first; `unfinished` are directories without a valid manifest.

    With `keep_last=None` no whole checkpoint is deleted. Damaged checkpoints are in neither list: people look at them.
    """
    if keep_last is not None and keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}; the last whole checkpoint is never deleted, so it is at least 1")
    if keep_every is not None and keep_every < 1:
        raise ValueError(f"keep_every is {keep_every} steps; it must be at least 1")
    ordered = sorted(whole, key=lambda manifest: manifest.order)
    if not ordered:
        return []
    newest = ordered[-1]
    doomed: list[str] = []
    for name in unfinished:
        parsed = parse_name(name)
        if parsed is not None and parsed[0] <= newest.step and parsed[1] <= newest.round:
            doomed.append(name)
    if keep_last is not None:
        kept = {manifest.name for manifest in ordered[-keep_last:]} | _milestones(ordered, keep_every)
        doomed = [manifest.name for manifest in ordered if manifest.name not in kept] + doomed
    return doomed


def _milestones(ordered: list[Manifest], keep_every: int | None) -> set[str]:
    if keep_every is None:
        return set()
    first: dict[int, Manifest] = {}
    for manifest in ordered:
        multiple = manifest.step // keep_every
        # Of one stretch the earliest step is kept; the newer one if two rounds saved the same step.
        if multiple and (multiple not in first or manifest.step <= first[multiple].step):
            first[multiple] = manifest
    return {manifest.name for manifest in first.values()}
