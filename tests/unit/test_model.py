"""A model check of the rounds: small clusters act, hear, crash and lose leases in every order that there is.

The rules are the real `decide`; the model around it is etcd with its guards, coordinators that decide by what they read
some time ago, and nodes that hear of rounds late. All waiting times are 0: whatever could have happened during one is
another order of the same actions. What is a state's future is looked at once, so the search is exhaustive within its
limits (nodes, crashes, lost leases, failed workers).
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from spotrun.rendezvous.settings import Settings
from spotrun.rendezvous.state import Failure, Job, Node, Outcome, Report, Round
from spotrun.rendezvous.transitions import End, Form, Live, View, decide

SETTINGS = Settings(0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Key:
    """A node's key."""

    node_id: str
    incarnation: str
    store_port: int
    last_round: int

    @property
    def node(self) -> Node:
        return Node(self.node_id, self.incarnation, self.node_id, 1, self.store_port, 1, self.last_round)


@dataclass(frozen=True, slots=True)
class Etcd:
    """What lies in etcd; nodes in the order of their keys' creation."""

    nodes: tuple[Key, ...] = ()
    round: Round | None = None
    reports: tuple[Report, ...] = ()
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Agent:
    """One machine. `read` is what it last read as a coordinator; `runs` is the round that its workers are in."""

    incarnation: str = ""  # empty: it is not up
    read: Etcd | None = None
    runs: int = 0
    last_round: int = 0
    store: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may go wrong on one way."""

    starts: int
    crashes: int = 0
    expiries: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class World:
    etcd: Etcd
    agents: tuple[Agent, ...]
    left: Limits
    committed: int = 0  # the newest round that a checkpoint was recorded of


@dataclass(frozen=True, slots=True)
class Model:
    job: Job
    names: str
    limits: Limits
    fenced: bool = True  # False: a broken coordinator, to see that the search finds what the guards are for

    def begin(self) -> World:
        return World(Etcd(), tuple(Agent() for _ in self.names), self.limits)

    def following(self, world: World) -> Iterator[World]:
        """All worlds that one action leads to."""
        yield from self._harmed(world)
        for index, agent in enumerate(world.agents):
            if not agent.incarnation:
                continue
            yield from self._as_coordinator(world, index, agent)
            yield from self._as_member(world, index, agent)

    def _harmed(self, world: World) -> Iterator[World]:
        etcd, left = world.etcd, world.left
        for index, agent in enumerate(world.agents):
            name = self.names[index]
            if not agent.incarnation and left.starts and not etcd.outcome and not _of(etcd, name):
                started = self.limits.starts - left.starts + 1
                up = replace(agent, incarnation=f"{name}{started}", store=agent.store + 1)
                yield _with(
                    replace(world, left=replace(left, starts=left.starts - 1)),
                    index,
                    up,
                    nodes=(*etcd.nodes, Key(name, up.incarnation, up.store, up.last_round)),
                )
            if agent.incarnation and left.crashes:
                yield _with(
                    replace(world, left=replace(left, crashes=left.crashes - 1)), index, Agent(store=agent.store)
                )
            key = _of(etcd, name)
            dead = key is not None and key.incarnation != agent.incarnation
            if key is not None and (dead or left.expiries):
                fewer = left if dead else replace(left, expiries=left.expiries - 1)
                yield _with(
                    replace(world, left=fewer), index, agent, nodes=tuple(node for node in etcd.nodes if node != key)
                )

    def _as_coordinator(self, world: World, index: int, agent: Agent) -> Iterator[World]:
        etcd, name = world.etcd, self.names[index]
        first = bool(etcd.nodes) and etcd.nodes[0].incarnation == agent.incarnation
        if first and agent.read != etcd:
            yield _with(world, index, replace(agent, read=etcd))
        if agent.read is None or agent.read.outcome:
            return
        decision = decide(_view(self.job, agent.read), SETTINGS, 1.0, agent.incarnation)
        mine = _of(etcd, name)
        held = mine is not None and mine.incarnation == agent.incarnation
        may = held and etcd.round == agent.read.round and etcd.outcome is None
        if isinstance(decision, Form | End) and (may or not self.fenced):
            if isinstance(decision, Form):
                check_formed(self.job, etcd, decision.round)
                yield _with(world, index, replace(agent, read=None), round=decision.round, reports=())
            else:
                check_end(etcd, decision.outcome)
                yield _with(world, index, replace(agent, read=None), outcome=decision.outcome)

    def _as_member(self, world: World, index: int, agent: Agent) -> Iterator[World]:
        etcd, current = world.etcd, world.etcd.round
        key = _of(etcd, self.names[index])
        if key is None or key.incarnation != agent.incarnation:  # it hears that its lease is gone, and is as if new
            yield _with(world, index, Agent(last_round=agent.last_round, store=agent.store))
            return
        if current is not None and agent.last_round < current.number:
            rank = current.index(key.node_id, key.incarnation)
            store = agent.store + (rank == 0)  # a store is used once
            heard = replace(agent, runs=0 if rank is None else current.number, last_round=current.number, store=store)
            told = replace(key, last_round=current.number, store_port=store)
            yield _with(world, index, heard, nodes=tuple(told if node == key else node for node in etcd.nodes))
        if agent.runs and current is not None and not _reported(etcd, key):
            if _all_run(world, self.names, agent.runs):
                done = Report(key.node_id, key.incarnation, agent.runs, "succeeded")
                yield _with(world, index, agent, reports=(*etcd.reports, done))
                # A checkpoint: only etcd's word makes it count.
                if current.unplanned <= agent.runs and world.committed != agent.runs:
                    check_commit(world, agent.runs)
                    yield replace(world, committed=agent.runs)
            if world.left.failures:
                failure = Failure(0, 1, "", "", peer_loss=False)
                failed = Report(key.node_id, key.incarnation, agent.runs, "failed", (failure,))
                left = replace(world.left, failures=world.left.failures - 1)
                yield _with(replace(world, left=left), index, agent, reports=(*etcd.reports, failed))

    def comes_to_rest(self, world: World, known: set[World]) -> None:
        """When nothing more goes wrong and all is heard. `known`: worlds of which that has been seen."""
        way = [replace(world, left=Limits(starts=len(self.names)), committed=0)]
        while way[-1] not in known:
            assert len(way) < 40, f"it never comes to rest: {way[-1]}"
            following = next(self._fair(way[-1]), None)
            if following is None:
                check_rests(self, way[-1])
                break
            way.append(following)
        known.update(way)

    def _fair(self, world: World) -> Iterator[World]:
        for index, agent in enumerate(world.agents):
            name = self.names[index]
            key = _of(world.etcd, name)
            if key is not None and key.incarnation != agent.incarnation:
                yield _with(world, index, agent, nodes=tuple(node for node in world.etcd.nodes if node != key))
        for index, agent in enumerate(world.agents):
            if not agent.incarnation:
                continue
            for following in self._as_member(world, index, agent):
                if len(following.etcd.reports) == len(world.etcd.reports) and following.committed == world.committed:
                    yield following
        for index, agent in enumerate(world.agents):
            if agent.incarnation:
                yield from self._as_coordinator(world, index, agent)


def _view(job: Job, read: Etcd) -> View:
    live = tuple(Live(key.node, 0.0) for key in read.nodes)
    return View(job, live, read.round, tuple((report, 0.0) for report in read.reports))


def _of(etcd: Etcd, name: str) -> Key | None:
    return next((node for node in etcd.nodes if node.node_id == name), None)


def _reported(etcd: Etcd, key: Key) -> bool:
    return any(report.incarnation == key.incarnation for report in etcd.reports)


def _with(world: World, index: int, agent: Agent, **changes: object) -> World:
    agents = (*world.agents[:index], agent, *world.agents[index + 1 :])
    return replace(world, agents=agents, etcd=dataclasses.replace(world.etcd, **changes))  # type: ignore[arg-type]


def _all_run(world: World, names: str, number: int) -> bool:
    """Whether that round can make a step: its collectives need every member."""
    current = world.etcd.round
    if current is None or current.number != number:
        return False  # its members were recorded nowhere else; an older round's are looked at in `check_formed`
    running = {(names[i], agent.incarnation) for i, agent in enumerate(world.agents) if agent.runs == number}
    return all((member.node_id, member.incarnation) in running for member in current.members)


def check_formed(job: Job, etcd: Etcd, formed: Round) -> None:
    last = etcd.round
    members = [(member.node_id, member.incarnation) for member in formed.members]
    assert len({name for name, _ in members}) == len(members), f"a node is in {formed} twice"
    assert job.min_nodes <= len(members) <= job.max_nodes, formed
    if last is None:
        return
    assert formed.number > last.number, f"{formed} after {last}"
    assert (formed.store_address, formed.store_port) != (last.store_address, last.store_port), "a store is used twice"
    failed = any(report.kind == "failed" and report.round == last.number for report in etcd.reports)
    assert formed.restarts == last.restarts or (failed and formed.restarts == last.restarts + 1), formed
    before = [(member.node_id, member.incarnation) for member in last.members]
    stayed = [member for member in before if member in members]
    assert members[: len(stayed)] == stayed, f"survivors do not keep their order: {formed} after {last}"


def check_end(etcd: Etcd, outcome: Outcome) -> None:
    assert etcd.round is not None
    of_round = [report for report in etcd.reports if report.round == etcd.round.number]
    if outcome.state == "succeeded":
        done = {(report.node_id, report.incarnation) for report in of_round if report.kind == "succeeded"}
        assert {(member.node_id, member.incarnation) for member in etcd.round.members} <= done, outcome
    else:
        assert any(report.kind == "failed" for report in of_round), outcome


def check_commit(world: World, number: int) -> None:
    assert number >= world.committed, f"round {number} commits after round {world.committed} has"


def explore(model: Model) -> int:
    """Go through all worlds; how many there are. Raises AssertionError at the first that breaks a rule."""
    begin = model.begin()
    seen, waiting, resting = {begin}, deque([begin]), set[World]()
    while waiting:
        world = waiting.popleft()
        model.comes_to_rest(world, resting)
        for following in model.following(world):
            if following not in seen:
                seen.add(following)
                waiting.append(following)
    return len(seen)


def check_rests(model: Model, world: World) -> None:
    """At rest either the job has ended, or everyone who is up is in the round, or they are too few, or spares."""
    etcd = world.etcd
    if etcd.outcome is not None or len(etcd.nodes) < model.job.min_nodes:
        return
    assert etcd.round is not None, world
    here = {node.incarnation for node in etcd.nodes}
    members = {member.incarnation for member in etcd.round.members}
    # Who has succeeded may leave: then the round is not formed again for others.
    succeeded = {report.incarnation for report in etcd.reports if report.kind == "succeeded"}
    assert members <= here | succeeded, f"a round with nodes that are gone stays: {world}"
    if not succeeded:
        assert len(members) == min(len(here), model.job.max_nodes), f"nodes wait for nothing: {world}"


@pytest.mark.parametrize(
    "model",
    [
        Model(Job(1, 2, 1), "ab", Limits(starts=2, failures=1)),
        Model(Job(1, 2, 1), "ab", Limits(starts=3, crashes=1)),
        Model(Job(1, 2, 1), "ab", Limits(starts=3, expiries=1)),
        Model(Job(1, 1, 1), "ab", Limits(starts=3, crashes=1, failures=1)),
        Model(Job(2, 2, 1), "abc", Limits(starts=3, crashes=1)),
    ],
    ids=["a-worker-fails", "a-node-dies", "a-lease-is-lost", "a-spare-takes-over", "of-three-one-dies"],
)
def test_no_order_of_events_breaks_the_rules_of_the_rounds(model: Model) -> None:
    assert explore(model) > 1000


def test_the_search_finds_what_an_unguarded_coordinator_breaks() -> None:
    with pytest.raises(AssertionError):
        explore(Model(Job(1, 2, 1), "ab", Limits(starts=3, crashes=1, expiries=1), fenced=False))
