"""The loop of a pool: it looks at etcd and at its provider, and does what `decide` says.

One pool of a job is active: the one whose key is there. Whatever it records is fenced by that key, so that a pool that
was cut off from etcd and has been replaced asks for nothing more.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import queue
import secrets
import socket
import time
from dataclasses import dataclass, replace

from spotrun import events
from spotrun.errors import EtcdError, EtcdUnavailable, LeaseLost, UsageError
from spotrun.launcher.ledger import Entry, append
from spotrun.pool.decide import Act, Ask, Machine, Settings, View, dearest, decide, retry_s
from spotrun.pool.provider import Provider, Refused
from spotrun.rendezvous.etcd import Compare, EtcdClient, KeyValue, Op
from spotrun.rendezvous.keys import Keys
from spotrun.rendezvous.session import Session
from spotrun.rendezvous.state import Drain, Outcome, Round, encode, readable

LEASE_TTL_S = 10.0
LOOK_S = 5.0  # the provider tells nothing by itself
AGAIN_S = 1.0  # while etcd is away
END_S = 30.0  # the nodes of a job that has ended get this long to do so, too
DRAIN_S = 120.0  # a node that is given back gets this long to leave


@dataclass(slots=True)
class _Known:
    """What this pool remembers of a machine."""

    since_s: float
    present_s: float  # when its node was last in the job, or since_s
    joined: bool = False


class _Deposed(Exception):
    """Another pool is the active one by now, or may be."""


class Pool:
    """Keeps `settings.want` nodes in the job until it has ended."""

    def __init__(self, client: EtcdClient, keys: Keys, settings: Settings, provider: Provider) -> None:
        self._client = client
        self._keys = keys
        self._settings = settings
        self._provider = provider
        # Of this job alone: what is listed with it and was recorded by nobody may be given back.
        self.prefix = f"pool-{hashlib.sha256(keys.run_id.encode()).hexdigest()[:8]}-"
        self._known: dict[str, _Known] = {}
        self._unknown: dict[str, float] = {}  # machines that the provider lists and nobody has recorded: since
        self._refusals: dict[str, int] = {}
        self._retry_at_s: dict[str, float] = {}
        self._given_back: set[str] = set()
        self._wakeups: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._revision = 0  # of our key

    def run(self) -> Outcome:
        """Return how the job ended, when all machines are given back. Raises EtcdRefused."""
        while True:
            with contextlib.suppress(_Deposed, EtcdUnavailable, LeaseLost):
                session = Session(self._client, LEASE_TTL_S, self._wake)
                try:
                    self._await_turn(session)
                    return self._serve(session)
                finally:
                    with contextlib.suppress(EtcdError):
                        session.close()
            self._sleep(AGAIN_S)

    def _wake(self, _: object = None) -> None:
        self._wakeups.put(None)

    def _sleep(self, within_s: float) -> None:
        """Until something has changed."""
        with contextlib.suppress(queue.Empty):
            self._wakeups.get(timeout=within_s)
            while True:
                self._wakeups.get_nowait()

    # -- who is active

    def _await_turn(self, session: Session) -> None:
        key, waits = self._keys.pool, False
        while not session.lost.is_set():
            mine = Op.put(key, f"{socket.gethostname()} (process {os.getpid()})", session.lease_id)
            result = self._client.txn([Compare.absent(key)], [mine], [Op.get(key)])
            if result.succeeded:
                self._revision = result.revision
                return
            other = result.responses[0][0]
            if other.lease == session.lease_id:  # an answer that got lost
                self._revision = other.create_revision
                return
            if not waits:
                where = other.value.decode(errors="replace")[:80]
                events.emit("pool_waits", f"the pool on {where} is active; this one takes over when it ends")
                waits = True
            watch = self._client.watch(
                key, start_revision=result.revision + 1, on_event=self._wake, on_error=self._wake
            )
            self._sleep(LEASE_TTL_S)
            watch.cancel()
        raise _Deposed

    def _serve(self, session: Session) -> Outcome:
        events.emit("pool_active", f"the pool keeps {self._settings.want} nodes in the job {self._keys.run_id}")
        # Should etcd end it, after a compaction, the looks that come anyway are enough.
        watch = self._client.watch(
            self._keys.root, prefix=True, start_revision=self._revision + 1, on_event=self._changed, on_error=self._wake
        )
        end_s = math.inf
        try:
            while not session.lost.is_set():
                found = self._read()
                if found.outcome is None:
                    self._note_joined(found)
                    for act in decide(self._view(found), self._settings):
                        self._do(act, found)
                else:
                    end_s = min(end_s, time.monotonic() + END_S)
                    if not found.nodes or time.monotonic() >= end_s:
                        self._release_all(found)
                        return found.outcome
                self._sleep(LOOK_S)
        finally:
            watch.cancel()
        raise _Deposed

    def _changed(self, event: object) -> None:
        """Progress and the ledger change all the time; nodes, rounds and the outcome matter here."""
        key = str(getattr(event, "key", ""))
        if key.startswith(self._keys.nodes) or key in (self._keys.round, self._keys.outcome):
            self._wake()

    # -- what it sees

    def _is_ours(self, name: str) -> bool:
        return name.startswith(self.prefix)

    def _read(self) -> _Found:
        keys = self._keys
        prefixes = [Op.get_prefix(prefix) for prefix in (keys.nodes, keys.drains, keys.asks)]
        result = self._client.txn([], [*prefixes, *(Op.get(key) for key in (keys.pool, keys.round, keys.outcome))])
        nodes, drains, asks, pool, current, outcome = result.responses
        if not pool or pool[0].create_revision != self._revision:
            raise _Deposed
        trains = next(iter(readable(Round, (kv.value for kv in current))), None)
        return _Found(
            nodes={Keys.name(kv.key): kv for kv in nodes},
            leaving=frozenset(Keys.name(kv.key) for kv in drains),
            asks={ask.name: ask for ask in readable(Ask, (kv.value for kv in asks)) if self._is_ours(ask.name)},
            trains=frozenset(member.node_id for member in trains.members) if trains is not None else frozenset(),
            outcome=next(iter(readable(Outcome, (kv.value for kv in outcome))), None),
        )

    def _view(self, found: _Found) -> View:
        now_s = time.monotonic()
        try:
            listed: frozenset[str] | None = self._provider.names(self.prefix)
        except Refused as error:
            events.emit("pool_blind", f"the provider does not say what there is: {error}", level=logging.WARNING)
            listed = None
        # A node that bears one of our names is ours, also after etcd has lost what was asked for.
        unpriced = dearest(self._settings)
        asks = {name: Ask(name, "", unpriced) for name in found.nodes if self._is_ours(name)} | found.asks
        if listed is not None:
            # What was given back may still be listed for a while, and is given back again then.
            self._unknown = {
                name: -math.inf if name in self._given_back else self._unknown.get(name, now_s)
                for name in listed - asks.keys()
            }
        self._known = {name: self._known.get(name) or _Known(now_s, now_s) for name in asks}
        machines = []
        for name, ask in asks.items():
            known = self._known[name]
            known.joined = known.joined or ask.joined
            if name in found.nodes:
                known.present_s, known.joined = now_s, True
                self._refusals.pop(ask.place, None)
            machines.append(
                Machine(
                    ask,
                    age_s=now_s - known.since_s,
                    absent_s=now_s - known.present_s,
                    joined=known.joined,
                    member=name in found.nodes,
                    leaving=name in found.leaving,
                    trains=name in found.trains,
                    listed=None if listed is None else name in listed,
                )
            )
        others = found.nodes.keys() - asks.keys()
        return View(
            tuple(machines),
            others=len(others - found.leaving),
            others_leaving=len(others & found.leaving),
            unknown={name: now_s - since_s for name, since_s in self._unknown.items()},
            wait_s={place: at_s - now_s for place, at_s in self._retry_at_s.items()},
        )

    # -- what it does

    def _note_joined(self, found: _Found) -> None:
        """For whoever is active next: what is gone by then need not be waited for, and its place is not to blame."""
        for name in found.asks.keys() & found.nodes.keys():
            if not found.asks[name].joined:
                self._record(Op.put(self._keys.ask(name), encode(replace(found.asks[name], joined=True))))

    def _do(self, act: Act, found: _Found) -> None:
        if act.kind == "ask":
            self._ask(act)
        elif act.kind == "drain":
            self._drain(act, found)
        else:
            self._release(act, found)

    def _ask(self, act: Act) -> None:
        assert act.place is not None
        place = act.place
        ask = Ask(self.prefix + secrets.token_hex(3), place.name, place.price or 0.0)
        self._record(Op.put(self._keys.ask(ask.name), encode(ask)))
        at = f" in {place.name}" if place.name else ""
        try:
            self._provider.ask(ask.name, place.name)
        except Refused as error:
            # It may have been carried out nonetheless: then it is listed, though nobody has asked for it.
            self._record(Op.delete(self._keys.ask(ask.name)))
            self._blame(place.name)
            self._wake()  # perhaps another place has one
            self._tell("pool_refused", ask.name, f"no machine{at}: {error}", level=logging.WARNING)
            return
        self._tell("pool_asked", ask.name, f"{ask.name} was asked for{at}")

    def _drain(self, act: Act, found: _Found) -> None:
        """Under the node's own lease: the word goes when the node does."""
        node = found.nodes[act.name]
        drain = Drain(act.name, DRAIN_S, "spotrun pool", act.why)
        alive = Compare.created(node.key, node.create_revision)
        word = Op.put(self._keys.drain(act.name), encode(drain), node.lease)
        if self._client.txn([self._active(), alive], [word]).succeeded:
            self._tell("pool_drained", act.name, f"{act.name} is told to leave: {act.why}")

    def _release(self, act: Act, found: _Found) -> None:
        self._record()  # what another pool has asked for is not ours to give back
        try:
            self._provider.release(act.name)
        except Refused as error:
            events.emit("pool_blind", f"{act.name} cannot be given back yet: {error}", level=logging.WARNING)
            return
        self._record(Op.delete(self._keys.ask(act.name)))
        if act.at_fault and act.name in found.asks:
            self._blame(found.asks[act.name].place)
        if act.name not in self._given_back:
            self._given_back.add(act.name)
            self._tell("pool_released", act.name, f"{act.name} is given back: {act.why}")

    def _release_all(self, found: _Found) -> None:
        """Nodes end by themselves when the job does; their machines may not."""
        names = set(found.asks)
        with contextlib.suppress(Refused):
            names |= self._provider.names(self.prefix)
        for name in sorted(names):
            self._release(Act("release", name, why="the job has ended"), found)

    def _blame(self, place: str) -> None:
        refusals = self._refusals[place] = self._refusals.get(place, 0) + 1
        self._retry_at_s[place] = time.monotonic() + retry_s(refusals)

    def _active(self) -> Compare:
        return Compare.created(self._keys.pool, self._revision)

    def _record(self, *ops: Op) -> None:
        if not self._client.txn([self._active()], ops).succeeded:
            raise _Deposed

    def _tell(self, kind: str, name: str, text: str, *, level: int = logging.INFO) -> None:
        events.emit(kind, text, level=level, node=name)
        append(self._client, self._keys, Entry(secrets.token_hex(8), kind, name, time.time(), message=text))


@dataclass(frozen=True, slots=True)
class _Found:
    nodes: dict[str, KeyValue]
    leaving: frozenset[str]
    asks: dict[str, Ask]
    trains: frozenset[str]
    outcome: Outcome | None


def check_not_ended(client: EtcdClient, keys: Keys) -> None:
    """Raises UsageError where there is nothing left to do."""
    kv = client.get(keys.outcome)
    for outcome in readable(Outcome, [kv.value] if kv is not None else []):
        raise UsageError(f"The job {keys.run_id!r} has already ended ({outcome.state}): give another --rdzv-id.")
