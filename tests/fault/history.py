"""What a job did while it was harmed, and a pure checker of what it promised.

The record is data alone: the steps in the order in which they were written, what each node told of rounds, the commits,
the faults, and how it all ended. Times are seconds on the one monotonic clock of the machine that runs the campaign.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

REL = 1e-9  # losses are float64: what reduction order alone can change


@dataclass(frozen=True, slots=True)
class Step:
    """One line of rank 0."""

    step: int
    round: int
    world: int
    loss: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Formed:
    """A round as one node heard of it."""

    round: int
    nodes: tuple[str, ...]
    cause: str
    restarts: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Commit:
    """A whole checkpoint was published."""

    step: int
    round: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Harm:
    """One fault, from when it was done until it was healed."""

    kind: str
    nodes: tuple[str, ...]  # those that it takes out of the job, or tells to go; empty where it takes none
    at_s: float
    healed_s: float
    charged: int = 0  # worker failures of its own that it makes
    planned: bool = False  # told in time: no step may be made again
    etcd: bool = False  # etcd is away meanwhile, and nothing can be decided
    spoiled: int = -1  # the step whose checkpoint it damages
    pauses: bool = False  # nodes stand still and come back: what they say afterwards may be late


@dataclass(frozen=True, slots=True)
class Seen:
    """The machines that there were from `at_s` on, by name."""

    at_s: float
    machines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fleet:
    """What pools did for a job, and what they were told to do."""

    want: int
    most: int
    max_price: float
    again_s: float  # by when as many as are wanted train again
    seen: tuple[Seen, ...]
    asked: Mapping[str, float]  # the price of each machine that a pool asked for, where that is known
    released: tuple[str, ...]  # machines that a pool gave back


@dataclass(frozen=True, slots=True)
class History:
    steps: tuple[Step, ...]
    formed: tuple[Formed, ...]
    commits: tuple[Commit, ...]
    harms: tuple[Harm, ...]
    exits: Mapping[str, int]  # of the nodes that were alive at the end
    audit: tuple[str, ...] = ()  # violations that the proof of exact data found
    left: tuple[str, ...] = ()  # what is still there when all is over
    snapshots_every: int | None = None  # steps that a loss may cost where a copy survives; None: not bounded
    fleet: Fleet | None = None  # None: no pool


@dataclass(frozen=True, slots=True)
class Violation:
    promise: str
    text: str


def violations(history: History, reference: Mapping[int, float], bound_s: float) -> list[Violation]:
    """What this history breaks. `reference` is the curve of one process; a loss is known within `bound_s`."""
    found = [Violation("exact data", text) for text in history.audit]
    found += [Violation("nothing left behind", text) for text in history.left]
    found += [
        Violation("the job ends", f"node {node} ended with {code}") for node, code in history.exits.items() if code
    ]
    found += _curve(history, reference)
    for check in (_one_world, _numbers, _commits, _restarts):
        found += check(history)
    for timed in (_continues, _detected):
        found += timed(history, bound_s)
    if history.fleet is not None:
        found += _machines(history.fleet)
        found += _as_many_as_wanted(history, history.fleet)
    return found


def detections(history: History) -> dict[int, float]:
    """By the index of a fault: how long until the next round was told of, if that is without its nodes.

    A node that is back under its own name before that is in it. A node that was in no round is missed by nobody, and
    of a round that none has survived nobody can tell.
    """
    told: dict[int, float] = {}
    rounds: dict[int, Formed] = {}
    for one in _in_time(history.formed):
        rounds.setdefault(one.round, one)
    for index, harm in enumerate(history.harms):
        if not harm.nodes or harm.etcd or harm.pauses or harm.planned:
            continue
        before = next((one for one in reversed(rounds.values()) if one.at_s <= harm.at_s), None)
        following = next((one for one in rounds.values() if one.at_s > harm.at_s), None)
        if before is None or following is None or set(harm.nodes) & set(following.nodes):
            continue
        if not set(harm.nodes) & set(before.nodes):
            continue
        # Who was told to go may do so much later.
        gone = (it for it in history.harms if it.at_s < following.at_s and (it.planned or it.at_s >= before.at_s))
        if set(before.nodes) - {name for it in gone for name in it.nodes}:
            told[index] = following.at_s - harm.at_s
    return told


def pauses(history: History) -> dict[int, float]:
    """By the index of a fault: the longest time between two steps of which the later one is in a newer round.

    It is taken for that of the newest fault before the later step.
    """
    longest: dict[int, float] = {}
    for a, b in itertools.pairwise(history.steps):
        done = sum(harm.at_s <= b.at_s for harm in history.harms)
        if b.round > a.round and done:
            longest[done - 1] = max(b.at_s - a.at_s, longest.get(done - 1, 0.0))
    return longest


def _in_time(formed: tuple[Formed, ...]) -> list[Formed]:
    return sorted(formed, key=lambda one: one.at_s)


def _curve(history: History, reference: Mapping[int, float]) -> Iterator[Violation]:
    for line in history.steps:
        expected = reference[line.step]
        if not math.isclose(line.loss, expected, rel_tol=REL, abs_tol=REL):
            text = f"step {line.step} in round {line.round}: loss {line.loss!r}, in one process {expected!r}"
            yield Violation("the same curve", text)


def _one_world(history: History) -> Iterator[Violation]:
    """No step of an older round after one of a newer. A rank 0 that stood still may finish its line when it wakes."""
    newest, world, late = 0, 0, dict[int, int]()
    stood_still = any(harm.pauses for harm in history.harms)
    for line in history.steps:
        if line.round < newest:
            late[line.round] = late.get(line.round, 0) + 1
            # Others take part in each further step of a larger world, and they are in the newer one.
            if not stood_still or (line.world > 1 and late[line.round] > 1):
                text = f"step {line.step} of round {line.round} was made after round {newest} had begun"
                yield Violation("one world", text)
        elif line.round > newest:
            newest, world = line.round, line.world
        elif line.world != world:
            yield Violation("one world", f"round {line.round} had worlds of {world} and of {line.world}")


def _numbers(history: History) -> Iterator[Violation]:
    """All nodes hear the same of a round, and each node hears of rising numbers."""
    heard: dict[int, Formed] = {}
    for one in history.formed:
        other = heard.setdefault(one.round, one)
        if (other.nodes, other.restarts, other.cause) != (one.nodes, one.restarts, one.cause):
            yield Violation("one world", f"round {one.round} is {other.nodes} to one node and {one.nodes} to another")


def _continues(history: History, bound_s: float) -> Iterator[Violation]:
    """Within a round step follows step, and a round never begins beyond what had been reached.

    A rank 0 that dies as it is about to write its line leaves one out that the others made.
    """
    reached, last = 0, None
    for line in history.steps:
        if last is not None and line.round < last.round:
            continue  # late
        if last is not None and line.round == last.round:
            if line.step != last.step + 1:
                yield Violation("no step lost", f"round {line.round} made step {line.step} after step {last.step}")
        elif line.step > reached + 1 + (last is not None and _unplanned(history, last, line, bound_s)):
            yield Violation("no step lost", f"round {line.round} began with step {line.step}, reached was {reached}")
        elif last is not None and line.step <= last.step:
            yield from _recomputed(history, last, line, bound_s)
        reached, last = max(reached, line.step), line


def _recomputed(history: History, last: Step, line: Step, bound_s: float) -> Iterator[Violation]:
    """Steps are made again only after something that nobody was told of in time."""
    again = last.step - line.step + 1
    if not _unplanned(history, last, line, bound_s):
        yield Violation("notices cost no step", f"{again} steps were made again from step {line.step} on")
    elif history.snapshots_every is not None and again > history.snapshots_every:
        text = f"{again} steps were made again from step {line.step} on, allowed are {history.snapshots_every}"
        yield Violation("bounded loss", text)


def _unplanned(history: History, last: Step, line: Step, bound_s: float) -> bool:
    """Whether something that nobody was told of in time may be why `line` does not follow `last`."""
    unplanned = (harm for harm in history.harms if not harm.planned)
    return any(harm.at_s <= line.at_s and harm.healed_s + bound_s >= last.at_s for harm in unplanned)


def _commits(history: History) -> Iterator[Violation]:
    """A round begins no earlier than after the newest checkpoint that was whole before it; commits never go back."""
    first: dict[int, Step] = {}
    for line in history.steps:
        first.setdefault(line.round, line)
    spoiled = {harm.spoiled for harm in history.harms}
    for commit in history.commits:
        if commit.step in spoiled:
            continue
        for line in first.values():
            if line.round > commit.round and commit.at_s < _formed_s(history, line) and line.step <= commit.step:
                text = f"round {line.round} began with step {line.step}, step {commit.step} was committed before"
                yield Violation("commits are kept", text)
            if line.round > commit.round and commit.at_s > line.at_s and commit.step >= line.step:
                text = f"round {commit.round} committed step {commit.step} after round {line.round} made {line.step}"
                yield Violation("fenced commits", text)


def _formed_s(history: History, line: Step) -> float:
    return min((one.at_s for one in history.formed if one.round == line.round), default=line.at_s)


def _restarts(history: History) -> Iterator[Violation]:
    allowed = sum(harm.charged for harm in history.harms)
    charged = max((one.restarts for one in history.formed), default=0)
    if charged > allowed:
        yield Violation("restarts are not charged", f"{charged} restarts are charged, {allowed} workers failed")


def _detected(history: History, bound_s: float) -> Iterator[Violation]:
    away = [(harm.at_s, harm.healed_s) for harm in history.harms if harm.etcd]
    for index, seconds in detections(history).items():
        harm = history.harms[index]
        end_s = harm.at_s + seconds
        meanwhile = sum(max(0.0, min(end_s, until_s) - max(harm.at_s, since_s)) for since_s, until_s in away)
        if seconds - meanwhile > bound_s:
            text = f"{harm.kind} of {', '.join(harm.nodes)}: known after {seconds:.1f} s, bound is {bound_s:.1f} s"
            yield Violation("bounded detection", text)


def _machines(fleet: Fleet) -> Iterator[Violation]:
    """Never too many or too dear, and none is given back that is somebody else's."""
    for one in fleet.seen:
        if len(one.machines) > fleet.most:
            yield Violation("no more machines than allowed", f"{len(one.machines)} at {one.at_s:.1f} s: {one.machines}")
        if (price := sum(fleet.asked.get(name, 0.0) for name in one.machines)) > fleet.max_price:
            yield Violation("within the budget", f"{price:g} an hour at {one.at_s:.1f} s: {one.machines}")
    for name in set(fleet.released) - set(fleet.asked):
        yield Violation("only its own machines", f"{name} was given back, and no pool had asked for it")


def _as_many_as_wanted(history: History, fleet: Fleet) -> Iterator[Violation]:
    """Where nothing more is done to it, all the nodes that are wanted soon train again."""
    ends = [harm.at_s for harm in history.harms[1:]] + [history.steps[-1].at_s if history.steps else 0.0]
    for harm, end_s in zip(history.harms, ends, strict=True):
        within_s = harm.healed_s + fleet.again_s
        if end_s > within_s and not any(
            line.world == fleet.want and harm.healed_s < line.at_s <= within_s for line in history.steps
        ):
            text = f"{fleet.want} nodes did not train within {fleet.again_s:g} s after: {harm.kind}"
            yield Violation("lost machines are replaced", text)
