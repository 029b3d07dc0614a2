"""The rules of the rounds, without etcd, processes or time."""

from __future__ import annotations

import dataclasses

from spotrun.rendezvous.settings import Settings
from spotrun.rendezvous.state import Failure, Job, Node, Report, Round, Stall
from spotrun.rendezvous.transitions import Bar, End, Form, Live, View, Wait, decide

SETTINGS = Settings(lease_ttl_s=4, join_window_s=2, grow_window_s=1, loss_window_s=0.05, blame_window_s=0.3)


def live(name: str, joined_s: float = 0.0, *, nproc: int = 1, port: int = 0, last_round: int = 0) -> Live:
    return Live(Node(name, f"{name}-1", "10.0.0.1", 1, port or 1000 + ord(name[0]), nproc, last_round), joined_s)


def job(low: int = 1, high: int = 4, restarts: int = 0) -> Job:
    return Job(low, high, restarts)


def a_round(*names: str, number: int = 3, restarts: int = 0) -> Round:
    members = tuple(live(name).member for name in names)
    return Round(number, members, "10.0.0.1", 9, "start", "", restarts, "x")


def report(name: str, kind: str, *failures: Failure, number: int = 3) -> Report:
    return Report(name, f"{name}-1", number, kind, failures)


def failure(rank: int, *, peer_loss: bool = False, final: bool = False) -> Failure:
    return Failure(rank, 1, "boom", "10.0.0.1", peer_loss, said=final, final=final)


def formed(view: View, now_s: float, settings: Settings = SETTINGS) -> Round:
    decision = decide(view, settings, now_s, "me")
    assert isinstance(decision, Form), decision
    return decision.round


def waits(view: View, now_s: float, settings: Settings = SETTINGS) -> Wait:
    decision = decide(view, settings, now_s, "me")
    assert isinstance(decision, Wait), decision
    return decision


def names(current: Round) -> list[str]:
    return [member.node_id for member in current.members]


def test_the_first_round_waits_for_min_nodes_without_a_limit() -> None:
    waiting = waits(View(job(2, 4), (live("a"),)), 1e9)
    assert waiting.until_s is None
    assert "1 of at least 2" in waiting.why


def test_the_first_round_is_formed_at_once_when_max_nodes_are_there() -> None:
    current = formed(View(job(1, 2), (live("a"), live("b"))), 0.0)
    assert (names(current), current.number) == (["a", "b"], 1)


def test_the_first_round_waits_for_a_quiet_join_window() -> None:
    view = View(job(1, 4), (live("a", 0.0), live("b", 1.5)))
    assert waits(view, 3.4).until_s == 3.5
    assert names(formed(view, 3.5)) == ["a", "b"]


def test_more_than_max_wait_as_spares() -> None:
    assert names(formed(View(job(1, 2), (live("a"), live("b"), live("c"))), 0.0)) == ["a", "b"]
    view = View(job(1, 2), (live("a"), live("b"), live("c")), a_round("a", "b"))
    assert waits(view, 100.0) == Wait()


def test_a_spare_takes_over_and_survivors_keep_their_order() -> None:
    view = View(job(1, 2), (live("c"), live("b"), live("d")), a_round("a", "b"), lost_s=10.0)
    current = formed(view, 10.05)
    assert (names(current), current.kind, current.restarts) == (["b", "c"], "lost", 0)


def test_losses_within_the_window_make_one_round() -> None:
    view = View(job(1, 4), (live("b"),), a_round("a", "b", "c"), lost_s=10.0)
    assert waits(view, 10.01).until_s == 10.05
    assert names(formed(view, 10.05)) == ["b"]


def test_a_storm_of_losses_widens_the_window_up_to_its_bound() -> None:
    view = View(job(1, 9), (live("b"),), a_round("a", "b"), lost_s=10.0, formed_for_loss_s=(9.0, 9.5, 9.9))
    assert waits(view, 10.0).until_s == 10.4
    often = dataclasses.replace(view, formed_for_loss_s=tuple(9.0 + i / 20 for i in range(16)))
    assert waits(often, 10.0).until_s == 12.0


def test_below_min_the_job_waits_and_says_for_what() -> None:
    view = View(job(2, 4), (live("b"),), a_round("a", "b"), lost_s=10.0)
    waiting = waits(view, 1e6)
    assert waiting.until_s is None
    assert "a lost" in waiting.why
    assert "1 of at least 2" in waiting.why


def test_on_loss_wait_holds_for_a_replacement_then_shrinks() -> None:
    settings = dataclasses.replace(SETTINGS, replace_wait_s=30.0)
    view = View(job(1, 4), (live("b"),), a_round("a", "b"), lost_s=10.0)
    assert waits(view, 20.0, settings).until_s == 40.0
    assert names(formed(view, 40.0, settings)) == ["b"]
    replaced = dataclasses.replace(view, live=(live("b"), live("c", 20.0)))
    assert names(formed(replaced, 20.0, settings)) == ["b", "c"]


def test_a_draining_node_is_left_out_at_once_though_it_lives() -> None:
    view = View(job(1, 4), (live("a"), live("b")), a_round("a", "b"), draining=frozenset({"a"}), lost_s=5.0)
    current = formed(view, 5.05)
    assert (names(current), current.kind) == (["b"], "drained")


def test_when_all_nodes_drain_the_job_waits_for_capacity() -> None:
    view = View(job(1, 4), (live("a"), live("b")), a_round("a", "b"), draining=frozenset("ab"), lost_s=5.0)
    assert waits(view, 99.0).until_s is None


def test_a_new_incarnation_of_a_member_is_a_newcomer() -> None:
    again = Live(dataclasses.replace(live("a").node, incarnation="a-2"), 10.0)
    view = View(job(1, 4), (live("b"), again), a_round("a", "b"), lost_s=10.0)
    assert [m.incarnation for m in formed(view, 10.05).members] == ["b-1", "a-2"]


def test_when_nobody_of_the_last_round_is_left_the_job_starts_as_at_first() -> None:
    view = View(job(2, 4), (live("x", 100.0), live("y", 100.0)), a_round("a", "b"), lost_s=10.0)
    assert waits(view, 101.0).until_s == 102.0
    assert formed(view, 102.0).number == 4


def test_joiners_are_gathered_before_a_running_job_grows() -> None:
    view = View(job(1, 4), (live("a"), live("b", 50.0)), a_round("a"))
    assert waits(view, 50.5).until_s == 51.0
    current = formed(view, 51.0)
    assert (names(current), current.kind) == (["a", "b"], "joined")


def test_joiners_that_fill_the_job_are_not_kept_waiting() -> None:
    view = View(job(1, 2), (live("a"), live("b", 50.0)), a_round("a"))
    assert names(formed(view, 50.0)) == ["a", "b"]


GROWING = View(job(1, 4), (live("a"), live("b", 50.0), live("c", 60.0)), a_round("a"))


def test_with_grow_next_save_newcomers_wait_for_a_checkpoint_after_their_coming() -> None:
    settings = dataclasses.replace(SETTINGS, grow="next-save")
    assert waits(GROWING, 1e6, settings) == Wait()
    assert waits(dataclasses.replace(GROWING, saved_s=49.0), 1e6, settings) == Wait(), (
        "it was recorded before they came"
    )
    current = formed(dataclasses.replace(GROWING, saved_s=55.0), 55.0, settings)
    assert (names(current), current.kind) == (["a", "b"], "joined")
    assert names(formed(dataclasses.replace(GROWING, saved_s=65.0), 65.0, settings)) == ["a", "b", "c"]


def test_with_grow_never_newcomers_come_in_with_a_round_that_is_formed_anyway() -> None:
    settings = dataclasses.replace(SETTINGS, grow="never")
    assert waits(dataclasses.replace(GROWING, saved_s=70.0), 1e6, settings) == Wait()
    lost = dataclasses.replace(GROWING, round=a_round("a", "x"), lost_s=70.0)
    assert names(formed(lost, 71.0, settings)) == ["a", "b", "c"]


def test_a_failed_worker_is_charged_once_after_the_blame_window() -> None:
    reports = ((report("b", "failed", failure(1)), 10.0), (report("a", "failed", failure(0, peer_loss=True)), 10.1))
    members = live("a"), live("b"), live("c")
    view = View(job(restarts=2), members, a_round("a", "b", "c", restarts=1), reports)
    assert waits(view, 10.2).until_s == 10.3
    current = formed(view, 10.3)
    assert (current.kind, current.restarts, names(current)) == ("failed", 2, ["a", "b", "c"])


def test_when_every_node_has_reported_the_failure_is_charged_at_once() -> None:
    reports = ((report("a", "failed", failure(0, peer_loss=True)), 10.0), (report("b", "failed", failure(1)), 10.01))
    view = View(job(restarts=1), (live("a"), live("b")), a_round("a", "b"), reports)
    assert formed(view, 10.02).restarts == 1


def test_the_job_fails_when_restarts_are_used_up_and_names_the_root_cause() -> None:
    reports = ((report("a", "failed", failure(0, peer_loss=True)), 10.0), (report("b", "failed", failure(1)), 10.1))
    decision = decide(View(job(), (live("a"), live("b")), a_round("a", "b"), reports), SETTINGS, 20.0, "me")
    assert isinstance(decision, End)
    assert decision.outcome.state == "failed"
    assert [item.rank for item in decision.outcome.failures] == [1, 0]


def test_a_worker_that_failed_because_its_peer_vanished_is_not_charged() -> None:
    reports = ((report("b", "failed", failure(1, peer_loss=True)), 10.0),)
    view = View(job(), (live("b"),), a_round("a", "b"), reports, lost_s=10.1)
    current = formed(view, 10.2)
    assert (current.kind, current.restarts) == ("lost", 0)


def test_failures_that_only_tell_of_a_peer_wait_for_the_lease_to_tell() -> None:
    reports = ((report("b", "failed", failure(1, peer_loss=True)), 10.0),)
    view = View(job(), (live("a"), live("b")), a_round("a", "b"), reports)
    assert waits(view, 12.0).until_s == 16.0
    assert isinstance(decide(view, SETTINGS, 16.0, "me"), End)


def test_a_suspected_node_postpones_the_verdict() -> None:
    reports = ((report("b", "failed", failure(1)), 10.0),)
    view = View(job(), (live("a"), live("b")), a_round("a", "b"), reports, suspects=frozenset("a"))
    assert waits(view, 11.0).until_s == 16.0


def test_reports_of_older_rounds_and_other_incarnations_do_not_count() -> None:
    old = report("b", "failed", failure(1), number=2)
    other = dataclasses.replace(report("a", "failed", failure(0)), incarnation="a-0")
    view = View(job(), (live("a"), live("b")), a_round("a", "b"), ((old, 10.0), (other, 10.0)))
    assert waits(view, 99.0) == Wait()


def test_the_job_succeeds_when_every_member_has_even_if_one_is_gone_since() -> None:
    reports = tuple((report(name, "succeeded"), 10.0) for name in "ab")
    decision = decide(View(job(), (live("a"),), a_round("a", "b"), reports), SETTINGS, 10.0, "me")
    assert isinstance(decision, End)
    assert decision.outcome.state == "succeeded"


def test_no_newcomer_starts_a_job_over_that_is_about_to_end() -> None:
    view = View(job(), (live("a"), live("b"), live("c", 1.0)), a_round("a", "b"), ((report("a", "succeeded"), 9.0),))
    assert waits(view, 99.0) == Wait()


def test_a_lost_node_that_had_finished_does_not_start_the_others_over() -> None:
    view = View(job(), (live("b"),), a_round("a", "b"), ((report("a", "succeeded"), 9.0),), lost_s=9.5)
    assert waits(view, 99.0) == Wait()


def test_a_round_is_never_given_a_store_that_was_used_before() -> None:
    used = dataclasses.replace(a_round("a", "b"), store_port=live("a").node.store_port)
    view = View(job(1, 4), (live("a"),), used, lost_s=1.0)
    assert waits(view, 99.0) == Wait()
    fresh = dataclasses.replace(view, live=(live("a", port=77),))
    assert formed(fresh, 99.0).store_port == 77


def test_round_numbers_go_on_rising_after_etcd_lost_its_data() -> None:
    assert formed(View(job(1, 1), (live("a", last_round=41),)), 0.0).number == 42


def test_restarts_that_were_charged_stay_charged_after_etcd_lost_its_data() -> None:
    seen = live("a")
    seen = dataclasses.replace(seen, node=dataclasses.replace(seen.node, restarts=2))
    assert formed(View(job(1, 2, restarts=3), (seen, live("b"))), 0.0).restarts == 2


def test_a_node_that_asks_for_a_new_round_gets_one_uncharged() -> None:
    view = View(job(), (live("a"), live("b")), a_round("a", "b"), ((report("b", "rejoin"), 10.0),))
    current = formed(view, 10.05)
    assert (current.kind, current.restarts) == ("rejoined", 0)


def test_a_node_that_asks_for_a_new_round_waits_for_the_lease_of_one_that_is_suspected() -> None:
    view = View(
        job(), (live("a"), live("b")), a_round("a", "b"), ((report("b", "rejoin"), 10.0),), suspects=frozenset("a")
    )
    assert waits(view, 11.0).until_s == 16.0


def hung(name: str, rank: int, *, waits: bool) -> Report:
    return dataclasses.replace(
        report(name, "hung"), stalls=(Stall(rank, 41, "train.py:9 in train", waits, "10.0.0.1"),)
    )


def test_a_hang_is_charged_once_all_have_said_where_they_stand() -> None:
    one, other = (hung("a", 0, waits=True), 10.0), (hung("b", 1, waits=False), 10.5)
    view = View(job(restarts=1), (live("a"), live("b")), a_round("a", "b"), (one,))
    assert waits(view, 10.5).until_s == 10.0 + SETTINGS.hang_window_s
    assert formed(view, 15.0).kind == "hung", "a node that says nothing is not waited for"
    current = formed(dataclasses.replace(view, reports=(one, other)), 10.5)
    assert (current.kind, current.restarts) == ("hung", 1)
    assert "the others wait for rank 1" in current.reason


def test_a_hang_without_restarts_left_ends_the_job_and_names_the_rank_that_is_behind() -> None:
    reports = ((hung("a", 0, waits=True), 10.0), (hung("b", 1, waits=False), 10.5))
    decision = decide(View(job(), (live("a"), live("b")), a_round("a", "b"), reports), SETTINGS, 10.5, "me")
    assert isinstance(decision, End)
    assert decision.outcome.state == "failed"
    assert [failure.rank for failure in decision.outcome.failures] == [1]


def test_a_hang_that_is_a_loss_is_not_charged() -> None:
    view = View(job(), (live("b"),), a_round("a", "b"), ((hung("b", 1, waits=True), 10.0),), lost_s=10.1)
    assert formed(view, 10.2).kind == "lost"


KEEPING_OUT = dataclasses.replace(SETTINGS, quarantine_after=3, quarantine_within_s=600.0)


def test_a_failure_is_the_fault_of_the_node_that_it_happened_on() -> None:
    reports = ((report("a", "failed", failure(0, peer_loss=True)), 10.0), (report("b", "failed", failure(1)), 10.1))
    view = View(job(restarts=9), (live("a"), live("b")), a_round("a", "b"), reports)
    decision = decide(view, KEEPING_OUT, 10.3, "me")
    assert isinstance(decision, Form)
    assert (decision.at_fault, names(decision.round)) == (("b",), ["a", "b"])


def test_a_node_that_fails_once_too_often_is_not_in_the_next_round_and_then_kept_out() -> None:
    view = View(
        job(restarts=9), (live("a"), live("b")), a_round("a", "b"), ((report("b", "failed", failure(1)), 10.0),),
        faults={"b": 2},
    )  # fmt: skip
    assert names(formed(view, 10.3, KEEPING_OUT)) == ["a"]
    assert formed(view, 10.3, KEEPING_OUT).restarts == 1, "it was a failure all the same"
    barred = decide(View(job(), (live("a"), live("b")), a_round("a"), faults={"b": 3}), KEEPING_OUT, 10.4, "me")
    assert isinstance(barred, Bar)
    assert barred.quarantine.node_id == "b"
    assert barred.quarantine.reason == "3 failures within 600 s, the last before round 3"


def test_nodes_that_all_leave_wait_for_nobody() -> None:
    view = View(job(1, 4), (live("a"), live("b")), a_round("a", "b"), draining=frozenset("ab"), lost_s=1.0)
    assert waits(view, 99.0) == Wait()
    late = dataclasses.replace(view, live=(*view.live, live("c")), job=job(2, 4))
    assert "1 of at least 2" in waits(late, 99.0).why, "c is told what it waits for"


def test_a_node_that_is_kept_out_is_not_waited_for_and_no_loss() -> None:
    view = View(job(2, 4), (live("a"),), a_round("a", "b"), faults={"b": 3}, quarantined=frozenset("b"), lost_s=1.0)
    assert waits(view, 99.0, KEEPING_OUT).why == "b is kept out; waiting for nodes: 1 of at least 2 are here"
    decision = decide(dataclasses.replace(view, job=job(1, 4)), KEEPING_OUT, 99.0, "me")
    assert isinstance(decision, Form)
    assert (decision.at_fault, decision.round.reason) == ((), "b is kept out")


def test_a_node_that_was_lost_too_often_is_kept_out_when_it_comes_back() -> None:
    lost = decide(View(job(), (live("a"),), a_round("a", "b"), lost_s=1.0), KEEPING_OUT, 99.0, "me")
    assert isinstance(lost, Form) and lost.at_fault == ("b",)
    back = View(job(), (live("a"), live("b", 99.0)), a_round("a"), faults={"b": 3})
    assert isinstance(decide(back, KEEPING_OUT, 99.0, "me"), Bar)
    assert isinstance(decide(back, SETTINGS, 99.0, "me"), Wait), "not unless that was asked for"


def test_ranks_follow_from_the_record_alone() -> None:
    current = formed(View(job(1, 3), (live("a", nproc=2), live("b", nproc=3), live("c"))), 0.0)
    assert [current.first_rank(i) for i in range(3)] == [0, 2, 5]
    assert current.world_size == 6


def test_an_error_that_would_only_come_again_ends_the_job_at_once() -> None:
    said = report("a", "failed", failure(0, peer_loss=True), failure(1, final=True))
    view = View(job(restarts=3), (live("a"), live("b")), a_round("a", "b"), reports=((said, 5.0),))
    decision = decide(view, SETTINGS, 5.0, "me")
    assert isinstance(decision, End) and decision.outcome.state == "failed"
    assert decision.outcome.failures[0].final, "it is the one that is told"
