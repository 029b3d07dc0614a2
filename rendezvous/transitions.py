"""What the coordinator does next: a pure function of what it knows and the clock.

The rules (the reason of each stands at its branch):

1. First round: at least min nodes, then as soon as max are there, or nobody has joined for the join window.
2. All members succeeded: the job has.
3. A member lost or drained: a new round without it at once (a short window makes one round of several losses), or after
   up to `replace_wait_s` for a replacement. Below min the job waits, for as long as it takes.
4. A worker failed: a new round, charged to the job once, unless a member turns out to be lost: then rule 3 alone.
   With an error that would only come again, the job has failed.
5. Workers hang: as if one had failed, once all nodes have said where theirs stand, or the hang window is over.
6. Joiners while training runs are gathered for the grow window, up to max; more than max wait as spares. By --grow they
   wait for the next checkpoint instead, or for a round that is formed for another reason.
7. A node that has failed or was lost too often (--quarantine) is kept out; its going is then rule 3.

Survivors keep their rank order and newcomers follow in the order of their arrival. Times are seconds on the
coordinator's own monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from spotrun.rendezvous.hangs import behind, explain
from spotrun.rendezvous.settings import STORM_S, STORM_WINDOW_S, Settings
from spotrun.rendezvous.state import Failure, Job, Member, Node, Outcome, Quarantine, Report, Round
from spotrun.wording import plural


@dataclass(frozen=True, slots=True)
class Live:
    """A node whose key exists, in the order of the keys' creation."""

    node: Node
    joined_s: float

    @property
    def member(self) -> Member:
        return Member(self.node.node_id, self.node.incarnation, self.node.nproc)


@dataclass(frozen=True, slots=True)
class View:
    """All that the coordinator knows."""

    job: Job
    live: tuple[Live, ...]
    round: Round | None = None
    reports: tuple[tuple[Report, float], ...] = ()  # with the time each was seen, in etcd's order
    draining: frozenset[str] = frozenset()  # node ids
    suspects: frozenset[str] = frozenset()  # node ids whose agent closed its connection, not confirmed either way
    saved_s: float | None = None  # when a checkpoint was last seen to be recorded
    lost_s: float | None = None  # when a member was last seen to go
    faults: Mapping[str, int] = field(default_factory=dict)  # those that still count, by node id
    quarantined: frozenset[str] = frozenset()  # node ids
    formed_for_loss_s: tuple[float, ...] = ()  # when this coordinator formed rounds for losses


@dataclass(frozen=True, slots=True)
class Form:
    """Write this round, and a fault of each node in `at_fault`."""

    round: Round
    at_fault: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bar:
    """Keep this node out from now on."""

    quarantine: Quarantine


@dataclass(frozen=True, slots=True)
class End:
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until `until_s`, or until something happens. `why` is for people; empty when all is well."""

    until_s: float | None = None
    why: str = ""


Decision: TypeAlias = Form | Bar | End | Wait


def decide(view: View, settings: Settings, now_s: float, coordinator: str) -> Decision:
    """The next step of the job; `coordinator` is the incarnation of the one that asks."""
    for live in view.live:
        node_id = live.node.node_id
        if _too_many(view.faults.get(node_id, 0), settings) and node_id not in view.quarantined:
            within = f"{view.faults[node_id]} failures within {settings.quarantine_within_s:g} s"
            return Bar(Quarantine(node_id, f"{within}, the last before round {view.round.number if view.round else 1}"))
    able = [live for live in view.live if live.node.node_id not in view.draining | view.quarantined]
    if view.round is None:
        return _start(view, able, settings, now_s, coordinator)
    current = view.round
    incarnations = {member.node_id: member.incarnation for member in current.members}
    reports = [
        (report, seen_s)
        for report, seen_s in view.reports
        if report.round == current.number and incarnations.get(report.node_id) == report.incarnation
    ]
    succeeded = {report.node_id for report, _ in reports if report.kind == "succeeded"}
    if all(member.node_id in succeeded for member in current.members):
        return End(Outcome("succeeded", "all workers finished", ""))

    here = {live.member for live in able}
    staying = [member for member in current.members if member in here]
    gone = [member for member in current.members if member not in here and member.node_id not in succeeded]
    members = frozenset(current.members)
    joiners = [live for live in able if live.member not in members]
    room = view.job.max_nodes - len(staying)
    if gone and not staying:
        return _start(view, able, settings, now_s, coordinator)  # nobody is left: as at the beginning
    if gone:
        return _replace(view, staying, gone, joiners[: max(room, 0)], settings, now_s, coordinator)

    failed = [(report, seen_s) for report, seen_s in reports if report.kind == "failed"]
    if failed:
        return _blame(view, staying, joiners[: max(room, 0)], failed, settings, now_s, coordinator)
    hung = [(report, seen_s) for report, seen_s in reports if report.kind == "hung"]
    if hung:
        return _unhang(view, staying, joiners[: max(room, 0)], hung, settings, now_s, coordinator)
    rejoining = [seen_s for report, seen_s in reports if report.kind == "rejoin"]
    if rejoining:
        until_s = rejoining[0] + (settings.silent_s if _suspected(view.round, view) else settings.loss_window_s)
        if now_s < until_s:
            return Wait(until_s)
        return _form(view, staying + _members(joiners[:room]), "rejoined", "a node asked for a new round", coordinator)
    # A job that is about to end does not start over for a newcomer.
    if joiners and room > 0 and not succeeded:
        return _grow(view, staying, joiners, room, settings, now_s, coordinator)
    return Wait()


def root_cause(reports: list[Report]) -> tuple[Failure, ...]:
    """The failures of all reports, in etcd's order: first what cannot be helped, last what tells of another rank's end.

    Only order within etcd is used: the wall clocks of two hosts are not comparable.
    """
    failures = [failure for report in reports for failure in report.failures]
    return tuple(sorted(failures, key=lambda failure: (not failure.final, failure.peer_loss)))


def _too_many(faults: int, settings: Settings) -> bool:
    return 0 < settings.quarantine_after <= faults


def _suspected(current: Round, view: View) -> bool:
    """Whether a member is perhaps on its way out: its lease tells within `silent_s`."""
    return any(member.node_id in view.suspects for member in current.members)


def _start(view: View, able: list[Live], settings: Settings, now_s: float, coordinator: str) -> Decision:
    need = view.job.min_nodes
    if view.live and all(live.node.node_id in view.draining for live in view.live):
        return Wait()  # they go, the one that asks as well: there is nobody who waits
    if len(able) < need:
        return Wait(why=f"waiting for nodes: {len(able)} of at least {need} are here")
    until_s = max(live.joined_s for live in able) + settings.join_window_s
    if len(able) < view.job.max_nodes and now_s < until_s:
        return Wait(until_s)
    members = _members(able[: view.job.max_nodes])
    return _form(view, members, "start", f"{plural(len(members), 'node')} here", coordinator)


def _replace(
    view: View,
    staying: list[Member],
    gone: list[Member],
    joiners: list[Live],
    settings: Settings,
    now_s: float,
    coordinator: str,
) -> Decision:
    assert view.round is not None
    drained = {member.node_id for member in gone} <= view.draining
    members = staying + _members(joiners)
    since_s = view.lost_s if view.lost_s is not None else float("-inf")
    storm = sum(1 for formed_s in view.formed_for_loss_s if now_s - formed_s < STORM_S)
    until_s = since_s + min(settings.loss_window_s * 2**storm, STORM_WINDOW_S)
    if now_s < until_s:
        return Wait(until_s)
    put_out = {member.node_id for member in gone} <= view.quarantined
    what = f"{_names(gone)} {'left' if drained else 'is kept out' if put_out else 'lost'}"
    if len(members) < view.job.min_nodes:
        return Wait(why=f"{what}; waiting for nodes: {len(members)} of at least {view.job.min_nodes} are here")
    until_s = since_s + settings.replace_wait_s
    if len(members) < len(view.round.members) and now_s < until_s:
        return Wait(until_s, why=f"{what}; waiting up to {until_s - now_s:.0f} s for a replacement")
    if drained:
        return _form(view, members, "drained", what, coordinator)
    lost = {member.node_id for member in gone} - view.draining - view.quarantined
    return _form(view, members, "lost", what, coordinator, at_fault=tuple(sorted(lost)))


def _grow(
    view: View,
    staying: list[Member],
    joiners: list[Live],
    room: int,
    settings: Settings,
    now_s: float,
    coordinator: str,
) -> Decision:
    if settings.grow == "now":
        until_s = max(live.joined_s for live in joiners) + settings.grow_window_s
        if now_s < until_s and len(joiners) < room:
            return Wait(until_s)
    else:
        saved_s = view.saved_s if view.saved_s is not None and settings.grow == "next-save" else float("-inf")
        joiners = [live for live in joiners if live.joined_s <= saved_s]
        if not joiners:
            return Wait()
    new = _members(joiners[:room])
    return _form(view, staying + new, "joined", f"{_names(new)} joined", coordinator)


def _blame(
    view: View,
    staying: list[Member],
    joiners: list[Live],
    failed: list[tuple[Report, float]],
    settings: Settings,
    now_s: float,
    coordinator: str,
) -> Decision:
    """A worker failed and no member is known to be lost. Is it its own fault?"""
    assert view.round is not None
    first_s = failed[0][1]
    causes = root_cause([report for report, _ in failed])
    if causes and causes[0].final:
        return _failed(causes, failed[0][0].node_id)
    # Where an agent has closed its connection, or all failures only tell of a peer that went away, a node is probably
    # on its way out: its lease tells within this time.
    peers_only = all(failure.peer_loss for failure in causes)
    suspected = _suspected(view.round, view)
    until_s = first_s + (settings.silent_s if peers_only or suspected else settings.blame_window_s)
    # Whoever has reported is alive: where all have, no loss can turn up any more.
    heard = {report.node_id for report, _ in failed}
    complete = not (peers_only or suspected) and all(member.node_id in heard for member in view.round.members)
    if now_s < until_s and not complete:
        return Wait(until_s)
    if view.round.restarts >= view.job.max_restarts:
        return _failed(causes, failed[0][0].node_id)
    culprit = next((report.node_id for report, _ in failed if causes and causes[0] in report.failures), None)
    at_fault = () if culprit is None or peers_only else (culprit,)
    members = _fit(view, staying + _members(joiners), at_fault, settings)
    return _form(view, members, "failed", _how_failed(causes), coordinator, charged=1, at_fault=at_fault)


def _fit(view: View, members: list[Member], at_fault: tuple[str, ...], settings: Settings) -> list[Member]:
    """Less those that will be kept out for this fault, unless the rest are too few to form a round."""
    unfit = [name for name in at_fault if _too_many(view.faults.get(name, 0) + 1, settings)]
    fit = [member for member in members if member.node_id not in unfit]
    return fit if len(fit) >= view.job.min_nodes else members


def _unhang(
    view: View,
    staying: list[Member],
    joiners: list[Live],
    hung: list[tuple[Report, float]],
    settings: Settings,
    now_s: float,
    coordinator: str,
) -> Decision:
    assert view.round is not None
    heard = {report.node_id for report, _ in hung}
    until_s = hung[0][1] + settings.hang_window_s
    if now_s < until_s and not all(member.node_id in heard for member in view.round.members):
        return Wait(until_s)
    stalls = sorted((stall for report, _ in hung for stall in report.stalls), key=lambda stall: stall.rank)
    why = explain(stalls)
    if view.round.restarts >= view.job.max_restarts:
        failures = tuple(Failure(it.rank, 1, why, it.address, peer_loss=False) for it in behind(stalls) or stalls)
        return End(Outcome("failed", why, hung[0][0].node_id, failures[:8]))
    late = behind(stalls)
    at_fault = tuple(sorted({report.node_id for report, _ in hung if any(stall in late for stall in report.stalls)}))
    members = _fit(view, staying + _members(joiners), at_fault, settings)
    return _form(view, members, "hung", why, coordinator, charged=1, at_fault=at_fault)


def _failed(causes: tuple[Failure, ...], node_id: str) -> End:
    return End(Outcome("failed", _how_failed(causes), node_id, causes[:8]))


def _how_failed(causes: tuple[Failure, ...]) -> str:
    cause = causes[0] if causes else Failure(-1, 1, "", "", False)
    return f"rank {cause.rank} failed on {cause.address} (exit code {cause.exit_code})"


def _form(
    view: View,
    members: list[Member],
    kind: str,
    reason: str,
    coordinator: str,
    *,
    charged: int = 0,
    at_fault: tuple[str, ...] = (),
) -> Decision:
    nodes = {live.node.node_id: live.node for live in view.live}
    host = nodes[members[0].node_id]
    last = view.round
    if last is not None and last.members[0] == members[0] and last.store_port == host.store_port:
        return Wait()  # its agent is about to announce a fresh store
    number = max([live.node.last_round for live in view.live] + [last.number if last else 0]) + 1
    restarts = max([live.node.restarts for live in view.live] + [last.restarts if last else 0]) + charged
    planned = last is not None and kind in Round.PLANNED
    unplanned = last.unplanned if planned and last is not None else number
    store = host.address, host.store_port
    return Form(Round(number, tuple(members), *store, kind, reason, restarts, coordinator, unplanned), at_fault)


def _members(live: list[Live]) -> list[Member]:
    return [item.member for item in live]


def _names(members: list[Member]) -> str:
    shown = ", ".join(member.node_id for member in members[:4])
    return shown if len(members) <= 4 else f"{shown} and {len(members) - 4} more"
