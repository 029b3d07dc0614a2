"""The faults, each with its heal: a context that does it when it is entered and heals it when it is left.

What a fault is said to take out of the job, and what it may cost, goes into the history as a `Harm`.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import psutil

from tests.etcd_servers import admin, kill, stopped
from tests.fault.field import Field, Place

TTL_S = 2.0
BRIEF = (0.1, 0.8 * TTL_S)
LONG = (1.6 * TTL_S, 2.5 * TTL_S)

Said: TypeAlias = dict[str, Any]  # fields of a Harm
Do: TypeAlias = Callable[[Field, int], AbstractContextManager[Said]]


@dataclass(frozen=True, slots=True)
class Kind:
    """`weight`: how often it is chosen. New nodes are dear, so what takes nodes away is chosen less often."""

    do: Do
    for_s: tuple[float, float] = (0.0, 0.0)
    weight: float = 1.0


KINDS: dict[str, Kind] = {}


def fault(name: str, for_s: tuple[float, float] = (0.0, 0.0), weight: float = 1.0) -> Callable[..., Any]:
    def register(function: Callable[[Field, int], Iterator[Said]]) -> None:
        KINDS[name] = Kind(contextlib.contextmanager(function), for_s, weight)

    return register


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


# -- workers


@fault("kill worker", weight=3)
def _kill_worker(field: Field, pick: int) -> Iterator[Said]:
    _signal(field.any(pick).workers(), signal.SIGKILL)
    yield {"charged": 1}


@fault("terminate worker")
def _terminate_worker(field: Field, pick: int) -> Iterator[Said]:
    _signal(field.any(pick).workers(), signal.SIGTERM)
    yield {"charged": 1}


@fault("stop worker", for_s=BRIEF, weight=3)
def _stop_worker(field: Field, pick: int) -> Iterator[Said]:
    workers = field.any(pick).workers()
    _signal(workers, signal.SIGSTOP)
    try:
        yield {"pauses": True}
    finally:
        _signal(workers, signal.SIGCONT)


# -- nodes


def _lose(field: Field, places: list[Place], *, agents_only: bool = False) -> Iterator[Said]:
    for place in places:
        processes = place.agent() if agents_only else place.everything()
        _signal(processes, signal.SIGKILL)
    names = tuple(place.name for place in places)
    everyone = len(places) == len(field.places)
    for place in places:
        field.remove(place)
    yield {"nodes": () if everyone else names}
    for place in places:
        field.add(place.name if not agents_only else None)  # a machine that comes back, or another one


@fault("kill agent", weight=0.7)
def _kill_agent(field: Field, pick: int) -> Iterator[Said]:
    yield from _lose(field, [field.any(pick)], agents_only=True)


@fault("kill node", weight=0.7)
def _kill_node(field: Field, pick: int) -> Iterator[Said]:
    yield from _lose(field, [field.any(pick)])


@fault("kill rank 0", weight=0.7)
def _kill_rank_0(field: Field, pick: int) -> Iterator[Said]:
    yield from _lose(field, [field.rank_0()], agents_only=bool(pick % 2))


@fault("kill coordinator", weight=0.7)
def _kill_coordinator(field: Field, pick: int) -> Iterator[Said]:
    yield from _lose(field, [field.coordinator()], agents_only=bool(pick % 2))


@fault("kill several nodes", weight=0.5)
def _kill_several(field: Field, pick: int) -> Iterator[Said]:
    yield from _lose(field, field.several(pick))


@fault("kill all nodes", weight=0.2)
def _kill_all(field: Field, _: int) -> Iterator[Said]:
    yield from _lose(field, list(field.places))


@fault("node falls silent", for_s=LONG, weight=0.4)
def _silent(field: Field, pick: int) -> Iterator[Said]:
    place = field.any(pick)
    processes = place.everything()
    _signal(processes, signal.SIGSTOP)
    field.remove(place)
    yield {"nodes": (place.name,)}
    _signal(processes, signal.SIGKILL)
    field.add()


@fault("stop agent", for_s=BRIEF, weight=3)
def _stop_agent(field: Field, pick: int) -> Iterator[Said]:
    yield from _stand_still(field.any(pick).agent())


@fault("stop node briefly", for_s=BRIEF, weight=3)
def _stop_node(field: Field, pick: int) -> Iterator[Said]:
    yield from _stand_still(field.any(pick).everything())


@fault("stop node for longer than its lease", for_s=LONG, weight=2)
def _stop_node_long(field: Field, pick: int) -> Iterator[Said]:
    yield from _stand_still(field.any(pick).everything())


@fault("stop all nodes", for_s=LONG)
def _stop_all(field: Field, _: int) -> Iterator[Said]:
    yield from _stand_still([process for place in field.places for process in place.everything()])


def _stand_still(processes: list[psutil.Process]) -> Iterator[Said]:
    _signal(processes, signal.SIGSTOP)
    try:
        yield {"pauses": True}
    finally:
        _signal(processes, signal.SIGCONT)


# -- notices


@fault("notice", weight=0.7)
def _notice(field: Field, pick: int) -> Iterator[Said]:
    place = field.any(pick)
    place.notice.write_text("60")
    field.leave(place)
    yield {"planned": True}
    field.add()


@fault("repeated notice", for_s=(0.1, 0.5), weight=0.5)
def _repeated_notice(field: Field, pick: int) -> Iterator[Said]:
    place = field.any(pick)
    place.notice.write_text("60")
    _signal(place.agent(), signal.SIGTERM)
    field.leave(place)
    yield {"planned": True}
    place.notice.write_text("30")
    field.add()


@fault("withdrawn notice", for_s=(0.05, 1.0), weight=0.5)
def _withdrawn_notice(field: Field, pick: int) -> Iterator[Said]:
    """It may come too late to be heard: then the node has left, and another takes its place."""
    place = field.any(pick)
    place.notice.write_text("60")
    field.leave(place)
    yield {"planned": True}
    place.notice.unlink()
    field.add()


@fault("notice too late", for_s=(0.0, 0.2), weight=0.7)
def _late_notice(field: Field, pick: int) -> Iterator[Said]:
    place = field.any(pick)
    processes = place.everything()
    place.notice.write_text("30")
    field.remove(place)
    yield {}
    _signal(processes, signal.SIGKILL)
    field.add()


# -- who joins


@fault("joining node", weight=0.3)
def _join(field: Field, _: int) -> Iterator[Said]:
    field.add()
    yield {"planned": True}


# -- etcd


@fault("etcd is killed briefly", for_s=BRIEF, weight=3)
def _kill_etcd(field: Field, _: int) -> Iterator[Said]:
    yield from _without_etcd(field)


@fault("etcd is away for longer than the leases", for_s=LONG, weight=2)
def _kill_etcd_long(field: Field, _: int) -> Iterator[Said]:
    yield from _without_etcd(field)


def _without_etcd(field: Field) -> Iterator[Said]:
    kill(field.etcd)
    try:
        yield {"etcd": True}
    finally:
        field.etcd.start()


@fault("etcd hangs", for_s=(0.1, 2.5 * TTL_S), weight=2)
def _stop_etcd(field: Field, _: int) -> Iterator[Said]:
    with stopped(field.etcd):
        yield {"etcd": True}


@fault("etcd loses its data", for_s=BRIEF)
def _lose_data(field: Field, _: int) -> Iterator[Said]:
    kill(field.etcd)
    shutil.rmtree(field.etcd_data)
    try:
        yield {"etcd": True}
    finally:
        field.etcd.start()


@fault("etcd is compacted", weight=2)
def _compact(field: Field, _: int) -> Iterator[Said]:
    revision = int(admin(field.etcd, "kv/range", key="AA==", limit=1)["header"]["revision"])
    with contextlib.suppress(AssertionError):  # compacted already
        admin(field.etcd, "kv/compaction", revision=revision)
    yield {"planned": True}


@fault("etcd is slow", for_s=(1.0, 4.0), weight=2)
def _slow(field: Field, pick: int) -> Iterator[Said]:
    for place in field.places:
        place.proxy.delay_s = 0.02 + (pick % 100) / 1000
    try:
        yield {"etcd": True}
    finally:
        for place in field.places:
            place.proxy.delay_s = 0.0


# -- the way from one node to etcd


@fault("a node cannot reach etcd", for_s=(0.1, 2.5 * TTL_S), weight=2)
def _cut_off(field: Field, pick: int) -> Iterator[Said]:
    with field.any(pick).proxy.away():
        yield {"pauses": True}


@fault("a node hears nothing of etcd", for_s=(0.1, 2.5 * TTL_S), weight=2)
def _one_way(field: Field, pick: int) -> Iterator[Said]:
    proxy = field.any(pick).proxy
    proxy.mute()
    try:
        yield {"pauses": True}
    finally:
        proxy.unmute()


@fault("connections to etcd break", weight=3)
def _flap(field: Field, pick: int) -> Iterator[Said]:
    for place in field.places:
        if pick % 3:
            place.proxy.cut()
    yield {"planned": True}
