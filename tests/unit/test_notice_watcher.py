"""What the agent gets: the sources behind --notice, each notice once, a file, a request, and other people's sources."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from spotrun.errors import UsageError
from spotrun.launcher.notices.file import FileSource
from spotrun.launcher.notices.http import HttpSource
from spotrun.launcher.notices.notice import Grade, Notice, Publish
from spotrun.launcher.notices.registry import Found, known, parse_notice, sources_of
from spotrun.launcher.notices.signals import notice_from_signal
from spotrun.launcher.notices.watcher import NoticeWatcher
from tests.etcd_servers import unused_port
from tests.notice_sources import Heard, running
from tests.waiting import DEADLINE_S, until

# The value of --notice


@pytest.mark.parametrize(
    "value", ["auto", "none", "aws", "aws,gcp", "auto,http:8080", "file:/run/drain", " aws , gcp "]
)
def test_a_value_of_notice(value: str) -> None:
    assert parse_notice(value) == tuple(part.strip() for part in value.split(","))


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("", "names no source"),
        ("awz", "awz is not known: give auto, none, or some of aws, gcp"),
        ("none,aws", "none alone"),
        ("file", "file:/path"),
        ("http:0", "port from 1 to 65535"),
        ("http:x", "port from 1 to 65535"),
        ("aws:5", "takes nothing after a colon"),
    ],
)
def test_a_wrong_value_of_notice_is_refused_with_the_remedy(value: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        parse_notice(value)


def test_auto_looks_for_all_and_a_named_one_needs_no_detection() -> None:
    found = {it.source.name: it.must_detect for it in sources_of(["auto", "aws", "http:8080"])}
    assert set(found) == set(known())
    assert not found["aws"] and not found["http"] and found["gcp"] and found["health"]
    assert sources_of(["none"]) == []


# Other people's sources, as a distribution brings them


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution with two sources, one of them broken, installed to a folder on sys.path."""
    (tmp_path / "moonbase.py").write_text(
        "from spotrun.launcher.notices.notice import Grade, Notice\n"
        "class Moonbase:\n"
        "    name = 'moonbase'\n"
        "    def __init__(self, argument): self.argument = argument\n"
        "    def detect(self): return True\n"
        "    def safe_to_go(self, notice): raise RuntimeError('a bug in it')\n"
        "    def run(self, publish, stop):\n"
        "        for _ in range(3):\n"
        "            publish(Notice('moonbase', 'preempt', Grade.WILL, 9.0, 0.0, 'eclipse', detail=self.argument))\n"
        "        raise RuntimeError('another bug')\n"
    )
    info = tmp_path / "moonbase-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: moonbase\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[spotrun.notices]\nmoonbase = moonbase:Moonbase\nbroken = moonbase:Missing\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_source_of_another_distribution_is_known_by_its_entry_point(installed: Path) -> None:
    assert {"moonbase", "broken"} <= set(known())
    heard = Heard()
    watcher = NoticeWatcher("moonbase:crater", heard)
    watcher.start()
    (notice,) = heard.wait(1)
    watcher.safe_to_go(notice)  # raises inside, and that stays there
    watcher.stop()
    assert (notice.source, notice.detail) == ("moonbase", "crater")
    assert heard.notices == [notice]  # said three times


def test_a_broken_source_is_refused_by_name_and_skipped_by_auto(installed: Path) -> None:
    with pytest.raises(UsageError, match=r"broken.*AttributeError"):
        NoticeWatcher("broken", Heard())
    names = {it.source.name for it in sources_of(["auto"])}
    assert "moonbase" in names and "broken" not in names


# The watcher


class Scripted:
    """A source of which the test is the author."""

    def __init__(self, name: str = "scripted", detected: bool | Exception = True) -> None:
        self.name = name
        self.detected = detected
        self.publish: Publish | None = None
        self.ready = threading.Event()
        self.gone: list[Notice] = []

    def detect(self) -> bool:
        if isinstance(self.detected, Exception):
            raise self.detected
        return self.detected

    def run(self, publish: Publish, stop: threading.Event) -> None:
        self.publish = publish
        self.ready.set()
        stop.wait()

    def safe_to_go(self, notice: Notice) -> None:
        self.gone.append(notice)


def notice(left_s: float = 60.0, grade: Grade = Grade.WILL, withdrawn: bool = False, id: str = "a") -> Notice:
    return Notice("scripted", "preempt", grade, left_s, 100.0, id, withdrawn)


def test_each_notice_is_passed_on_once_and_each_change_of_it() -> None:
    source, heard = Scripted(), Heard()
    watcher = NoticeWatcher("none", heard, sources=[Found(source, True)])
    watcher.start()
    assert source.ready.wait(DEADLINE_S) and source.publish is not None
    said = [
        notice(withdrawn=True, id="never given"),
        notice(grade=Grade.MAY),
        notice(grade=Grade.MAY),
        notice(),
        notice(),
        notice(20.0),
        notice(20.0, id="b"),
        notice(withdrawn=True),
        notice(withdrawn=True),
        notice(),
    ]
    for it in said:
        source.publish(it)
    assert heard.notices == [said[1], said[3], said[5], said[6], said[7], said[9]]
    watcher.stop()
    source.publish(notice(1.0, id="too late"))
    assert len(heard.notices) == 6


def test_signals_are_heard_once_like_any_notice() -> None:
    heard = Heard()
    watcher = NoticeWatcher("none", heard)
    watcher.start()
    assert watcher.running() == ()
    for now_s in (1.0, 2.0):
        term = notice_from_signal(signal.SIGTERM, {}, now_s)
        assert term is not None
        watcher.hear(term)
    watcher.stop()
    assert [it.id for it in heard.notices] == ["SIGTERM"]


def test_sources_that_are_not_there_or_fail_do_not_concern_the_others() -> None:
    absent, failing, there = Scripted("absent", False), Scripted("failing", OSError("boom")), Scripted("there")
    watcher = NoticeWatcher("none", Heard(), sources=[Found(it, True) for it in (absent, failing, there)])
    watcher.start()
    assert watcher.running(DEADLINE_S) == ("there",)
    watcher.stop()
    assert not absent.ready.is_set() and not failing.ready.is_set()


def test_the_source_of_a_notice_learns_that_the_state_is_safe() -> None:
    one, other = Scripted("scripted"), Scripted("other")
    watcher = NoticeWatcher("none", Heard(), sources=[Found(one, False), Found(other, False)])
    watcher.safe_to_go(notice())
    watcher.safe_to_go(notice(withdrawn=True))
    assert one.gone == [notice()] and other.gone == []


def test_a_watcher_may_be_stopped_by_the_notice_itself() -> None:
    source = Scripted()
    watcher = NoticeWatcher("none", lambda it: watcher.stop(), sources=[Found(source, False)])
    watcher.start()
    assert source.ready.wait(DEADLINE_S) and source.publish is not None
    source.publish(notice())


# A file


def test_a_file_that_appears_changes_and_disappears(tmp_path: Path) -> None:
    path = tmp_path / "drain"
    with running(FileSource(str(path), {}, 0.01)) as heard:
        path.write_text("")
        heard.wait(1)
        path.write_text('{"seconds_left": 90, "reason": "kernel update"}')
        until("the change is heard", lambda: heard.notices[-1].seconds_left == 90.0)
        path.write_text("half of {")
        until("nonsense is a notice, too", lambda: heard.notices[-1].seconds_left == 30.0)
        path.unlink()
        until("it is withdrawn", lambda: heard.notices[-1].withdrawn)
        path.write_text("5")
        until("it is given anew", lambda: not heard.notices[-1].withdrawn)
    assert {it.id for it in heard.notices} == {str(path)}
    assert "kernel update" in {it.detail for it in heard.notices}


def test_a_file_that_is_there_before_us_is_a_notice(tmp_path: Path) -> None:
    path = tmp_path / "drain"
    path.write_text("7")
    with running(FileSource(str(path), {}, 0.01)) as heard:
        assert heard.wait(1)[0].seconds_left == 7.0


def test_a_pipe_or_a_folder_in_place_of_the_file_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with running(FileSource(str(tmp_path / name), {}, 0.01)) as heard:
            assert heard.wait(1)[0].seconds_left == 30.0


def test_the_file_may_be_named_by_the_environment() -> None:
    assert FileSource("", {"SPOTRUN_NOTICE_FILE": "/run/drain"}).detect()
    assert not FileSource("", {}).detect()


# A request


def ask(port: int, method: str, body: bytes | None = None, path: str = "/drain", **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def serving(environ: Mapping[str, str] | None = None) -> Iterator[tuple[int, Heard]]:
    port = unused_port()
    with running(HttpSource(str(port), environ or {})) as heard:
        until("it listens", lambda: listening(port))
        yield port, heard
    assert not listening(port)


def test_a_drain_is_asked_for_changed_and_taken_back() -> None:
    with serving() as (port, heard):
        assert ask(port, "DELETE")[0] == 404
        assert ask(port, "POST", b'{"seconds_left": 20, "reason": "update"}')[0] == 202
        assert ask(port, "POST", b"5")[0] == 202
        assert ask(port, "DELETE")[0] == 200
        assert ask(port, "POST")[0] == 202
        first, sooner, gone, anew = heard.notices
    assert (first.seconds_left, first.detail, first.kind, first.grade) == (20.0, "update", "manual", Grade.WILL)
    assert sooner.seconds_left == 5.0 and gone.withdrawn and first.id == sooner.id == gone.id != anew.id


def test_what_a_web_page_could_send_is_refused() -> None:
    with serving() as (port, heard):
        assert ask(port, "POST", b"", Host=f"rebound.example:{port}")[0] == 403
        assert ask(port, "POST", b"", Host="")[0] == 403
        assert ask(port, "POST", b"", Origin="https://example.org")[0] == 403
        assert ask(port, "POST", b"", Origin="null")[0] == 403
        assert ask(port, "POST", b"", Host=f"localhost:{port}")[0] == 202
        assert len(heard.notices) == 1


def test_what_makes_no_sense_is_refused() -> None:
    with serving() as (port, heard):
        assert ask(port, "POST", b"soon")[0] == 400
        assert ask(port, "POST", b"-1")[0] == 400
        assert ask(port, "POST", b"x" * 5000)[0] == 413
        assert ask(port, "POST", b"", Content_Length="9" * 30)[0] == 413
        assert ask(port, "POST", b"", Content_Length="-1")[0] == 411
        assert ask(port, "POST", b"", Transfer_Encoding="chunked")[0] == 411
        assert ask(port, "POST", b"", path="/other")[0] == 404
        assert heard.notices == []
        assert ask(port, "POST", b"1")[0] == 202  # and it still listens


def test_a_port_of_its_own_is_told_to_this_user_alone(tmp_path: Path) -> None:
    address = tmp_path / "address.json"
    with running(HttpSource("", {"SPOTRUN_NOTICE_ADDRESS_FILE": str(address)})) as heard:
        until("the address is there", address.exists)
        assert stat.S_IMODE(address.stat().st_mode) == 0o600
        told = json.loads(address.read_text())
        port = int(told["url"].removeprefix("http://127.0.0.1:").removesuffix("/drain"))
        assert ask(port, "POST", b"")[0] == 403
        assert ask(port, "POST", b"", Authorization="Bearer wrong")[0] == 403
        assert ask(port, "POST", b"", Authorization=f"Bearer {told['token']}")[0] == 202
        heard.wait(1)
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_or_an_address_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with running(HttpSource(str(taken.getsockname()[1]), {})):
            pass
    with running(HttpSource("", {"SPOTRUN_NOTICE_ADDRESS_FILE": str(tmp_path / "missing" / "address.json")})):
        pass


def test_http_opens_no_port_unless_it_is_named() -> None:
    assert not HttpSource().detect()
