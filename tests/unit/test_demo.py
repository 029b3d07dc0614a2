"""The pure parts of the demo: what is due, what it cost, what is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from spotrun.demo import view
from spotrun.demo.plot import draw
from spotrun.demo.scenario import FIRST_NODES, REPLACEMENT, SCENARIO, Due, due
from spotrun.demo.scene import Process, Scene, scene
from spotrun.demo.timeline import Deed, Timeline, timeline

Events = dict[str, list[dict[str, Any]]]


def formed(number: int, cause: str, nodes: str, at_s: float, reason: str = "why") -> dict[str, Any]:
    names = [f"node-{letter}" for letter in nodes]
    return {
        "kind": "round_formed",
        "round": number,
        "cause": cause,
        "reason": reason,
        "nodes": names,
        "world_size": len(names),
        "mono_s": at_s,
    }


def heard(at_s: float, seconds_left: float, **fields: Any) -> dict[str, Any]:
    return {"kind": "notice", "source": "aws", "seconds_left": seconds_left, "mono_s": at_s, **fields}


def steps(number: int, world: int, first: int, last: int, start_s: float, step_s: float = 0.1) -> list[dict[str, Any]]:
    """Metrics lines `first` to `last`, the first at `start_s`."""
    return [
        {"step": i, "loss": 5.0 - i / 100, "world": world, "round": number, "mono_s": start_s + step_s * (i - first)}
        for i in range(first, last + 1)
    ]


def a_run() -> tuple[Events, list[dict[str, Any]], list[Deed]]:
    """Three nodes; a is killed at 113, b and c go on; d joins; c is drained."""
    rounds = [
        formed(1, "start", "abc", 108.0),
        formed(2, "lost", "bc", 113.1, "node-a lost"),
        formed(3, "joined", "bcd", 130.0, "node-d joined"),
        formed(4, "drained", "bd", 140.05, "node-c left"),
    ]
    events = {
        f"node-{letter}": [{**event} for event in rounds if f"node-{letter}" in event["nodes"]] for letter in "abcd"
    }
    for node, number, at_s in (("a", 1, 108.1), ("b", 1, 108.1), ("c", 1, 108.1), ("d", 3, 130.1)):
        events[f"node-{node}"].append({"kind": "workers_started", "round": number, "mono_s": at_s})
    events["node-c"] += [heard(139.5, 119.4, grade="WILL"), heard(139.6, 119.3)]  # by two parts of the agent
    metrics = [
        *steps(1, 3, 1, 24, 110.6),  # the last at 112.9
        *steps(2, 2, 21, 60, 118.0),  # 21 to 24 again; the last at 121.9
        *steps(3, 3, 61, 70, 135.0),  # the last at 135.9
        *steps(4, 2, 71, 90, 144.9),
    ]
    deeds = [Deed("kill", "node-a", 113.0), Deed("start", "node-d", 120.0), Deed("drain", "node-c", 138.0)]
    return events, metrics, deeds


def test_the_pause_is_from_the_last_step_before_to_the_first_after() -> None:
    now = timeline(*a_run())
    assert [incident.round.number for incident in now.incidents] == [2, 3, 4]
    assert [incident.pause_s for incident in now.incidents] == pytest.approx([5.1, 13.1, 9.0])
    assert [incident.recomputed for incident in now.incidents] == [4, 0, 0]
    assert now.recomputed == 4


def test_each_change_is_laid_to_the_deed_that_caused_it() -> None:
    now = timeline(*a_run())
    assert [incident.deed and (incident.deed.kind, incident.deed.node) for incident in now.incidents] == [
        ("kill", "node-a"),
        ("start", "node-d"),
        ("drain", "node-c"),
    ]
    assert [incident.noticed_s for incident in now.incidents] == pytest.approx([0.1, 10.0, 0.55]), (
        "a drain counts from the notice"
    )


def test_a_change_that_nobody_caused_has_no_deed() -> None:
    events, metrics, _ = a_run()
    now = timeline(events, metrics, [Deed("drain", "node-c", 140.0)])
    assert [incident.deed is None for incident in now.incidents] == [True, True, False]


def test_a_round_without_a_step_belongs_to_the_pause_of_the_next() -> None:
    events = {"node-b": [formed(1, "start", "ab", 1.0), formed(2, "lost", "b", 3.0), formed(3, "joined", "bc", 4.0)]}
    now = timeline(events, [*steps(1, 2, 1, 5, 2.0), *steps(3, 2, 6, 9, 8.0)], [Deed("kill", "node-a", 2.9)])
    (incident,) = now.incidents
    assert [item.number for item in incident.rounds] == [2, 3]
    assert incident.deed is not None
    assert incident.noticed_s == pytest.approx(0.1)


def test_a_round_is_told_once_and_by_the_first_that_entered_it() -> None:
    now = timeline({"node-b": [formed(1, "start", "ab", 2.0)], "node-a": [formed(1, "start", "ab", 1.0)]}, [])
    (only,) = now.rounds
    assert only.formed_s == 1.0


def test_only_what_means_a_nodes_end_is_a_notice_and_once() -> None:
    lines = [heard(1.0, 120.0, grade="MAY"), heard(2.0, 120.0, grade="WILL", withdrawn=True), heard(3.0, 60.0)]
    (only,) = timeline({"node-a": [*lines, heard(4.0, 59.0)]}, []).notices
    assert (only.node, only.source, only.seconds_left, only.mono_s) == ("node-a", "aws", 60.0, 3.0)


def world(number: int, nodes: str, made: int, size: int | None = None) -> Timeline:
    size = len(nodes) if size is None else size
    return timeline({"node-b": [formed(number, "start", nodes, 1.0)]}, steps(number, size, 1, made, 2.0))


def test_the_scenario_takes_rank_0_then_starts_a_node_then_drains_one() -> None:
    assert due(SCENARIO, 0, world(1, "abc", 20), 0.5) == Due("kill", "node-a")
    assert due(SCENARIO, 1, world(2, "bc", 20), 0.6) == Due("start", REPLACEMENT)
    assert due(SCENARIO, 2, world(3, "bcd", 20), 0.8) == Due("drain", "node-c")
    assert due(SCENARIO, 3, world(4, "bd", 20), 1.0) == Due("end", "")
    assert due(SCENARIO, 4, world(4, "bd", 20), 1.0) is None


def test_nothing_is_due_before_the_new_world_has_made_its_steps() -> None:
    assert due(SCENARIO, 0, world(1, "abc", 19), 0.9) is None
    assert due(SCENARIO, 0, world(1, "abc", 50), 0.1) is None, "nor before its share of time"
    assert due(SCENARIO, 0, world(1, "ab", 50), 0.9) is None, "nor in another world"
    assert due(SCENARIO, 0, Timeline(), 0.9) is None
    events = {"node-b": [formed(1, "start", "abc", 1.0), formed(2, "start", "abc", 9.0)]}
    assert due(SCENARIO, 0, timeline(events, steps(1, 3, 1, 50, 2.0)), 0.9) is None, "nor while a new one starts"


def the_scene(now_s: float, exits: dict[str, int] | None = None) -> Scene:
    """`a_run` as it looked at `now_s`."""
    events, metrics, deeds = a_run()
    events = {node: [event for event in lines if event["mono_s"] <= now_s] for node, lines in events.items()}
    deeds = [deed for deed in deeds if deed.mono_s <= now_s]
    started = [*FIRST_NODES, *(deed.node for deed in deeds if deed.kind == "start")]
    processes = [Process(node, (exits or {}).get(node)) for node in started]
    now = timeline(events, [line for line in metrics if line["mono_s"] <= now_s], deeds)
    return scene(now, events, processes, deeds, began_s=100.0, now_s=now_s, seconds=120.0)


def states(now: Scene) -> list[tuple[str, int | None]]:
    return [(row.state, row.rank) for row in now.nodes]


def test_a_node_is_shown_as_what_it_does() -> None:
    assert states(the_scene(101.0)) == [("getting ready", None)] * 3
    assert states(the_scene(109.0)) == [
        ("starting its worker", 0),
        ("starting its worker", 1),
        ("starting its worker", 2),
    ]
    assert states(the_scene(112.0)) == [("training", 0), ("training", 1), ("training", 2)]
    assert states(the_scene(113.05, {"node-a": -9})) == [("killed", None), ("training", 1), ("training", 2)]
    assert states(the_scene(121.0, {"node-a": -9})) == [
        ("killed", None),
        ("training", 0),
        ("training", 1),
        ("getting ready", None),
    ]
    assert states(the_scene(131.0, {"node-a": -9}))[1:] == [
        ("entering round 3", 0),
        ("entering round 3", 1),
        ("starting its worker", 2),
    ]
    assert states(the_scene(140.01))[2] == ("leaving", None)
    assert states(the_scene(146.0, {"node-c": 0})) == [
        ("killed", None),
        ("training", 0),
        ("left", None),
        ("training", 1),
    ]
    assert states(the_scene(112.0, {"node-b": 1}))[1] == ("exited with code 1", None)


def test_a_pause_is_shown_while_it_lasts() -> None:
    assert the_scene(109.0).stalled_s is None, "before the first step nothing pauses"
    assert the_scene(112.0).stalled_s is None
    assert the_scene(116.0).stalled_s == pytest.approx(3.1)
    assert the_scene(119.0).stalled_s is None


def test_what_happened_is_told_in_words_and_in_order() -> None:
    told = [view.plain(story) for story in the_scene(150.0).stories]
    assert told == [
        " 0:08  Round 1: node-a, node-b, node-c train together.",
        " 0:13  SIGKILL: node-a (rank 0) is gone without a word.",
        " 0:13  Round 2: node-a lost; node-b, node-c go on.",
        " 0:18  Training again at world size 2: paused 5.1 s, 4 steps done again.",
        " 0:20  A new machine: node-d starts and asks to join.",
        " 0:30  Round 3: node-d joined; node-b, node-c, node-d go on.",
        " 0:35  Training again at world size 3: paused 13.1 s, no step done again.",
        " 0:39  AWS: node-c (rank 1) will be reclaimed in 119 s.",
        " 0:40  Round 4: node-c left; node-b, node-d go on.",
        " 0:44  Training again at world size 2: paused 9.0 s, no step done again.",
    ]


def test_what_is_not_in_the_plan_is_told_too_and_once() -> None:
    failed = {"kind": "worker_failed", "round": 1, "rank": 1, "exit_code": 1, "mono_s": 5.0}
    ended = {"kind": "job_ended", "state": "failed", "reason": "rank 1 failed", "mono_s": 6.0}
    events: Events = {
        "node-a": [{**failed, "rank": 0, "peer_loss": True}, ended],
        "node-b": [{**failed, "peer_loss": False}, {"kind": "fenced", "mono_s": 5.5}, ended],
    }
    told = scene(timeline(events, []), events, [], [], began_s=0.0, now_s=9.0, seconds=60.0).stories
    assert [story.text for story in told] == [
        "Rank 1 on node-b failed with exit code 1.",
        "node-b lost its lease and joins anew.",
        "The job failed: rank 1 failed.",
    ]


def printed(now: Scene) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: SIM115
    console.print(view.live(now))
    console.file.close()
    return console.export_text()


def test_the_live_view_fits_80_columns_and_never_changes_its_height() -> None:
    views = [printed(the_scene(at_s)) for at_s in (100.0, 109.0, 112.0, 116.0, 121.0, 150.0)]
    assert {len(text.splitlines()) for text in views} == {22}
    assert all(len(line) <= 78 for text in views for line in text.splitlines())
    assert "paused for 3 s" in views[3]
    assert "round 4  world size 2  step 90  loss 4.10  100 ms a step" not in views[3]
    assert "round 4  world size 2  step 90  loss 4.10  100 ms a step" in views[5]
    assert "0:50 of 2:00" in views[5]


def test_the_sparkline_falls_with_the_loss() -> None:
    assert view.sparkline([]) == ""
    assert view.sparkline([1.0, 1.0]) == "▁▁"
    assert view.sparkline([8, 7, 6, 5, 4, 3, 2, 1]) == "█▇▆▅▄▃▂▁"
    assert len(view.sparkline(list(range(1000)), 58)) == 58


def test_the_summary_names_every_change_and_its_price(tmp_path: Path) -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: SIM115
    console.print(view.summary(timeline(*a_run()), 121.0, tmp_path, tmp_path / "loss.png"), soft_wrap=True)
    console.file.close()
    lines = console.export_text().splitlines()
    assert lines[2].split() == ["node-a", "killed", "0.10", "s", "5.1", "s", "4"]
    assert lines[3].split() == ["node-d", "joined", "13.1", "s", "0"]
    assert lines[4].split() == ["node-c", "reclaimed", "0.55", "s", "9.0", "s", "0"]
    assert lines[6] == "Loss 4.99 -> 4.10 in 90 steps (4 done again) and 4 worlds, 2:01 in all."


def test_the_picture_is_a_png_even_of_a_run_without_a_step(tmp_path: Path) -> None:
    for number, now in enumerate((Timeline(), timeline(*a_run()))):
        path = tmp_path / f"{number}.png"
        draw(now, 100.0, path)
        assert path.read_bytes().startswith(b"\x89PNG")
