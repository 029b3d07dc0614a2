"""Choosing the checkpoint to go on from, together: the newest whole one, or the one before it if it proves damaged."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from spotrun import events
from spotrun.checkpoint.manifest import RANKS, Manifest, decode, encode
from spotrun.checkpoint.reader import Damaged, read_checked, read_state
from spotrun.checkpoint.storage import Storage
from spotrun.checkpoint.survey import list_checkpoints, report_damaged, wrong_checksums
from spotrun.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Loaded:
    manifest: Manifest
    rank_states: tuple[Any, ...]  # by the rank that saved; as many as its world had ranks

    @property
    def extra(self) -> dict[str, Any]:
        return self.manifest.extra


def load(
    storage: Storage,
    state_dict: dict[str, Any],
    *,
    group: dist.ProcessGroup | None = None,
    verify: bool = False,
    name: str | None = None,
    strict: bool = True,
) -> Loaded | None:
    """Fill `state_dict` in place from the newest whole checkpoint, or from `name`; None if there has never been one.

    All ranks call it; `group` is a gloo group of theirs, None for one process. `verify` reads every file's checksum
    first, each rank a part of them. A damaged checkpoint is named, by log and event, and the next one is taken. Raises
    CheckpointError if the model does not fit, if the storage does not answer, or if there are checkpoints but no whole
    one.
    """
    rank, size = (group.rank(), group.size()) if group is not None else (0, 1)
    candidates, problems = _from_first(lambda: _candidates(storage, name), storage, group)
    for packed in candidates:
        manifest = decode(packed[1].encode(), packed[0])
        states: tuple[Any, ...] = ()
        damage, trouble = "", None
        try:
            if verify:
                wrong = wrong_checksums(storage, manifest.name, manifest.files[rank::size])
                if wrong:
                    damage = "; ".join(wrong)
            if not _anyone(damage, group):
                read_state(storage, manifest, state_dict, strict=strict)
                states = _rank_states(storage, manifest)
        except Damaged as error:
            damage = str(error)
        except Exception as error:  # noqa: BLE001 - the other ranks wait for this one's verdict
            trouble = _describe(error, manifest.name, storage)
        if troubles := _anyone(trouble, group):
            raise CheckpointError("; ".join(why for why, _ in troubles), retry=all(retry for _, retry in troubles))
        damages = _anyone(damage, group)
        if not damages:
            events.emit(
                "checkpoint_loaded",
                f"going on from {manifest.name} in {storage.url}" if rank == 0 else "",
                checkpoint=manifest.name,
                step=manifest.step,
            )
            return Loaded(manifest, states)
        problems.append(f"{manifest.name}: {'; '.join(damages)}")
        events.emit(
            "checkpoint_damaged",
            f"checkpoint {manifest.name} in {storage.url} is damaged and skipped: {'; '.join(damages)}"
            if rank == 0
            else "",
            level=logging.WARNING,
            checkpoint=manifest.name,
            problem="; ".join(damages),
        )
    if problems:
        raise CheckpointError(f"no whole checkpoint is left in {storage.url}: {'. '.join(problems)}")
    return None


def _candidates(storage: Storage, name: str | None) -> tuple[list[tuple[str, str]], list[str]]:
    """(name, manifest) of the whole ones, the newest first, and what is wrong with the others."""
    found = list_checkpoints(storage)
    if name is not None:
        found = [one for one in found if one.name == name]
        if not found or found[0].unfinished:
            raise CheckpointError(f"there is no checkpoint {name} in {storage.url}")
    report_damaged(storage, found)
    whole = [(one.name, encode(one.manifest).decode()) for one in found if one.manifest is not None and one.whole]
    return whole, [f"{one.name}: {one.problem}" for one in found if one.problem]


def _rank_states(storage: Storage, manifest: Manifest) -> tuple[Any, ...]:
    states = json.loads(read_checked(storage, manifest, RANKS))["state"]
    return tuple(states[str(rank)] for rank in range(manifest.world_size))


def _from_first(
    look: Callable[[], tuple[list[tuple[str, str]], list[str]]], storage: Storage, group: dist.ProcessGroup | None
) -> tuple[list[tuple[str, str]], list[str]]:
    """What rank 0 sees, on all ranks; its failure too."""
    box: list[Any] = [None]
    if group is None or group.rank() == 0:
        try:
            box = [look()]
        except Exception as error:  # noqa: BLE001 - raised below, on all ranks
            box = [(None, _describe(error, "the list of checkpoints", storage))]
    if group is not None:
        dist.broadcast_object_list(box, group=group, group_src=0)
    whole, problems = box[0]
    if whole is None:
        raise CheckpointError(problems[0], retry=problems[1])
    return whole, problems


def _describe(error: Exception, what: str, storage: Storage) -> tuple[str, bool]:
    """What is wrong, and whether it may be right the next time."""
    if isinstance(error, CheckpointError):
        return str(error), error.retry
    return f"{what} in {storage.url} cannot be read, though it may be whole: {type(error).__name__}: {error}", True


P = TypeVar("P")


def _anyone(problem: P | None, group: dist.ProcessGroup | None) -> list[P]:
    """The problems of all ranks, each once; empty if no rank has one."""
    if group is None:
        return [problem] if problem else []
    said: list[Any] = [None] * group.size()
    dist.all_gather_object(said, problem, group=group)
    return list(dict.fromkeys(one for one in said if one))
