"""What a pool does next: a pure function of what it sees.

Every machine that is asked for is recorded in etcd under a name before the provider hears of it, and its node has that
name. So whoever is the active pool later knows of all that may come, and none is asked for twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

LAG_S = 15.0  # by when a provider's list has what was asked for
# By when a node whose machine is there is back: it has lost its lease, or etcd its data. For as long, a machine that
# nobody has recorded is not given back: after etcd has lost its data, that is each of them.
REJOIN_S = 60.0
RETRY_FIRST_S, RETRY_MOST_S = 15.0, 300.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a machine can be had, as the provider calls it, in the order in which places are tried."""

    name: str
    price: float | None = None  # a machine an hour, in whatever money


@dataclass(frozen=True, slots=True)
class Ask:
    """One machine that was asked for, as it lies in etcd. Its node is called `name`."""

    name: str
    place: str
    price: float = 0.0
    joined: bool = False  # its node has been in the job


@dataclass(frozen=True, slots=True)
class Machine:
    """One of those, as the pool sees it now. Seconds are by the pool's own clock, since it first saw it."""

    ask: Ask
    age_s: float
    absent_s: float  # since its node was last in the job
    joined: bool  # its node has been in the job
    member: bool  # its node is in the job
    leaving: bool = False  # ... and about to leave it
    trains: bool = False  # ... and in the present round
    listed: bool | None = None  # by the provider, now; None: the provider gave no answer


@dataclass(frozen=True, slots=True)
class Settings:
    want: int
    most: int  # machines at any time, those that are leaving and those to come included
    places: tuple[Place, ...]
    max_price: float = math.inf  # of all machines together, an hour
    patience_s: float = 600.0  # until a machine that was asked for has to have joined


@dataclass(frozen=True, slots=True)
class View:
    machines: tuple[Machine, ...]
    others: int  # nodes of the job that the pool did not ask for, and that stay
    others_leaving: int = 0
    unknown: Mapping[str, float] = field(default_factory=dict)  # listed as the pool's, recorded by nobody: since (s)
    wait_s: Mapping[str, float] | None = None  # by place: seconds until it may be asked again


@dataclass(frozen=True, slots=True)
class Act:
    """`ask`: one machine of `place`. `drain`: tell the node to go. `release`: give the machine back, and forget it."""

    kind: Literal["ask", "drain", "release"]
    name: str = ""
    place: Place | None = None
    why: str = ""
    at_fault: bool = False  # the place of the machine is not to be asked again at once


Acts: TypeAlias = list[Act]


def decide(view: View, settings: Settings) -> Acts:
    """What to do now, in this order."""
    strays = sorted(name for name, since_s in view.unknown.items() if since_s > REJOIN_S)
    acts = [Act("release", name, why="nobody has asked for it") for name in strays]
    may_join = len(view.unknown) - len(strays)
    there, going = [], []  # what is given back is still there for as long as the provider lists it, or may list it
    for machine in view.machines:
        if released := _release(machine, settings):
            acts.append(released)
            going += [machine] if machine.listed is not False else []
        else:
            there.append(machine)
    staying = [machine for machine in there if not machine.leaving]
    surplus = len(staying) + view.others - settings.want
    if surplus > 0:
        return acts + _give_back(staying, surplus)
    room = settings.most - len(there) - len(going) - len(strays) - view.others - view.others_leaving
    spent = sum(machine.ask.price for machine in there + going) + len(view.unknown) * dearest(settings)
    return acts + list(_ask(min(-surplus, room) - may_join, spent, view.wait_s or {}, settings))


def _release(machine: Machine, settings: Settings) -> Act | None:
    """What of it is no longer worth waiting for."""
    name = machine.ask.name
    if machine.member:
        return None
    if machine.listed is False and (machine.joined or machine.age_s > LAG_S):
        why = "it is gone" if machine.joined else "it went before it had joined"
        return Act("release", name, why=why, at_fault=not machine.joined)
    if machine.joined and machine.absent_s > REJOIN_S:
        return Act("release", name, why=f"its node has been gone for {REJOIN_S:g} s")
    if not machine.joined and machine.age_s > settings.patience_s:
        return Act("release", name, why=f"it did not join within {settings.patience_s:g} s", at_fault=True)
    return None


def _give_back(staying: list[Machine], surplus: int) -> Acts:
    """First what has not come yet, then spares, then the newest; never what the pool did not ask for."""
    order = sorted(staying, key=lambda machine: (machine.member, machine.trains, machine.age_s, machine.ask.name))
    return [
        Act("drain" if machine.member else "release", machine.ask.name, why="more are here than wanted")
        for machine in order[:surplus]
    ]


def _ask(count: int, spent: float, wait_s: Mapping[str, float], settings: Settings) -> Iterator[Act]:
    for _ in range(count):
        place = next(
            (
                place
                for place in settings.places
                if wait_s.get(place.name, 0.0) <= 0 and spent + (place.price or 0.0) <= settings.max_price
            ),
            None,
        )
        if place is None:
            return
        spent += place.price or 0.0
        yield Act("ask", place=place)


def dearest(settings: Settings) -> float:
    """The price of a machine of which nobody knows where it is."""
    return max((place.price or 0.0 for place in settings.places), default=0.0)


def retry_s(refusals: int) -> float:
    """When a place may be asked again that has refused, or lost what it gave, so often in a row: twice as late each."""
    return float(min(RETRY_MOST_S, RETRY_FIRST_S * 2.0 ** min(refusals - 1, 30)))
