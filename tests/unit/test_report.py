"""What a report says of a ledger."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spotrun.cli.report import report
from spotrun.launcher.ledger import Cost, Entry, Phase
from spotrun.rendezvous.state import encode
from spotrun.report.history import History, of
from spotrun.report.page import Prices, page
from spotrun.report.places import Place, places

BEGAN_S = 1_700_000_000.0


def formed(number: int, at_s: float, nodes: str, by: str = "a") -> Entry:
    detail = {"nodes": nodes, "world_size": str(2 * len(nodes.split(","))), "cause": "lost", "reason": "c lost"}
    return Entry(f"{by}-r{number}", "round_formed", by, BEGAN_S + at_s, round=number, detail=detail)


def incident(number: int, at_s: float, nodes: str, paused_s: float, node_s: float, by: str = "a") -> Entry:
    detail = {"nodes": nodes, "cause": "lost", "reason": "c lost <at once>"}
    cost = Cost(paused_s, 5, 40, node_s, 0.01, 0.0 if number == 1 else 7.0)
    phases = (Phase("lost", 0.0), Phase("round", 1.0), Phase("first step", paused_s - 1.0))
    return Entry(f"{by}-i{number}", "incident", by, BEGAN_S + at_s, number, 100, "", phases, cost, detail)


# Three nodes from 0 to 100 s, first step at 10; c is lost at 99, round 2 at 100, first step at 104; all ends at 200.
LEDGER = [
    formed(1, 0, "a,b,c"),
    formed(1, 0.2, "a,b,c", by="b"),  # each node's file tells it
    incident(1, 10, "a,b,c", 10.0, 30.0),
    formed(2, 100, "a,b"),
    formed(2, 100.1, "a,b", by="b"),
    incident(2, 104.3, "a,b", 5.0, 15.0, by="b"),
    incident(2, 104, "a,b", 5.0, 16.0),
    *(
        Entry(
            f"a-p{i}", "progress", "a", BEGAN_S + 20 * i, 1, 10 * i, detail={"loss": str(4.0 / i), "data_share": "0.25"}
        )
        for i in range(1, 10)
    ),
    Entry(
        "a-e",
        "job_ended",
        "a",
        BEGAN_S + 200,
        2,
        message="the job succeeded: all workers finished",
        detail={"checkpoint_s": "4.0"},
    ),
]


@pytest.fixture
def history() -> History:
    return of(reversed(LEDGER))


def test_rounds_are_told_once_and_in_order_whoever_tells(history: History) -> None:
    assert [(it.number, it.start_s, it.end_s, it.world_size) for it in history.rounds] == [
        (1, 0, 100, 6),
        (2, 100, 200, 4),
    ]
    assert [it.node for it in history.incidents] == ["a", "a"]
    assert history.nodes == ("a", "b", "c")
    assert history.length_s == 200


def test_what_a_node_did_has_no_gap_and_no_overlap(history: History) -> None:
    of_b = [(it.start_s, it.end_s, it.state) for it in history.spans if "b" in it.nodes]
    assert of_b == [
        (0, 10, "restoring"),
        (10, 99, "training"),
        (99, 100, "paused"),
        (100, 104, "restoring"),
        (104, 200, "training"),
    ]
    assert max(it.end_s for it in history.spans if "c" in it.nodes) == 100


def test_the_split_adds_up_to_what_was_paid(history: History) -> None:
    split = history.split
    assert split.total == pytest.approx(3 * 100 + 2 * 100)
    assert split.waiting == pytest.approx(3 * 1)
    assert split.restart == pytest.approx(3 * 10 + 2 * 4)
    assert split.recomputed == pytest.approx(16 - 2 * 5)
    assert split.checkpoint == pytest.approx(3 * 7 + 2 * 4), "of three nodes in the first round, of two in the second"
    assert split.goodput == pytest.approx((500 - 3 - 38 - 6 - 29) / 500)


def test_the_cost_is_set_against_on_demand(history: History) -> None:
    text = page("run", history, Prices(3.6, 36.0))
    assert f"{500 / 3600:.3f} node-hours at 3.6 are 0.5000" in text
    assert f"{424 / 3600 * 36:.4f}" in text
    assert "give --price-per-node-hour" in page("run", history, Prices())


def test_where_a_step_goes_is_told_with_a_word_on_slow_data(history: History) -> None:
    text = page("run", history, Prices())
    assert "a step, on average: compute 75%, data 25%" in text and "give job.batches more num_workers" in text


def test_a_job_that_was_stopped_has_ended() -> None:
    stopped = Entry("s", "stopped", "", BEGAN_S + 200, message="2 nodes told to end, after saving")
    assert of([*LEDGER[:-1], stopped]).ended == "2 nodes told to end, after saving"


def test_files_tell_of_a_stop_by_the_going_of_the_last_nodes() -> None:
    left = [Entry(f"{it}-l", "left", it, BEGAN_S + 200, 2, message="This node left: spotrun stop.") for it in "ab"]
    assert of([*LEDGER[:-1], *left]).ended == "This node left: spotrun stop."
    assert of([*LEDGER[:-1], left[0]]).ended == "", "b may go on"


def test_the_page_is_whole_and_takes_nothing_from_elsewhere(history: History) -> None:
    text = page("<run>", history, Prices(1.0))
    assert "&lt;run&gt;" in text and "<run>" not in text
    assert "c lost &lt;at once&gt;" in text
    assert "http" not in text and "<script" not in text and "url(" not in text


def test_a_ledger_that_has_just_begun_is_a_page(history: History) -> None:
    for entries in ([], LEDGER[:1], LEDGER[:3]):
        assert "still running" in page("run", of(entries), Prices())


def kept(node: str, number: int, saves: object, size_bytes: object, url: str = "s3://b/<run>") -> Entry:
    detail = {"url": url, "region": "eu-west-1", "saves": str(saves), "size_bytes": str(size_bytes)}
    return Entry(f"{node}-{number}-{saves}", "state_kept", node, BEGAN_S, number, detail=detail)


def held(node: str, size_bytes: int) -> Entry:
    return Entry(f"{node}-h{size_bytes}", "state_held", node, BEGAN_S, detail={"size_bytes": str(size_bytes)})


def test_how_much_of_the_state_lay_where_is_told() -> None:
    sums = [kept("a", 1, 0, 0), kept("a", 1, 2, 2_000_000), kept("a", 1, 2, 2_000_000), kept("b", 1, 1, 500_000)]
    sums += [kept("b", 2, 3, 3_000_000), kept("b", 2, 4, 4_000_000), kept("c", 3, "many", "-inf", "/mnt/other")]
    placed = Entry("b-p", "node_placed", "b", BEGAN_S, detail={"region": "eu-west-1", "zone": "eu-west-1b"})
    entries = [*sums, placed, held("b", 800), held("b", 1200), held("a", 700)]
    assert places(entries) == (
        Place("/mnt/other", "eu-west-1", "", 0, 0),
        Place("s3://b/<run>", "eu-west-1", "", 7, 6_500_000),
        Place("a", "", "", None, 700),
        Place("b", "eu-west-1", "eu-west-1b", None, 1200),
    )
    text = page("run", of([*LEDGER, *entries]), Prices())
    assert "s3://b/&lt;run&gt;" in text and "6.5 MB" in text and "eu-west-1b" in text and "1.2 kB" in text
    assert "Where the state was kept" not in page("run", of(LEDGER), Prices())


def test_the_command_reads_the_files_of_all_nodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for node in "ab":
        lines = [encode(it) + b"\n" for it in LEDGER if it.node == node]
        (tmp_path / f"job-{node}.ledger.jsonl").write_bytes(b"".join(lines))
    out = tmp_path / "out.html"
    report.main([str(tmp_path), "-o", str(out)], standalone_mode=False)
    assert "6 &gt; 4 workers" in out.read_text() and "<h1>job</h1>" in out.read_text()
    assert json.loads(lines[0])["v"] == 1
