"""The faults of workers, nodes, disks, clocks, etcd and networks, each with its heal. Those of pools: pool_kinds.py."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from spotrun.errors import EtcdError, VersionRefused
from tests.etcd_servers import admin, kill, stopped
from tests.fault.field import Field, Place
from tests.fault.kind import BRIEF, LONG, TTL_S, Said, fault, send, stand_still
from tests.networks import Host
from tests.waiting import until

REFUSED_BY_S = 60.0  # it waits for an etcd that is away

# -- workers


@fault("kill worker", weight=3)
def _kill_worker(field: Field, pick: int) -> Iterator[Said]:
    send(field.any(pick).workers(), signal.SIGKILL)
    yield {"charged": 1}


@fault("terminate worker")
def _terminate_worker(field: Field, pick: int) -> Iterator[Said]:
    send(field.any(pick).workers(), signal.SIGTERM)
    yield {"charged": 1}


@fault("worker is out of memory", needs="memory")
def _out_of_memory(field: Field, pick: int) -> Iterator[Said]:
    """The kernel's own killer takes it."""
    group = field.around.memory
    assert group is not None
    for worker in field.any(pick).workers():
        with contextlib.suppress(OSError, psutil.TimeoutExpired):  # it has just ended, or touches none while it waits
            (group / "cgroup.procs").write_text(str(worker.pid))
            worker.wait(20)  # until it touches one page more
    yield {"charged": 1}


@fault("stop worker", for_s=BRIEF, weight=3)
def _stop_worker(field: Field, pick: int) -> Iterator[Said]:
    workers = field.any(pick).workers()
    send(workers, signal.SIGSTOP)
    try:
        yield {"pauses": True}
    finally:
        send(workers, signal.SIGCONT)


# -- nodes


def _lose(field: Field, places: list[Place], *, agents_only: bool = False) -> Iterator[Said]:
    for place in places:
        processes = place.agent() if agents_only else place.everything()
        send(processes, signal.SIGKILL)
    for place in places:
        field.remove(place)
    yield {"nodes": _names(places)}
    for place in places:
        field.add(place.name if not agents_only else None)  # a machine that comes back, or another one


def _names(places: list[Place]) -> tuple[str, ...]:
    return tuple(place.name for place in places)


@fault("kill agent", weight=1.5)
def _kill_agent(field: Field, pick: int) -> Iterator[Said]:
    yield from _lose(field, [field.any(pick)], agents_only=True)


@fault("kill node", weight=1.5)
def _kill_node(field: Field, pick: int) -> Iterator[Said]:
    yield from _lose(field, [field.any(pick)])


@fault("kill rank 0", weight=1.5)
def _kill_rank_0(field: Field, pick: int) -> Iterator[Said]:
    yield from _lose(field, [field.rank_0()], agents_only=bool(pick % 2))


@fault("kill coordinator", weight=1.5)
def _kill_coordinator(field: Field, pick: int) -> Iterator[Said]:
    yield from _lose(field, [field.coordinator()], agents_only=bool(pick % 2))


@fault("kill several nodes")
def _kill_several(field: Field, pick: int) -> Iterator[Said]:
    yield from _lose(field, field.several(pick))


@fault("kill all nodes", weight=0.4)
def _kill_all(field: Field, _: int) -> Iterator[Said]:
    yield from _lose(field, list(field.places))


@fault("node falls silent", for_s=LONG)
def _silent(field: Field, pick: int) -> Iterator[Said]:
    place = field.any(pick)
    processes = place.everything()
    send(processes, signal.SIGSTOP)
    field.remove(place)
    yield {"nodes": (place.name,)}
    send(processes, signal.SIGKILL)
    field.add()


@fault("stop agent", for_s=BRIEF, weight=3)
def _stop_agent(field: Field, pick: int) -> Iterator[Said]:
    yield from stand_still(field.any(pick).agent())


@fault("stop node briefly", for_s=BRIEF, weight=3)
def _stop_node(field: Field, pick: int) -> Iterator[Said]:
    yield from stand_still(field.any(pick).everything())


@fault("stop node for longer than its lease", for_s=LONG, weight=2)
def _stop_node_long(field: Field, pick: int) -> Iterator[Said]:
    yield from stand_still(field.any(pick).everything())


@fault("stop all nodes", for_s=LONG)
def _stop_all(field: Field, _: int) -> Iterator[Said]:
    yield from stand_still([process for place in field.places for process in place.everything()])


# -- notices


@fault("notice", weight=1.5, needs="apart")
def _notice(field: Field, pick: int) -> Iterator[Said]:
    place = field.any(pick)
    place.notice.write_text("60")
    field.leave(place)
    yield {"planned": True, "nodes": (place.name,)}
    field.add()


@fault("repeated notice", for_s=(0.1, 0.5), weight=0.5, needs="apart")
def _repeated_notice(field: Field, pick: int) -> Iterator[Said]:
    place = field.any(pick)
    place.notice.write_text("60")
    send(place.agent(), signal.SIGTERM)
    field.leave(place)
    yield {"planned": True, "nodes": (place.name,)}
    place.notice.write_text("30")
    field.add()


@fault("withdrawn notice", for_s=(0.05, 1.0), weight=0.5, needs="apart")
def _withdrawn_notice(field: Field, pick: int) -> Iterator[Said]:
    """It may come too late to be heard: then the node has left, and another takes its place."""
    place = field.any(pick)
    place.notice.write_text("60")
    field.leave(place)
    yield {"planned": True, "nodes": (place.name,)}
    place.notice.unlink()
    field.add()


@fault("notice too late", for_s=(0.0, 0.2), weight=1.5, needs="apart")
def _late_notice(field: Field, pick: int) -> Iterator[Said]:
    place = field.any(pick)
    processes = place.everything()
    place.notice.write_text("30")
    field.remove(place)
    yield {"nodes": (place.name,)}
    send(processes, signal.SIGKILL)
    field.add()


# -- who joins


@fault("joining node", weight=0.7, needs="adds")
def _join(field: Field, _: int) -> Iterator[Said]:
    field.add()
    yield {"planned": True}


@fault("nodes come and go in a storm", for_s=(0.2, 3.0), weight=0.4, needs="adds")
def _storm(field: Field, pick: int) -> Iterator[Said]:
    """They are told to go while they start, meet, or train."""
    places = [field.add() for _ in range(2 + pick % 2)]
    yield {"planned": True, "nodes": _names(places)}
    for place in places:
        send(place.agent(), signal.SIGTERM)
        field.leave(place)


@fault("a node of another version", for_s=(0.1, 2.0))
def _other_version(field: Field, pick: int) -> Iterator[Said]:
    """It is told so, unless etcd is away, and ends."""
    other = field.other_version()
    node = field.job.start(f"other-{pick}", within=other.within, env=other.env)
    yield {"planned": True}
    until("a node of another version ends", lambda: node.process.poll() is not None, REFUSED_BY_S)
    assert node.process.returncode in (VersionRefused.exit_code, EtcdError.exit_code), node.output()


# -- disks and clocks


@fault("the disk of checkpoints is full", for_s=(0.5, 4.0), weight=2, needs="disk")
def _full_disk(field: Field, _: int) -> Iterator[Said]:
    yield from _filled(field.checkpoints / "filler")


@fault("/dev/shm is full", for_s=(0.5, 4.0), weight=2, needs="shm")
def _full_shm(field: Field, _: int) -> Iterator[Said]:
    assert field.around.shm is not None
    yield from _filled(field.around.shm / "filler")


def _filled(filler: Path) -> Iterator[Said]:
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    try:
        yield {"planned": True}
    finally:
        filler.unlink()


@fault("the disk of checkpoints hangs", for_s=(0.5, 4.0), weight=2, needs="disk")
def _hanging_disk(field: Field, _: int) -> Iterator[Said]:
    """Who writes there waits, and cannot be killed meanwhile."""
    subprocess.run(["fsfreeze", "-f", str(field.checkpoints)], check=True)
    try:
        yield {"planned": True}
    finally:
        subprocess.run(["fsfreeze", "-u", str(field.checkpoints)], check=True)


@fault("checkpoints cannot be written", for_s=(0.5, 4.0), weight=2, needs="disk")
def _read_only(field: Field, _: int) -> Iterator[Said]:
    subprocess.run(["chattr", "+i", str(field.checkpoints)], check=True)
    try:
        yield {"planned": True}
    finally:
        subprocess.run(["chattr", "-i", str(field.checkpoints)], check=True)


@fault("the newest checkpoint is torn and all nodes are killed", weight=0.4)
def _torn(field: Field, _: int) -> Iterator[Said]:
    places = list(field.places)
    for place in places:
        send(place.everything(), signal.SIGKILL)
        field.remove(place)
    whole = sorted(field.checkpoints.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
    spoiled = -1
    if len(whole) > 1:  # a job does not begin again by itself where none is left
        spoiled = int(json.loads(whole[-1].read_text())["step"])
        shard = max(whole[-1].parent.glob("*.distcp"), key=lambda path: path.stat().st_size)
        os.truncate(shard, shard.stat().st_size // 2)
    yield {"spoiled": spoiled, "nodes": _names(places)}
    for place in places:
        field.add(place.name)


@fault("a clock jumps", for_s=(0.5, 5.0), needs="apart")
def _clock(field: Field, pick: int) -> Iterator[Said]:
    clock = field.any(pick).clock
    clock.write_text(str(pick % 7200 - 3600))
    yield {"planned": True}
    clock.write_text("0")


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
    for proxy in field.proxies:
        proxy.delay_s = 0.02 + (pick % 100) / 1000
    try:
        yield {"etcd": True}
    finally:
        for proxy in field.proxies:
            proxy.delay_s = 0.0


@fault("etcd hangs behind a proxy", for_s=(0.1, 2.5 * TTL_S))
def _proxies_hang(field: Field, _: int) -> Iterator[Said]:
    """What nodes say arrives, their leases among it; no answer does."""
    for proxy in field.proxies:
        proxy.mute()
    try:
        yield {"etcd": True}
    finally:
        for proxy in field.proxies:
            proxy.unmute()


# -- the way from one node to etcd


@fault("a node cannot reach etcd", for_s=(0.1, 2.5 * TTL_S), weight=2, needs="apart")
def _cut_off(field: Field, pick: int) -> Iterator[Said]:
    with field.any(pick).proxy.away():
        yield {"pauses": True}


@fault("a node hears nothing of etcd", for_s=(0.1, 2.5 * TTL_S), weight=2, needs="apart")
def _one_way(field: Field, pick: int) -> Iterator[Said]:
    proxy = field.any(pick).proxy
    proxy.mute()
    try:
        yield {"pauses": True}
    finally:
        proxy.unmute()


@fault("connections to etcd break", weight=3)
def _flap(field: Field, pick: int) -> Iterator[Said]:
    for proxy in field.proxies:
        if pick % 3:
            proxy.cut()
    yield {"planned": True}


# -- the ways between nodes


@fault("two nodes do not reach each other", for_s=(0.1, 2.5 * TTL_S), weight=2, needs="hosts")
def _partition(field: Field, pick: int) -> Iterator[Said]:
    a, b = _two(field, pick)
    with a.deaf_to(b), b.deaf_to(a):
        yield {"pauses": True}


@fault("a node does not hear another", for_s=(0.1, 2.5 * TTL_S), weight=2, needs="hosts")
def _deaf(field: Field, pick: int) -> Iterator[Said]:
    a, b = _two(field, pick)
    with a.deaf_to(b):
        yield {"pauses": True}


@fault("the way between two nodes comes and goes", weight=2, needs="hosts")
def _comes_and_goes(field: Field, pick: int) -> Iterator[Said]:
    a, b = _two(field, pick)
    yield {"pauses": True}
    for _ in range(5):
        with a.deaf_to(b), b.deaf_to(a):
            time.sleep(0.2)
        time.sleep(0.1)


@fault("a cable is cut", for_s=(0.1, 2.5 * TTL_S), weight=2, needs="hosts")
def _cut_cable(field: Field, pick: int) -> Iterator[Said]:
    host = field.any(pick).host
    assert host is not None
    host.cut()
    try:
        yield {"pauses": True}
    finally:
        host.mend()


def _two(field: Field, pick: int) -> tuple[Host, Host]:
    """Of one node alone, the other is a machine where nothing runs."""
    first = field.any(pick).host
    second = field.any(pick + 1).host
    assert first is not None and second is not None
    return first, second if second is not first else field.around.hosts[-1]
