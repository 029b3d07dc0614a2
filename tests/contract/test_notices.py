"""What every cloud's source does on good days and on bad ones: the same cases, over real HTTP, for all four."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from spotrun.launcher.notices.alibaba import AlibabaSource
from spotrun.launcher.notices.aws import AwsSource
from spotrun.launcher.notices.metadata import MetadataSource
from spotrun.launcher.notices.notice import Grade
from spotrun.launcher.notices.registry import Found
from spotrun.launcher.notices.watcher import NoticeWatcher
from tests.fakes.metadata import Fault
from tests.notice_sources import HASTY, QUICK, Cloud, Heard, about, alibaba, aws, azure, gcp, running
from tests.waiting import DEADLINE_S


@pytest.fixture(params=[aws, gcp, azure, alibaba])
def cloud(request: pytest.FixtureRequest) -> Iterator[Cloud]:
    made: Cloud = request.param()
    with made.server:
        yield made


def test_a_machine_of_this_cloud_is_detected(cloud: Cloud) -> None:
    assert cloud.source().detect()


def test_a_preemption_is_heard_once_with_its_deadline(cloud: Cloud) -> None:
    with running(cloud.source()) as heard:
        cloud.server.wait_for_requests(2, cloud.path)
        assert heard.notices == []
        before_s = time.monotonic()
        cloud.give()
        (notice,) = heard.wait(1)
        cloud.server.wait_for_requests(4, cloud.path)  # it is repeated, and is no news
        assert heard.notices == [notice]
    assert (notice.kind, notice.grade, notice.withdrawn) == ("preempt", Grade.WILL, False)
    assert notice.source == cloud.source().name
    assert notice.seconds_left == about(cloud.lead_s)
    assert before_s <= notice.heard_s <= time.monotonic()


def test_a_notice_that_was_there_before_us_is_heard(cloud: Cloud) -> None:
    cloud.give()
    with running(cloud.source()) as heard:
        heard.wait(1)


def test_a_withdrawn_notice_is_passed_on_under_its_id(cloud: Cloud) -> None:
    with running(cloud.source(HASTY)) as heard:
        cloud.give()
        (notice,) = heard.wait(1)
        cloud.withdraw()
        withdrawn = heard.wait(2)[1]
        cloud.give()
        again = heard.wait(3)[2]
    assert withdrawn.withdrawn and withdrawn.id == notice.id
    assert not again.withdrawn


WRONG = (Fault.UNAUTHORIZED, Fault.SERVER_ERROR, Fault.UNAVAILABLE, Fault.CLOSE, Fault.GARBAGE, Fault.WRONG_SHAPE,
         Fault.TRUNCATED, Fault.HUGE)  # fmt: skip


@pytest.mark.parametrize("fault", [*WRONG, Fault.HANG, Fault.DRIP])
def test_a_bad_day_neither_ends_the_source_nor_invents_or_withdraws_a_notice(cloud: Cloud, fault: Fault) -> None:
    with running(cloud.source(QUICK if fault in WRONG else HASTY)) as heard:
        cloud.server.wait_for_requests(1, cloud.path)
        cloud.server.change(fault=fault)
        cloud.server.wait_for_requests(3)
        assert heard.notices == []
        cloud.give()
        cloud.server.change(fault=None)
        (notice,) = heard.wait(1)
        cloud.server.change(fault=fault)
        cloud.server.wait_for_requests(3)
        cloud.server.change(fault=None)
        cloud.server.wait_for_requests(3)
        assert heard.notices == [notice]


@pytest.mark.parametrize("fault", WRONG)
def test_a_bad_day_at_the_start_is_survived(cloud: Cloud, fault: Fault) -> None:
    cloud.server.fault = fault
    cloud.give()
    with running(cloud.source()) as heard:
        cloud.server.wait_for_requests(3)
        cloud.server.change(fault=None)
        heard.wait(1)


def test_without_what_we_ask_for_there_is_no_notice(cloud: Cloud) -> None:
    cloud.server.fault = Fault.NOT_FOUND  # an older API, or another cloud at this address
    with running(cloud.source()) as heard:
        cloud.server.wait_for_requests(5)
        assert heard.notices == []


@pytest.mark.parametrize("skew_s", [-7200.0, 7200.0])
def test_a_clock_of_ours_that_is_wrong_by_hours_does_not_matter(cloud: Cloud, skew_s: float) -> None:
    cloud.server.skew_s = skew_s  # the server's clock is the one that counts
    cloud.give()
    with running(cloud.source()) as heard:
        assert heard.wait(1)[0].seconds_left == about(cloud.lead_s)


def test_a_server_that_does_not_tell_its_time_is_compared_with_our_clock(cloud: Cloud) -> None:
    cloud.server.tells_date = False
    cloud.give()
    with running(cloud.source()) as heard:
        assert heard.wait(1)[0].seconds_left == about(cloud.lead_s)


@pytest.mark.parametrize("make", [aws, azure, alibaba])  # Google names no moment
def test_a_deadline_in_the_past_is_no_time_left(make: Callable[[], Cloud]) -> None:
    cloud = make()
    cloud.server.tells_date = False
    cloud.server.skew_s = -7200.0
    cloud.give()
    with cloud.server, running(cloud.source()) as heard:
        assert heard.wait(1)[0].seconds_left == 0.0


def test_a_server_that_goes_away_and_comes_back_is_heard_again(cloud: Cloud) -> None:
    with running(cloud.source()) as heard:
        cloud.give()
        (notice,) = heard.wait(1)
        cloud.server.stop()  # connections are refused
        cloud.withdraw()
        cloud.server.start()
        assert heard.wait(2)[1].withdrawn and heard.notices[1].id == notice.id


def test_a_refused_connection_is_no_detection_and_no_end(cloud: Cloud) -> None:
    source = cloud.source()
    cloud.server.stop()
    assert not source.detect()
    cloud.give()
    with running(source) as heard:
        cloud.server.start()
        heard.wait(1)


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """An address that swallows packets, as 169.254.169.254 does on many a machine: its queue of connections is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):  # the kernel takes one or two more than it is told
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_black_holed_address_delays_nobody(cloud: Cloud) -> None:
    with black_hole() as url:
        source = cloud.source(url=url)
        before_s = time.monotonic()
        assert not source.detect()
        assert time.monotonic() - before_s < 1.0 + 1.0  # a second, and what a busy machine takes
        with running(source) as heard:
            pass  # it is in the middle of a connect when it is told to stop
        assert heard.notices == []


def test_a_server_that_hangs_is_no_detection(cloud: Cloud) -> None:
    cloud.server.fault = Fault.HANG
    assert not cloud.source(HASTY).detect()


def test_other_clouds_are_not_mistaken_for_this_one(cloud: Cloud) -> None:
    for other in (aws(), gcp(), azure(), alibaba()):
        # AWS and Alibaba name their instances alike; they differ by address, and by firmware.
        if other.url_env != cloud.url_env and {other.url_env, cloud.url_env} != {
            AwsSource.url_env,
            AlibabaSource.url_env,
        }:
            with other.server:
                assert not cloud.source(url=other.server.url).detect()


def found(sources: Sequence[MetadataSource]) -> list[Found]:
    return [Found(source, must_detect=True) for source in sources]


def test_all_clouds_are_looked_for_at_once_and_only_the_right_one_is_listened_to(cloud: Cloud) -> None:
    heard = Heard()
    with black_hole() as nowhere:
        others = [make().source(url=nowhere) for make in (aws, gcp, azure, alibaba)]
        watcher = NoticeWatcher("none", heard, sources=found([*others, cloud.source()]))
        watcher.start()
        cloud.give()
        (notice,) = heard.wait(1)
        assert watcher.running(DEADLINE_S) == (cloud.source().name,)
        watcher.stop()
    assert notice.source == cloud.source().name


def test_proxies_are_never_asked(monkeypatch: pytest.MonkeyPatch, cloud: Cloud) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert cloud.source().detect()
