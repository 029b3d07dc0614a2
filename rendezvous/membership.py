"""One node's part in the job: it joins, keeps its lease, stands in line to coordinate, and sees the rounds.

This is what the agent knows of the rendezvous: `standing()` is the present state as one frozen record, and `changed` is
called (on the reactor's thread) whenever there is a new one. A node watches the round, the outcome, the drains and the
node just before it in line: a join costs O(1) events, not O(n).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from spotrun import events
from spotrun.errors import BadRecord, EtcdError, EtcdUnavailable, LeaseLost, SpotrunError
from spotrun.rendezvous import admission
from spotrun.rendezvous.coordinator import Coordinator
from spotrun.rendezvous.etcd import Compare, EtcdClient, KeyValue, Op, Watch, WatchEvent
from spotrun.rendezvous.keys import Keys
from spotrun.rendezvous.liveness import Liveness, State, Target
from spotrun.rendezvous.reactor import Reactor
from spotrun.rendezvous.session import Session
from spotrun.rendezvous.settings import Settings
from spotrun.rendezvous.state import (
    Drain,
    Job,
    Node,
    Outcome,
    Progress,
    Quarantine,
    Report,
    Round,
    Vitals,
    decode,
    encode,
)

logger = logging.getLogger("spotrun")

NAME_RETRY_S = 0.2


@dataclass(frozen=True, slots=True)
class Standing:
    """Where this node stands."""

    node_id: str
    incarnation: str  # changes when the node joins anew after its lease was lost
    joined: bool = False
    round: Round | None = None
    outcome: Outcome | None = None
    drains: dict[str, Drain] = field(default_factory=dict)
    refused: SpotrunError | None = None  # it cannot join: the agent must end

    @property
    def group_rank(self) -> int | None:
        """This node's rank in the round, or None where it is not in it."""
        return None if self.round is None else self.round.index(self.node_id, self.incarnation)

    @property
    def waits(self) -> bool:
        """The others train without this node."""
        return self.joined and self.round is not None and self.group_rank is None and self.outcome is None


class Membership:
    """A node's membership; `step` and `handle` run on the reactor's thread, everything else on any."""

    def __init__(
        self,
        client: EtcdClient,
        run_id: str,
        job: Job,
        settings: Settings,
        node: Node,
        changed: Callable[[], None],
        *,
        reactor: Reactor,
        liveness: Liveness,
        fresh: bool = False,
    ) -> None:
        self.keys = Keys(run_id)
        self.client = client
        self._job = job
        self._job_value = encode(job)
        self._settings = settings
        self._node = node
        self._changed = changed
        self._reactor = reactor
        self._liveness = liveness
        self._fresh = fresh
        self._lock = threading.Lock()
        self._standing = Standing(node.node_id, node.incarnation)
        self._session: Session | None = None
        self._create_revision = 0
        self._last_round = 0
        self._restarts = 0
        self._watches: list[Watch] = []
        self._generation = 0
        self._predecessor: KeyValue | None = None
        self._predecessor_dead = False
        self._in_line = False
        self._predecessor_watch: Watch | None = None
        self._target: Target | None = None
        self._coordinator: Coordinator | None = None
        self._to_write: dict[str, bytes] = {}
        self._told: dict[str, bytes] = {}  # to be written under the node's lease
        self._drain: Drain | None = None  # this node's own
        self._written: tuple[Node, Drain | None] | None = None  # what lies in etcd under its lease
        self._name_taken_until_s: float | None = None
        self._started = False  # else whatever it is told would have it join
        self._left = threading.Event()
        self._leaving = False

    def start(self) -> None:
        """Begin to join; what comes of it is told through `standing`."""
        self._reactor.post(self, ("start", self._generation, None))

    def standing(self) -> Standing:
        with self._lock:
            return self._standing

    def report(self, report: Report) -> None:
        """Tell the coordinator about this node's workers; written as soon as etcd takes it."""
        self._reactor.post(self, ("report", self._generation, report))

    def progress(self, progress: Progress) -> None:
        """Tell how far this node's workers have come; only the newest word is written, under the node's lease."""
        self._reactor.post(self, ("tell", self._generation, (self.keys.progress_of(progress.node_id), progress)))

    def vitals(self, vitals: Vitals) -> None:
        """Tell how this machine is; the same holds."""
        self._reactor.post(self, ("tell", self._generation, (self.keys.vitals_of(vitals.node_id), vitals)))

    def announce(self, **changes: Any) -> None:
        """Change fields of this node's record: a fresh store port, say."""
        self._reactor.post(self, ("announce", self._generation, changes))

    def drain(self, drain: Drain | None) -> None:
        """Tell all nodes that this one is to leave, or (None) that it no longer is."""
        self._reactor.post(self, ("drain", self._generation, drain))

    def end(self, outcome: Outcome) -> bool:
        """End the job for all nodes, unless it has ended; whether this did it. Raises EtcdError."""
        return self.client.txn(
            [Compare.absent(self.keys.outcome)], [Op.put(self.keys.outcome, encode(outcome))]
        ).succeeded

    def leave(self, timeout_s: float = 2.0) -> None:
        """Go: the node's key is deleted at once and nothing more is heard. Idempotent."""
        self._leaving = True
        self._reactor.post(self, ("leave", self._generation, None))
        self._left.wait(timeout_s)

    # -- on the reactor's thread

    def handle(self, event: Any) -> None:
        what, generation, detail = event
        if what == "start":
            self._started = True
        elif what == "coordinator":
            if self._coordinator is not None:
                self._coordinator.handle(detail)
        elif what == "report":
            self._to_write[self.keys.report(detail.node_id)] = encode(detail)
        elif what == "tell":
            self._told[detail[0]] = encode(detail[1])
        elif what == "announce":
            self._node = dataclasses.replace(self._node, **detail)
        elif what == "drain":
            self._drain = detail
        elif what == "lost":
            if detail == self._node.incarnation:
                self._fenced()
        elif generation != self._generation:
            return
        elif what == "watch":
            self._on_watch(detail)
        elif what == "liveness":
            state, lease = detail
            if self._predecessor is not None and self._predecessor.lease == lease:
                self._predecessor_dead = state == "dead"
        elif what == "stale":
            self._forget()

    def step(self, now_s: float) -> float | None:
        if self._left.is_set():
            return None
        if self._leaving:
            self._go()
            return None
        if not self._started or self.standing().refused or self.standing().outcome:
            return None
        if not self.standing().joined:
            try:
                again_s = self._join(now_s)
            except EtcdUnavailable:
                self._name_taken_until_s = None  # leases do not run out while etcd is away
                raise
            except LeaseLost:
                self._drop_session()  # it ran out, or etcd lost its data, before the key was put: another one
                return now_s
            except SpotrunError as error:
                self._become(refused=error)
                return None
            if again_s is not None:
                return again_s
        if not self._watches:  # they were given up: read again what was missed
            found = self.client.txn([], self._all_that_concerns())
            self._look(found.responses, found.revision)
        if self._predecessor_dead and self._predecessor is not None:
            self._revoke(self._predecessor.lease)
            self._predecessor_dead = False  # only now: while etcd is away this step is tried again
            events.emit(
                "agent_dead", "the agent before this one in line is gone", target=Keys.name(self._predecessor.key)
            )
        if not self._in_line:
            self._stand_in_line(*self.client.predecessor(self.keys.nodes, self._create_revision))
        self._write_pending()
        return self._coordinator.step(now_s) if self._coordinator is not None else None

    def _become(self, **changes: Any) -> None:
        with self._lock:
            if all(getattr(self._standing, name) == value for name, value in changes.items()):
                return
            self._standing = dataclasses.replace(self._standing, **changes)
        self._changed()

    def broken(self, error: Exception) -> None:
        """Something here is wrong that nobody foresaw: the agent must hear of it rather than wait for ever."""
        self._become(refused=SpotrunError(f"The rendezvous of this node broke down: {type(error).__name__}: {error}"))

    def _write_pending(self) -> None:
        """Write what waits to be written, as long as this node's key exists as this incarnation made it."""
        assert self._session is not None
        key, lease = self.keys.node(self._node.node_id), self._session.lease_id
        ops = [Op.put(name, value) for name, value in self._to_write.items()]
        if self._written != (self._node, self._drain):
            ops.append(Op.put(key, encode(self._node), lease))
            if self._written is None or self._written[1] != self._drain:  # else it may be another's word
                mark = self.keys.drain(self._node.node_id)
                ops.append(Op.put(mark, encode(self._drain), lease) if self._drain else Op.delete(mark))
        ops += [Op.put(name, value, lease) for name, value in self._told.items()]
        if ops:
            self.client.txn([Compare.created(key, self._create_revision)], ops)
            self._written, self._to_write, self._told = (self._node, self._drain), {}, {}

    def _join(self, now_s: float) -> float | None:
        """Put this node's key; when to try again, or None once it is in."""
        if self._fresh and not self._sweep():
            return now_s + NAME_RETRY_S
        if self._session is None:
            incarnation = self._node.incarnation  # not the generation: the lease outlives watches that were given up
            self._session = Session(
                self.client,
                self._settings.lease_ttl_s,
                on_lost=lambda: self._reactor.post(self, ("lost", 0, incarnation)),
            )
        key, value, lease = self.keys.node(self._node.node_id), encode(self._node), self._session.lease_id
        result = self.client.txn(
            [
                Compare.absent(key),
                Compare.absent(self.keys.outcome),
                Compare.absent(self.keys.quarantined(self._node.node_id)),
                Compare.value(self.keys.job, self._job_value),
            ],
            [
                Op.get(self.keys.last),
                Op.put(key, value, lease),
                Op.put(self.keys.last, value, lease),
                *self._all_that_concerns(),
            ],
            [
                Op.get(self.keys.job),
                Op.get(key),
                Op.get(self.keys.outcome),
                Op.get(self.keys.quarantined(self._node.node_id)),
            ],
        )
        if result.succeeded:
            last, _, _, *rest = result.responses
            self._create_revision = result.revision
            before = self._last_joined(last)
        else:
            job, there, outcome, kept_out = result.responses
            if job:  # first: of another version, the rest could not be read either
                admission.job_of(self.keys.run_id, job[0].value)
            if outcome:
                raise admission.ended(self.keys.run_id, decode(Outcome, outcome[0].value))
            if kept_out:
                raise admission.kept_out(self.keys.run_id, decode(Quarantine, kept_out[0].value))
            if not job or job[0].value != self._job_value:
                self._agree(job[0] if job else None)
                return now_s
            if not there or decode(Node, there[0].value).incarnation != self._node.incarnation:
                return self._name_taken(now_s, there[0] if there else None)
            self._create_revision = there[0].create_revision  # an earlier try had been carried out
            result = self.client.txn([], self._all_that_concerns())
            rest, before = list(result.responses), None
        self._name_taken_until_s, self._written = None, (self._node, None)
        self._become(joined=True)
        self._look(rest, result.revision)
        if before is not None:
            self._stand_in_line(before, result.revision)
        return None

    def _sweep(self) -> bool:
        """--fresh: remove what an earlier job of this id left, unless nodes are in it; whether it is done."""
        nodes, _ = self.client.get_prefix(self.keys.nodes, keys_only=True)
        old = self.client.get(self.keys.job)
        if nodes or old is None:
            ended = self.client.get(self.keys.outcome)
            if nodes and ended is not None:
                return False  # the last nodes of the job that ended are about to leave
            self._fresh = False
            return True
        # Only one of several nodes that start together sweeps: the others find another job key.
        self._fresh = not self.client.txn(
            [Compare.modified(self.keys.job, old.mod_revision)], [Op.delete_prefix(self.keys.root)]
        ).succeeded
        return not self._fresh

    def _agree(self, found: KeyValue | None) -> None:
        """Write what all nodes must agree on, or see that this node does."""
        if found is None:
            self.client.txn([Compare.absent(self.keys.job)], [Op.put(self.keys.job, self._job_value)])
            return
        admission.check_agrees(self.keys.run_id, self._job, admission.job_of(self.keys.run_id, found.value))
        self._job_value = found.value

    def _name_taken(self, now_s: float, there: KeyValue | None) -> float:
        """Another incarnation holds the name: probably this node before a crash, whose lease runs out soon."""
        if self._name_taken_until_s is None:
            self._name_taken_until_s = now_s + 2 * self._settings.lease_ttl_s
        if there is not None and now_s >= self._name_taken_until_s:
            raise admission.name_taken(self.keys.run_id, self._node.node_id)
        return now_s + NAME_RETRY_S

    def _all_that_concerns(self) -> list[Op]:
        return [
            Op.get(self.keys.round),
            Op.get(self.keys.outcome),
            Op.get_prefix(self.keys.drains),
        ]

    def _look(self, found: Sequence[tuple[KeyValue, ...]], revision: int) -> None:
        """Take in what was read at `revision`, and watch it from there."""
        changes: dict[str, Any] = {"drains": {}}
        for kv in itertools.chain(*found):
            self._take(changes, kv.key, kv.value)
        for key, prefix in ((self.keys.round, False), (self.keys.outcome, False), (self.keys.drains, True)):
            self._watches.append(self._watch(key, revision + 1, prefix=prefix))
        self._become(**changes)

    def _watch(self, key: str, start_revision: int, *, prefix: bool = False) -> Watch:
        generation = self._generation
        return self.client.watch(
            key,
            prefix=prefix,
            start_revision=start_revision,
            on_event=lambda event: self._reactor.post(self, ("watch", generation, event)),
            on_error=lambda error: self._reactor.post(self, ("stale", generation, error)),
        )

    def _take(self, changes: dict[str, Any], key: str, value: bytes) -> None:
        try:
            if key == self.keys.round:
                changes["round"] = found = decode(Round, value)
                self._last_round = max(self._last_round, found.number)
                self._restarts = max(self._restarts, found.restarts)
            elif key == self.keys.outcome:
                changes["outcome"] = decode(Outcome, value)
            else:
                changes["drains"] = {**changes.get("drains", {}), Keys.name(key): decode(Drain, value)}
        except BadRecord as error:
            logger.warning("%s is left out: %s", key, error)

    def _on_watch(self, event: WatchEvent) -> None:
        if self._predecessor is not None and event.key == self._predecessor.key:
            if event.kind == "delete":
                self._in_line = False
            return
        changes: dict[str, Any] = {"drains": self.standing().drains}
        if event.kind == "put":
            self._take(changes, event.key, event.value)
        elif event.key.startswith(self.keys.drains):
            changes["drains"] = {k: v for k, v in changes["drains"].items() if k != Keys.name(event.key)}
        self._become(**changes)

    def _last_joined(self, found: Sequence[KeyValue]) -> KeyValue | None:
        """The node that joined last, by its record under `last`: alive, for both keys lie under its lease."""
        with contextlib.suppress(BadRecord):
            for last in found:
                return dataclasses.replace(last, key=self.keys.node(decode(Node, last.value).node_id))
        return None

    def _stand_in_line(self, before: KeyValue | None, revision: int) -> None:
        """Watch the node before this one, or coordinate where there is none."""
        self._let_go()
        self._in_line = True
        if before is None:
            logger.debug("this node coordinates")
            self._coordinator = Coordinator(
                self.client,
                self.keys,
                self._job,
                self._settings,
                self._node.node_id,
                self._node.incarnation,
                self._create_revision,
                self._liveness,
                lambda event: self._reactor.post(self, ("coordinator", 0, event)),
            )
            return
        self._predecessor = before
        self._predecessor_watch = self._watch(before.key, revision + 1)
        with contextlib.suppress(BadRecord):
            node = decode(Node, before.value)
            generation, lease = self._generation, before.lease

            def tell(state: State) -> None:
                self._reactor.post(self, ("liveness", generation, (state, lease)))

            self._target = self._liveness.watch(node.address, node.agent_port, tell)

    def _let_go(self) -> None:
        if self._target is not None:
            self._liveness.cancel(self._target)
        if self._predecessor_watch is not None:
            self._predecessor_watch.cancel()
            self._predecessor_watch = None
        if self._coordinator is not None:
            self._coordinator.close()
        self._predecessor = self._target = self._coordinator = None
        self._predecessor_dead = self._in_line = False

    def _forget(self) -> None:
        """Give up all watches: what they tell from now on is of an older generation."""
        self._generation += 1
        self._let_go()
        for watch in self._watches:
            watch.cancel()
        self._watches = []

    def _fenced(self) -> None:
        """The lease is gone: the others have gone on without this node, which comes back as a newcomer."""
        self._forget()
        self._drop_session()
        self._to_write, self._told = {}, {}  # but if this node was to leave, it still is
        incarnation = secrets.token_hex(4)
        self._node = dataclasses.replace(
            self._node, incarnation=incarnation, last_round=self._last_round, restarts=self._restarts
        )
        events.emit("fenced", "this node lost its lease: it joins anew", level=logging.WARNING)
        self._become(joined=False, incarnation=incarnation, round=None, drains={})

    def _drop_session(self) -> None:
        if self._session is not None:
            with contextlib.suppress(EtcdError):
                self._session.close()
            self._session = None

    def _revoke(self, lease: int) -> None:
        try:
            self.client.revoke(lease)
        except EtcdUnavailable:
            raise
        except EtcdError:
            pass  # already gone: the watch tells

    def _go(self) -> None:
        self._forget()
        if self._session is not None:
            try:
                self._session.close()
            except EtcdError as error:
                logger.warning("could not say goodbye, the lease will tell: %s", error)
            self._session = None
        self._left.set()
