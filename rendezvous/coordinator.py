"""The coordinator: the live node whose key is the oldest. It alone watches all nodes, and it alone forms rounds.

Every write is one Txn that also compares the create revision of its own node key and the revision of the round that
it read: a coordinator that was deposed without knowing cannot write. (The election recipe of etcd's
client/v3/concurrency; the fencing token is the create revision.)
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from spotrun import events
from spotrun.errors import BadRecord, EtcdError, EtcdUnavailable
from spotrun.rendezvous.etcd import Compare, EtcdClient, Op, Watch, WatchEvent
from spotrun.rendezvous.keys import Keys
from spotrun.rendezvous.liveness import Liveness, State, Target
from spotrun.rendezvous.settings import Settings
from spotrun.rendezvous.state import Drain, Job, Node, Quarantine, Report, Round, decode, encode
from spotrun.rendezvous.transitions import Bar, End, Form, Live, View, decide

logger = logging.getLogger("spotrun")

REMIND_S = 60.0  # how often it says for what the job is waiting


@dataclasses.dataclass(slots=True)
class _Known:
    """One node's key."""

    live: Live
    lease: int
    target: Target | None


class Coordinator:
    """Lives as long as its node is the first in line; `step` and `handle` run on the reactor's thread."""

    def __init__(
        self,
        client: EtcdClient,
        keys: Keys,
        job: Job,
        settings: Settings,
        node_id: str,
        incarnation: str,
        create_revision: int,
        liveness: Liveness,
        post: Callable[[Any], None],
    ) -> None:
        self._client = client
        self._keys = keys
        self._settings = settings
        self._node_id = node_id
        self._me = incarnation
        self._create_revision = create_revision
        self._liveness = liveness
        self._post = post
        self._job = job
        self._nodes: dict[str, _Known] = {}  # in the order of the keys' creation
        self._reports: dict[str, tuple[Report, float, int]] = {}
        self._draining: dict[str, Drain] = {}
        self._round: Round | None = None
        self._round_revision = 0
        self._ended = False
        self._withdrawn: set[str] = set()
        self._suspects: set[str] = set()
        self._dead: dict[str, str] = {}
        self._saved_s: float | None = None
        self._faults: dict[str, set[str]] = {}  # keys, by node
        self._quarantined: set[str] = set()
        self._lost_s: float | None = None
        self._formed_for_loss_s: tuple[float, ...] = ()
        self._why = ""
        self._said_s = 0.0
        self._watches: list[Watch] = []
        self._generation = object()  # of its watches: unlike any other, also of a coordinator before it in this process
        self._stale = True

    def close(self) -> None:
        self._generation = object()
        for watch in self._watches:
            watch.cancel()
        self._watches = []
        for known in self._nodes.values():
            if known.target is not None:
                self._liveness.cancel(known.target)
        self._nodes = {}

    def handle(self, event: Any) -> None:
        what, generation, detail = event
        if generation is not self._generation:
            return  # of a watch that has been given up
        if what == "watch":
            self._on_watch(detail)
        elif what == "liveness":
            self._on_liveness(*detail)
        else:
            self._stale = True

    def step(self, now_s: float) -> float | None:
        if self._stale:
            self._read()
        self._bury()
        self._put_out()
        self._take_back()
        if self._ended:
            return None
        view = View(
            self._job,
            tuple(known.live for known in self._nodes.values()),
            self._round,
            tuple((report, seen_s) for report, seen_s, _ in sorted(self._reports.values(), key=lambda item: item[2])),
            frozenset(self._draining),
            frozenset(self._suspects),
            self._saved_s,
            self._lost_s,
            {name: len(faults) for name, faults in self._faults.items()},
            frozenset(self._quarantined),
            self._formed_for_loss_s,
        )
        decision = decide(view, self._settings, now_s, self._me)
        if isinstance(decision, Form):
            self._write([*self._ops_of(decision)], decision.round)
            return now_s
        if isinstance(decision, Bar):
            self._bar(decision.quarantine)
            return now_s
        if isinstance(decision, End):
            outcome = dataclasses.replace(decision.outcome, node_id=decision.outcome.node_id or self._node_id)
            self._write([Op.put(self._keys.outcome, encode(outcome))], None)
            return now_s if self._stale else None
        self._say(decision.why, now_s)
        return min(
            (at_s for at_s in (decision.until_s, self._said_s + REMIND_S if decision.why else None) if at_s),
            default=None,
        )

    def _read(self) -> None:
        """Take in everything at one revision, and watch from there."""
        self.close()
        now_s = time.monotonic()
        found = self._client.txn(
            [],
            [
                Op.get_prefix(self._keys.nodes),
                Op.get_prefix(self._keys.reports),
                Op.get_prefix(self._keys.drains),
                Op.get_prefix(self._keys.faults),
                Op.get_prefix(self._keys.quarantine),
                Op.get(self._keys.round),
                Op.get(self._keys.outcome),
            ],
        )
        nodes, reports, drains, faults, quarantine, current, outcome = found.responses
        self._round, self._round_revision = None, 0
        self._reports, self._draining, self._suspects, self._dead = {}, {}, set(), {}
        self._withdrawn, self._faults, self._quarantined = set(), {}, set()
        self._ended = bool(outcome)
        self._stale = False
        self._lost_s = now_s  # whoever went while nobody was looking counts from now
        if self._ended:
            return
        in_line = sorted(nodes, key=lambda kv: kv.create_revision)
        for kv in (*current, *in_line, *reports, *drains, *faults, *quarantine):
            self._take(kv.key, kv.value, kv.mod_revision, kv.lease, now_s)
        generation = self._generation
        for key, prefix in (
            (self._keys.nodes, True),
            (self._keys.reports, True),
            (self._keys.drains, True),
            (self._keys.faults, True),
            (self._keys.quarantine, True),
            (self._keys.latest_checkpoint, False),
        ):
            self._watches.append(
                self._client.watch(
                    key,
                    prefix=prefix,
                    start_revision=found.revision + 1,
                    on_event=lambda event: self._post(("watch", generation, event)),
                    on_error=lambda error: self._post(("stale", generation, error)),
                )
            )

    def _on_watch(self, event: WatchEvent) -> None:
        now_s = time.monotonic()
        if event.kind == "put":
            self._take(event.key, event.value, event.mod_revision, event.lease, now_s)
            return
        name = Keys.name(event.key)
        if event.key.startswith(self._keys.nodes):
            known = self._nodes.pop(name, None)
            if known is not None:
                self._lost(name, known.live.node.incarnation, now_s)
                if known.target is not None:
                    self._liveness.cancel(known.target)
            self._suspects.discard(name)
            self._dead.pop(name, None)
            self._draining.pop(name, None)
        elif event.key.startswith(self._keys.reports):
            self._reports.pop(name, None)
        elif event.key.startswith(self._keys.drains) and name in self._draining:
            self._withdrawn.add(name)
        elif event.key.startswith(self._keys.faults):
            self._faults.get(self._keys.node_at_fault(event.key), set()).discard(event.key)
        elif event.key.startswith(self._keys.quarantine):
            self._quarantined.discard(name)

    def _take(self, key: str, value: bytes, modified: int, lease: int, now_s: float) -> None:
        name = Keys.name(key)
        try:
            if key == self._keys.latest_checkpoint:
                self._saved_s = now_s
            elif key.startswith(self._keys.faults):
                self._faults.setdefault(self._keys.node_at_fault(key), set()).add(key)
            elif key.startswith(self._keys.quarantine):
                self._quarantined.add(name)
            elif key == self._keys.round:
                self._round_revision = modified  # also of one that cannot be read: the next one is written over it
                self._round = decode(Round, value)
            elif key.startswith(self._keys.nodes):
                self._take_node(name, decode(Node, value), lease, now_s)
            elif key.startswith(self._keys.reports):
                self._reports[name] = (decode(Report, value), now_s, modified)
            elif key.startswith(self._keys.drains):
                self._draining[name] = decode(Drain, value)
                known = self._nodes.get(name)
                if known is not None:
                    self._lost(name, known.live.node.incarnation, now_s)
        except BadRecord as error:
            logger.warning("%s is left out: %s", key, error)

    def _take_node(self, name: str, node: Node, lease: int, now_s: float) -> None:
        if node.node_id != name:
            raise BadRecord(f"It is the record of {node.node_id}.")
        known = self._nodes.get(name)
        if known is not None and known.live.node.incarnation == node.incarnation:
            known.live = dataclasses.replace(known.live, node=node)
            return
        target = None
        if name != self._node_id:
            generation = self._generation

            def tell(state: State, incarnation: str = node.incarnation) -> None:
                self._post(("liveness", generation, (name, incarnation, state)))

            target = self._liveness.watch(node.address, node.agent_port, tell)
        self._nodes[name] = _Known(Live(node, now_s), lease, target)

    def _lost(self, name: str, incarnation: str, now_s: float) -> None:
        if self._round is not None and self._round.index(name, incarnation) is not None:
            self._lost_s = now_s

    def _on_liveness(self, name: str, incarnation: str, state: State) -> None:
        known = self._nodes.get(name)
        if known is None or known.live.node.incarnation != incarnation:
            return
        if state == "alive":
            self._suspects.discard(name)
        else:
            self._suspects.add(name)
            if state == "dead":
                self._dead[name] = incarnation

    def _bury(self) -> None:
        """Revoke the leases of agents that are known to be dead: their keys go now and not a TTL later."""
        for name in list(self._dead):
            known = self._nodes.get(name)
            if known is not None:
                events.emit("agent_dead", f"the agent of {name} is gone", target=name)
                self._revoke(known.lease)
            del self._dead[name]

    def _put_out(self) -> None:
        """Take the lease of nodes that are kept out: each hears of it, tries to join anew, and is refused."""
        for name in self._quarantined & self._nodes.keys():
            self._revoke(self._nodes[name].lease)

    def _revoke(self, lease: int) -> None:
        try:
            self._client.revoke(lease)
        except EtcdUnavailable:
            raise
        except EtcdError:
            pass  # already gone: the watch tells

    def _take_back(self) -> None:
        """Drains that were deleted: withdrawn, or gone with their node, of which another watch may tell later."""
        for name in list(self._withdrawn):
            there = self._client.txn([], [Op.get(self._keys.drain(name)), Op.get(self._keys.node(name))])
            drain, node = there.responses
            if node and not drain:
                self._draining.pop(name, None)
            self._withdrawn.discard(name)

    def _bar(self, quarantine: Quarantine) -> None:
        mine = Compare.created(self._keys.node(self._node_id), self._create_revision)
        op = Op.put(self._keys.quarantined(quarantine.node_id), encode(quarantine))
        if self._client.txn([mine], [op]).succeeded:
            self._quarantined.add(quarantine.node_id)
            text = f"{quarantine.node_id} is kept out: {quarantine.reason}; `spotrun readmit` lets it in again"
            events.emit("quarantined", text, level=logging.WARNING, target=quarantine.node_id, reason=quarantine.reason)
        else:
            self._stale = True

    def _ops_of(self, decision: Form) -> Iterator[Op]:
        yield Op.put(self._keys.round, encode(decision.round))
        yield Op.delete_prefix(self._keys.reports)
        if self._settings.quarantine_after:
            for name in decision.at_fault:
                lease = self._client.grant(math.ceil(self._settings.quarantine_within_s))
                yield Op.put(f"{self._keys.faults_of(name)}{decision.round.number}", decision.round.reason, lease)

    def _write(self, ops: Sequence[Op], formed: Round | None) -> None:
        compare = [
            Compare.created(self._keys.node(self._node_id), self._create_revision),
            Compare.modified(self._keys.round, self._round_revision),  # 0: there is none
            Compare.absent(self._keys.outcome),
        ]
        self._stale = True  # until the answer is known; an unanswered Txn may have been carried out
        result = self._client.txn(compare, ops)
        if not result.succeeded:
            return
        self._stale = False
        if formed is None:
            self._ended = True
            return
        now_s = time.monotonic()
        if formed.kind in ("lost", "drained"):
            self._formed_for_loss_s = (*self._formed_for_loss_s[-15:], now_s)
        self._round, self._round_revision = formed, result.revision
        self._reports = {}
        self._lost_s = None

    def _say(self, why: str, now_s: float) -> None:
        if why and (why != self._why or now_s >= self._said_s + REMIND_S):
            events.emit("waiting", why)
            self._said_s = now_s
        self._why = why
