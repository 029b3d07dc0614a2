"""What a pool asks for and gives back, by what it sees."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from spotrun.pool.decide import LAG_S, REJOIN_S, RETRY_MOST_S, Ask, Machine, Place, Settings, View, decide, retry_s

A, B = Place("a", 1.0), Place("b", 2.0)


def settings(want: int = 3, most: int = 4, max_price: float = math.inf) -> Settings:
    return Settings(want, most, (A, B), max_price, patience_s=600.0)


def machine(name: str, *, age_s: float = 100.0, place: Place = A, **seen: object) -> Machine:
    given = {"absent_s": age_s, "joined": False, "member": False, "listed": True, **seen}
    return Machine(Ask(name, place.name, place.price or 0.0), age_s, **given)  # type: ignore[arg-type]


def node(name: str, *, age_s: float = 100.0, trains: bool = True, leaving: bool = False) -> Machine:
    return machine(name, age_s=age_s, absent_s=0.0, joined=True, member=True, trains=trains, leaving=leaving)


def acts(view: View, given: Settings | None = None) -> list[tuple[str, str]]:
    found = decide(view, given or settings())
    return [(act.kind, act.place.name if act.place is not None else act.name) for act in found]


def test_what_is_missing_is_asked_for_and_what_is_to_come_counts() -> None:
    assert acts(View((), others=0)) == [("ask", "a")] * 3
    assert acts(View((machine("x"), node("y")), others=1)) == []
    assert acts(View((machine("x"),), others=1)) == [("ask", "a")]


def test_a_node_that_leaves_is_replaced_at_once_but_never_are_there_more_than_max() -> None:
    here = (node("x"), node("y"), node("z", leaving=True))
    assert acts(View(here, others=0)) == [("ask", "a")]
    assert acts(View((*here, node("w", leaving=True)), others=0)) == []
    assert acts(View(here, others=0, others_leaving=1)) == []


def test_a_machine_that_is_gone_is_forgotten_and_replaced_in_the_same_look() -> None:
    lost = machine("x", joined=True, listed=False)
    assert acts(View((lost, node("y"), node("z")), others=0)) == [("release", "x"), ("ask", "a")]


def test_a_list_that_lags_or_is_missing_loses_no_machine() -> None:
    young, unseen = machine("x", age_s=LAG_S - 1, listed=False), machine("y", listed=None)
    assert acts(View((young, unseen, node("z")), others=0)) == []


def test_a_node_that_lost_its_lease_gets_time_to_be_back() -> None:
    away = machine("x", joined=True, absent_s=REJOIN_S - 1)
    assert acts(View((away, node("y"), node("z")), others=0)) == []
    gone = machine("x", joined=True, absent_s=REJOIN_S + 1)
    assert acts(View((gone, node("y"), node("z")), others=0))[0] == ("release", "x")


def test_what_is_given_back_counts_against_max_for_as_long_as_it_is_listed() -> None:
    hung = machine("x", joined=True, absent_s=REJOIN_S + 1, place=B)
    here = (node("y"), node("z"))
    assert acts(View((hung, *here), others=0), settings(most=3)) == [("release", "x")]
    assert acts(View((hung, *here), others=0), settings(max_price=4.5)) == [("release", "x")]
    assert acts(View(here, others=0, unknown={"x": math.inf}), settings(most=3)) == [("release", "x")]
    assert acts(View(here, others=0), settings(most=3)) == [("ask", "a")]


def test_a_machine_that_does_not_come_is_given_up_and_its_place_is_left_alone() -> None:
    (released, *_) = decide(View((machine("x", age_s=601.0),), others=2), settings())
    assert (released.kind, released.name, released.at_fault) == ("release", "x", True)


@pytest.mark.parametrize(
    ("wait_s", "max_price", "asked"),
    [
        ({}, math.inf, ["a", "a", "a"]),
        ({"a": 3.0}, math.inf, ["b", "b", "b"]),
        ({"a": 0.0}, math.inf, ["a", "a", "a"]),
        ({"a": 1.0, "b": 1.0}, math.inf, []),
        ({}, 2.5, ["a", "a"]),
        ({"a": 1.0}, 5.0, ["b", "b"]),
    ],
)
def test_places_are_tried_in_order_within_the_budget(
    wait_s: Mapping[str, float], max_price: float, asked: list[str]
) -> None:
    found = acts(View((), others=0, wait_s=wait_s), settings(max_price=max_price))
    assert [place for _, place in found] == asked


def test_what_is_there_already_counts_against_the_budget() -> None:
    assert acts(View((node("x"), node("y")), others=0), settings(max_price=2.5)) == []


def test_of_too_many_the_newest_that_trains_least_is_given_back_and_only_its_own() -> None:
    pending, spare = machine("p", age_s=5.0), node("s", trains=False)
    old, new = node("o", age_s=900.0), node("n", age_s=50.0)
    view = View((old, spare, new, pending), others=2)
    assert acts(view, settings(want=5)) == [("release", "p")]
    assert acts(view, settings(want=4)) == [("release", "p"), ("drain", "s")]
    assert acts(view, settings(want=3)) == [("release", "p"), ("drain", "s"), ("drain", "n")]
    assert acts(View((), others=9), settings(want=3)) == [], "it gives back nothing that it did not ask for"


def test_what_nobody_has_recorded_is_given_back() -> None:
    assert acts(View((node("x"),), others=2, unknown={"y": REJOIN_S + 1})) == [("release", "y")]


def test_machines_that_etcd_has_forgotten_get_time_to_be_back_and_count_meanwhile() -> None:
    forgotten = {"x": 1.0, "y": 1.0}
    assert acts(View((), others=0, unknown=forgotten)) == [("ask", "a")]
    assert acts(View((), others=0, unknown=forgotten), settings(max_price=4.5)) == [], "each may be a dear one"
    assert acts(View((node("z"),), others=0, unknown=forgotten)) == []
    assert acts(View((node("z"),), others=2, unknown=forgotten)) == [], "nor is another given back for them"


def test_a_place_that_refuses_is_asked_less_and_less_often() -> None:
    waits = [retry_s(refusals) for refusals in range(1, 40)]
    assert waits == sorted(waits)
    assert waits[1] == 2 * waits[0]
    assert waits[-1] == RETRY_MOST_S
