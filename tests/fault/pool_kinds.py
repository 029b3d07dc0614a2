"""The faults of pools and of those who give them machines, each with its heal."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from spotrun.pool.pool import LEASE_TTL_S
from tests.fault.kind import Said, fault, send
from tests.fault.pools import Pools

OUTLIVED = (1.1 * LEASE_TTL_S, 1.6 * LEASE_TTL_S)
HARMLESS: Said = {"planned": True}  # to the job, which does not hear of it


@fault("the active pool is killed", weight=3, needs="pool")
def _kill(field: Pools, _: int) -> Iterator[Said]:
    field.kill(field.active())
    yield HARMLESS
    field.add_keeper()


@fault("both pools are killed", for_s=(0.0, 3.0), weight=1.5, needs="pool")
def _kill_both(field: Pools, _: int) -> Iterator[Said]:
    for keeper in list(field.keepers):
        field.kill(keeper)
    yield HARMLESS
    for _ in range(2):
        field.add_keeper()


@fault("the active pool stands still for longer than its lease", for_s=OUTLIVED, weight=3, needs="pool")
def _stop(field: Pools, pick: int) -> Iterator[Said]:
    """A machine is lost meanwhile, so that both of them miss it."""
    process = field.active().process
    process.send_signal(signal.SIGSTOP)
    try:
        yield from _lose_one(field, pick)
    finally:
        process.send_signal(signal.SIGCONT)


@fault("the active pool cannot reach etcd", for_s=(1.0, OUTLIVED[1]), weight=2, needs="pool")
def _cut_off(field: Pools, pick: int) -> Iterator[Said]:
    with field.active().proxy.away():
        yield from _lose_one(field, pick, cut_off=field.provider == "local")


@fault("the active pool hears nothing of etcd", for_s=(1.0, OUTLIVED[1]), weight=2, needs="pool")
def _one_way(field: Pools, pick: int) -> Iterator[Said]:
    proxy = field.active().proxy
    proxy.mute()
    try:
        yield from _lose_one(field, pick, cut_off=field.provider == "local")
    finally:
        proxy.unmute()


@fault("the provider refuses", for_s=(2.0, 20.0), weight=3, needs="exec")
def _refuses(field: Pools, pick: int) -> Iterator[Said]:
    yield from _harmed(field, pick, "refuses")


@fault("the provider is slow", for_s=(5.0, 15.0), weight=2, needs="exec")
def _slow(field: Pools, pick: int) -> Iterator[Said]:
    yield from _harmed(field, pick, "slow")


@fault("a machine that was asked for never joins", weight=1.5, needs="exec")
def _barren(field: Pools, pick: int) -> Iterator[Said]:
    """Its heal is that another one is asked for."""
    (field.state / "barren").touch()
    yield from _lose_one(field, pick)


@fault("a machine that was asked for ends at once", weight=2, needs="exec")
def _stillborn(field: Pools, pick: int) -> Iterator[Said]:
    (field.state / "stillborn").touch()
    yield from _lose_one(field, pick)


def _harmed(field: Pools, pick: int, how: str) -> Iterator[Said]:
    harm = field.state / how
    harm.write_text(f"{1 + pick % 40 / 10:g}")
    try:
        yield from _lose_one(field, pick)
    finally:
        harm.unlink()


def _lose_one(field: Pools, pick: int, *, cut_off: bool = False) -> Iterator[Said]:
    """The pool has something to do. `cut_off`: the nodes that it has started share its way to etcd."""
    place = field.any(pick)
    with contextlib.suppress(ProcessLookupError):
        send(place.everything(), signal.SIGKILL)
    yield {"nodes": (place.name,), "etcd": cut_off}
