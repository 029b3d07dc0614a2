"""Deleting what retention does not keep; the manifest goes first, so that a half-deleted checkpoint is none."""

from __future__ import annotations

from collections.abc import Callable

from spotrun import events
from spotrun.checkpoint.manifest import MANIFEST
from spotrun.checkpoint.retention import to_delete
from spotrun.checkpoint.storage import Storage
from spotrun.checkpoint.survey import list_checkpoints


def prune(
    storage: Storage,
    *,
    keep_last: int | None,
    keep_every: int | None = None,
    dry_run: bool = False,
    deleted: Callable[[str], None] | None = None,
) -> list[str]:
    """Delete old checkpoints and dead unfinished ones; the names, oldest first. Damaged ones stay for people to see.

    `deleted` is called with the name of each that no longer is one.
    """
    found = list_checkpoints(storage)
    whole = [one.manifest for one in found if one.manifest is not None and one.whole]
    unfinished = [one.name for one in found if one.unfinished]
    doomed = to_delete(whole, unfinished, keep_last=keep_last, keep_every=keep_every)
    if dry_run:
        return doomed
    for name in doomed:
        storage.delete(f"{name}/{MANIFEST}")
        if deleted is not None:
            deleted(name)
        storage.delete_directory(name)
        events.emit("checkpoint_deleted", f"checkpoint {name} is deleted", checkpoint=name)
    return doomed
