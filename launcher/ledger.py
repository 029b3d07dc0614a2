"""The incident ledger: what happened to a job, in which phases, and what it cost.

One record type. Each agent appends its entries to a file of its own in --log-dir, and puts those that others should
see into etcd, under ledger/ in a ring of BOUND entries: the newest BOUND stay. What all nodes hear alike (a round, its
incident, the end) is put there by the node of rank 0 alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spotrun.errors import EtcdError
from spotrun.rendezvous.etcd import Compare, EtcdClient, KeyValue, Op
from spotrun.rendezvous.keys import Keys
from spotrun.rendezvous.state import encode, readable

logger = logging.getLogger("spotrun")

BOUND = 1000  # entries in etcd: a few hundred kilobytes, and days of a bad market
WAITING = 200  # entries that wait for etcd; older ones are then left out there
RETRY_S = 1.0
TEXT = 2000  # characters of a message; of a detail, a quarter
MOST_S = 1e11  # three thousand years: what is beyond is no time
FILES = "*.ledger.jsonl"


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of an incident, as the node that tells of it saw it, by its own clock."""

    name: str  # notice, agreed, saved, left, lost, round, started, restored, first step
    seconds: float  # since the phase before it ended


@dataclass(frozen=True, slots=True)
class Cost:
    """What an incident cost the job. None: not known, for scripts without the training API tell no steps."""

    paused_s: float  # without a step, beyond the one that was due
    steps_recomputed: int | None = None
    samples_recomputed: int | None = None
    node_s: float = 0.0  # time of nodes that was paid and came to nothing: the pause, and the steps made again
    money: float | None = None  # at --price-per-node-hour
    checkpoint_s: float = 0.0  # that snapshots and saves had taken of the round before; no part of the above


@dataclass(frozen=True, slots=True)
class Entry:
    """One event. `detail` holds what only events of its kind have."""

    id: str  # the node's incarnation and a number: an entry that was written twice is one
    what: str
    node: str
    wall_s: float  # by the node's clock, for people; never compared between nodes
    round: int = 0
    step: int = 0
    message: str = ""
    phases: tuple[Phase, ...] = ()
    cost: Cost | None = None
    detail: dict[str, str] = field(default_factory=dict)


BY_EACH = {
    *("notice", "notice_may", "notice_withdrawn", "signal", "left", "agent_dead", "quarantined"),
    *("worker_failed", "hung", "fenced", "stuck", "zygote_lost", "state_lost", "state_unknown"),
    *("node_placed", "state_kept", "state_held"),
}
ENDS = {"job_ended", "stopped"}
BY_FIRST = {"round_formed", "incident", "job_ended"}  # heard by all nodes, told by that of rank 0
_NUMBERS = ("data_share", "communication_share", "checkpoint_share", "checkpoint_s")  # in details
_OWN = {"v", "kind", "node", "wall_s", "mono_s", "round", "step", "message", "phases", "cost"}


def entry_of(event: Mapping[str, Any], id: str) -> Entry:
    """The entry of an event, as `spotrun.events` records it."""
    return Entry(
        id=id,
        what=str(event["kind"]),
        node=str(event.get("node", "")),
        wall_s=float(event["wall_s"]),
        round=int(event.get("round") or 0),
        step=int(event.get("step") or 0),
        message=str(event.get("message", ""))[:TEXT],
        phases=tuple(event.get("phases", ())),
        cost=event.get("cost"),
        detail={name: _text(value) for name, value in event.items() if name not in _OWN},
    )


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    return str(value)[: TEXT // 4]


class Ledger:
    """Hears the events of this process (`hear`, from any thread) and keeps them. `first`: this node has rank 0."""

    def __init__(self, client: EtcdClient, keys: Keys, incarnation: str, file: Path | None) -> None:
        self._client = client
        self._keys = keys
        self._incarnation = incarnation
        self._count = 0
        self._lock = threading.Lock()
        self._fd: int | None = None
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.first = False
        self._waiting: queue.Queue[Entry | None] = queue.Queue(WAITING)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write, name="spotrun-ledger", daemon=True)
        self._thread.start()

    def hear(self, event: Mapping[str, Any]) -> None:
        with self._lock:
            self._count += 1
            entry = entry_of(event, f"{self._incarnation}-{self._count}")
            if self._fd is not None:
                try:
                    os.write(self._fd, encode(entry) + b"\n")
                except OSError as error:  # a full disk must not stop the job
                    os.close(self._fd)
                    self._fd = None
                    logger.warning("the ledger's file is no longer written: %s", error)
        if entry.what in BY_EACH or (entry.what in BY_FIRST and self.first):
            with contextlib.suppress(queue.Full):
                self._waiting.put_nowait(entry)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits, unless etcd does not take it in time. No `hear` may follow."""
        self._closing.set()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join(timeout_s)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _write(self) -> None:
        while (entry := self._waiting.get()) is not None:
            while True:
                try:
                    append(self._client, self._keys, entry)
                    break
                except EtcdError as error:
                    logger.debug("the ledger waits for etcd: %s", error)
                    if self._closing.wait(RETRY_S):
                        return


def append(client: EtcdClient, keys: Keys, entry: Entry) -> None:
    """Put `entry` behind the newest one. Raises EtcdError; it may have been written then, and may be so again."""
    found = client.get(keys.ledger_count)
    while True:
        count, revision = (int(found.value), found.mod_revision) if found else (0, 0)
        result = client.txn(
            [Compare.modified(keys.ledger_count, revision)],
            [Op.put(keys.ledger_count, str(count + 1)), Op.put(keys.ledger_slot(count % BOUND), encode(entry))],
            [Op.get(keys.ledger_count)],
        )
        if result.succeeded:
            return
        found = next(iter(result.responses[0]), None)


def of_job(client: EtcdClient, keys: Keys) -> tuple[list[Entry], int]:
    """The entries in etcd, oldest first, and the revision to watch from (+ 1). Raises EtcdError."""
    found, revision = client.get_prefix(keys.ledger)
    return entries(sorted(found, key=lambda kv: kv.mod_revision)), revision


def checkpoint_s_by_round(told: Iterable[Entry]) -> dict[int, float]:
    """Seconds that snapshots and saves have taken of each round, as far as its own nodes told."""
    found: dict[int, float] = {}
    for it in told:
        with contextlib.suppress(KeyError, ValueError):
            found[it.round] = max(found.get(it.round, 0.0), float(it.detail["checkpoint_s"]))
    return found


def entries(found: Iterable[KeyValue]) -> list[Entry]:
    """What lies in these keys, each entry once; what is none is left out."""
    known: dict[str, Entry] = {}
    for entry in of_values(kv.value for kv in found):
        known.setdefault(entry.id, entry)
    return list(known.values())


def of_file(path: Path) -> list[Entry]:
    """The entries in one node's file; a last line that is still being written is left out."""
    return of_values(path.read_bytes().split(b"\n")[:-1])


def of_values(values: Iterable[bytes]) -> list[Entry]:
    """The entries among them, as anybody may have written them: those left out tell of no time, or of no number."""
    return [entry for entry in readable(Entry, values) if _makes_sense(entry)]


def _makes_sense(entry: Entry) -> bool:
    told = [entry.wall_s, *(phase.seconds for phase in entry.phases)]
    if entry.cost is not None:
        told += [entry.cost.paused_s, entry.cost.node_s, entry.cost.money or 0.0, entry.cost.checkpoint_s]
    with contextlib.suppress(ValueError):
        told += [float(text) for name in _NUMBERS if (text := entry.detail.get(name, "None")) != "None"]
        if (loss := entry.detail.get("loss", "None")) != "None":
            float(loss)  # of any value: training may have come to nan
        int(entry.detail.get("world_size", "0"))
        return all(abs(number) < MOST_S for number in told) and entry.wall_s >= 0
    return False


def file_of(log_dir: Path, run_id: str, node_id: str) -> Path:
    return log_dir / f"{run_id}-{node_id}.ledger.jsonl"
