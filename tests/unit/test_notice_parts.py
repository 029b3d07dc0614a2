"""The pure parts of the notices, and the small request that they are asked with."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from spotrun.launcher.notices.asked import Unreadable, parse_drain
from spotrun.launcher.notices.deadlines import seconds_until, utc_s
from spotrun.launcher.notices.fetch import Answer, Limits, Unanswered, fetch
from spotrun.launcher.notices.machine import cloud_by_firmware
from spotrun.launcher.notices.notice import Grade, Notice, bounded
from spotrun.launcher.notices.polling import Sighting, Standing
from spotrun.launcher.notices.signals import notice_from_signal
from tests.fakes.clouds import AwsServer
from tests.fakes.metadata import Fault


def notice(left_s: float = 60.0, heard_s: float = 100.0, grade: Grade = Grade.WILL, withdrawn: bool = False) -> Notice:
    return Notice("aws", "preempt", grade, left_s, heard_s, "id", withdrawn)


def test_a_repeated_notice_says_nothing_new() -> None:
    assert notice(58.0, 102.0).repeats(notice(60.0, 100.0))  # the same moment
    assert notice(60.0, 130.0).repeats(notice(60.0, 100.0))  # the same default
    assert not notice(30.0, 102.0).repeats(notice(60.0, 100.0))  # sooner
    assert not notice(90.0, 102.0).repeats(notice(60.0, 100.0))  # later
    assert not notice(grade=Grade.WILL).repeats(notice(grade=Grade.MAY))
    assert not notice(withdrawn=True).repeats(notice())
    assert notice(0.0, 300.0, withdrawn=True).repeats(notice(60.0, withdrawn=True))


def seen(left_s: float | None = None, grade: Grade = Grade.WILL) -> Sighting:
    return Sighting("preempt", grade, "id", left_s, "detail")


def test_a_default_deadline_counts_from_the_first_sighting() -> None:
    standing = Standing("gcp", 30.0)
    (first,) = standing.update([seen()], 100.0)
    assert (first.seconds_left, first.deadline_s) == (30.0, 130.0)
    assert standing.update([seen()], 120.0) == []
    assert standing.update([seen()], 200.0) == []  # over, and still the same notice
    (surer,) = standing.update([seen(5.0)], 201.0)
    assert surer.deadline_s == 206.0


def test_a_notice_is_withdrawn_when_two_answers_do_not_hold_it() -> None:
    standing = Standing("aws", 30.0)
    standing.update([seen(60.0)], 100.0)
    assert standing.update([], 101.0) == []
    assert standing.update([seen(58.0)], 102.0) == []  # it was a slip
    assert standing.update([], 103.0) == []
    (gone,) = standing.update([], 104.0)
    assert gone.withdrawn and gone.id == "id" and gone.seconds_left == pytest.approx(56.0)
    assert standing.update([], 105.0) == []


def test_times_of_all_providers_are_read() -> None:
    assert utc_s("2020-04-24T17:11:44Z") == 1587748304.0
    assert utc_s("21 Jan 2019 09:00:43 GMT") == 1548061243.0
    assert utc_s("Mon, 19 Sep 2016 18:29:47 GMT") == 1474309787.0
    for text in ("", "soon", "2020-13-45T99:99:99Z", "1587748304", "\x00"):
        with pytest.raises(Unanswered):
            utc_s(text)


def test_the_servers_clock_decides_how_much_is_left() -> None:
    date = {"date": "Fri, 24 Apr 2020 17:10:44 GMT"}
    assert seconds_until("2020-04-24T17:11:44Z", Answer(200, b"", date, 0.0)) == 60.0
    assert seconds_until("2020-04-24T17:11:44Z", Answer(200, b"", {}, 1587748300.0)) == 4.0
    assert seconds_until("2020-04-24T17:11:44Z", Answer(200, b"", {}, 0.0), 120.0) == 120.0
    assert seconds_until("2019-04-24T17:11:44Z", Answer(200, b"", date, 0.0)) == 0.0


def test_what_others_say_is_made_short_and_printable() -> None:
    assert bounded(b"\x1b[31mred\n\xff" + b"x" * 9000).startswith("[31mred")
    assert len(bounded("y" * 9000)) == 200


@pytest.mark.parametrize(
    ("text", "drain"),
    [
        ("", (30.0, "")),
        (" \n", (30.0, "")),
        ("45", (45.0, "")),
        ("0", (0.0, "")),
        ('{"seconds_left": 1.5, "reason": "update"}', (1.5, "update")),
        ("{}", (30.0, "")),
    ],
)
def test_a_drain_that_is_asked_for(text: str, drain: tuple[float, str]) -> None:
    assert parse_drain(text) == drain


@pytest.mark.parametrize(
    "text",
    ["soon", "-1", "NaN", "Infinity", "1e999", "true", "[1]", '{"seconds_left": "5"}', '{"reason": 7}', "[" * 9999],
)
def test_a_drain_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        parse_drain(text)


@pytest.mark.parametrize(
    ("signum", "environ", "left_s"),
    [
        (signal.SIGTERM, {}, 10.0),
        (signal.SIGTERM, {"SLURM_JOB_ID": "7"}, 30.0),
        (signal.SIGTERM, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, 30.0),
        (signal.SIGTERM, {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "TERMINATION_GRACE_PERIOD_SECONDS": "600"}, 600.0),
        (signal.SIGTERM, {"RUNPOD_POD_ID": "x", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, 5.0),
        (signal.SIGTERM, {"RUNPOD_POD_ID": "x", "SPOTRUN_GRACE": "2.5"}, 2.5),
        (signal.SIGTERM, {"SPOTRUN_GRACE": "nonsense"}, 10.0),
        (signal.SIGTERM, {"SPOTRUN_GRACE": "-3"}, 10.0),
        (signal.SIGUSR2, {"SLURM_JOB_ID": "7"}, 60.0),
        (signal.SIGUSR2, {"SLURM_JOB_ID": "7", "SPOTRUN_USR2_LEAD": "120", "SPOTRUN_GRACE": "1"}, 120.0),
    ],
)
def test_a_signal_is_a_notice(signum: signal.Signals, environ: dict[str, str], left_s: float) -> None:
    heard = notice_from_signal(signum, environ, 7.0)
    assert heard is not None
    assert (heard.seconds_left, heard.heard_s, heard.grade, heard.kind) == (left_s, 7.0, Grade.WILL, "signal")
    again = notice_from_signal(signum, environ, 8.0)
    assert again is not None and again.repeats(heard) and again.id == heard.id


@pytest.mark.parametrize("signum", [signal.SIGCONT, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_other_signals_are_none(signum: signal.Signals) -> None:
    assert notice_from_signal(signum, {"SLURM_JOB_ID": "7"}, 7.0) is None


def test_the_firmware_names_the_cloud(tmp_path: Path) -> None:
    vendor = tmp_path / "sys_vendor"
    assert cloud_by_firmware(vendor) == ""
    for text, cloud in (("Amazon EC2\n", "aws"), ("Google\n", "gcp"), ("Alibaba Cloud\n", "alibaba"), ("QEMU\n", ""),
                        ("Microsoft Corporation\n", "")):  # fmt: skip
        vendor.write_text(text)
        assert cloud_by_firmware(vendor) == cloud


def test_a_whole_exchange_has_one_deadline() -> None:
    with AwsServer() as server:
        server.fault = Fault.DRIP  # a byte every 0.05 s keeps each single read going
        before_s = time.monotonic()
        with pytest.raises(Unanswered):
            fetch(server.url, Limits(timeout_s=0.3))
        assert 0.3 <= time.monotonic() - before_s < 20.0


def test_a_request_that_hangs_is_given_up_when_we_stop() -> None:
    stop = threading.Event()
    with AwsServer() as server:
        server.fault = Fault.HANG

        def stop_when_asked() -> None:
            server.wait_for_requests(1)
            stop.set()

        timer = threading.Thread(target=stop_when_asked)
        timer.start()
        with pytest.raises(Unanswered):
            fetch(server.url, Limits(timeout_s=600.0, stop=stop))
        timer.join()


@pytest.mark.parametrize("url", ["", "ftp://127.0.0.1", "http://", "https://127.0.0.1", "http://[::1", "http://a:b"])
def test_an_address_that_is_none_is_no_answer(url: str) -> None:
    with pytest.raises(Unanswered):
        fetch(url, Limits(0.2))


def test_a_body_without_end_is_cut() -> None:
    with AwsServer() as server:
        server.fault = Fault.HUGE
        with pytest.raises(Unanswered, match="more than 1000 bytes"):
            fetch(server.url, Limits(limit_bytes=1000, timeout_s=20.0))
