"""A worker's end of the channel hears its agent whatever else it is told to do meanwhile."""

from __future__ import annotations

import faulthandler
import json
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spotrun.kept import Kept
from spotrun.link import STACKS_SIGNAL, Link
from tests.waiting import until


class Agent:
    """The other end, played by the test."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "agent.sock"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.sock: socket.socket | None = None

    def accept(self) -> None:
        self.sock, _ = self.listener.accept()
        self.lines = self.sock.makefile("rb")

    def hear(self) -> Any:
        return json.loads(self.lines.readline())

    def say(self, **message: Any) -> None:
        assert self.sock is not None
        self.sock.sendall(json.dumps(message).encode() + b"\n")


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(tmp_path)
    yield made
    made.listener.close()
    if made.sock is not None:
        made.lines.close()
        made.sock.close()
    faulthandler.unregister(STACKS_SIGNAL)
    signal.signal(STACKS_SIGNAL, signal.SIG_DFL)


def test_a_worker_whose_round_breaks_while_it_asks_for_memory_still_gets_its_answer(agent: Agent) -> None:
    aborts: list[None] = []
    link = Link(str(agent.path), 0, in_place=True, abort=lambda: aborts.append(None))
    agent.accept()
    assert agent.hear()["op"] == "hello"
    paths: list[dict[str, str]] = []
    asking = threading.Thread(target=lambda: paths.append(link.segments()), daemon=True)
    asking.start()
    assert agent.hear()["op"] == "segment"
    agent.say(op="release", planned=False)
    until("the round is being aborted", lambda: aborts)
    agent.say(op="segments", paths={"0.own.a": "/proc/1/fd/3"})
    until("the answer has arrived", lambda: paths, 10)
    assert paths == [{"0.own.a": "/proc/1/fd/3"}]
    leaving = threading.Thread(target=lambda: link.next_round(agreed=False), daemon=True)
    leaving.start()
    assert agent.hear()["op"] == "ready"
    until("nothing is aborted any more", lambda: all(one.name != "spotrun-abort" for one in threading.enumerate()))
    agent.say(op="round", environment={})
    leaving.join(10)
    assert not leaving.is_alive()
    link.close()


def test_where_saves_lie_is_told_at_once_then_seldom_and_at_the_end_in_sums(agent: Agent) -> None:
    link = Link(str(agent.path), 0, in_place=True, abort=lambda: None)
    agent.accept()
    assert agent.hear()["op"] == "hello"
    kept = Kept(link, "s3://bucket/run", "eu-west-1", 3)
    kept.opened()
    for _ in range(3):
        kept.saved(100)
    kept.close()
    kept.close()
    link.busy(True)
    told = [agent.hear() for _ in range(4)]
    assert told[0] == {
        "op": "kept", "url": "s3://bucket/run", "region": "eu-west-1", "round": 3, "saves": 0, "size_bytes": 0
    }  # fmt: skip
    assert [(it["saves"], it["size_bytes"]) for it in told[:3]] == [(0, 0), (1, 100), (3, 300)]
    assert told[3]["op"] == "busy", "what was told is not told again"
    link.close()


def test_an_interrupt_while_the_round_is_being_left_ends_the_worker_without_a_traceback(agent: Agent) -> None:
    """The agent ends all on its terminal as soon as it has read that they left, which may be before `_say` is back."""
    link = Link(str(agent.path), 0, in_place=True, abort=lambda: None)
    agent.accept()
    main = threading.main_thread()
    assert main.ident is not None
    talking = threading.Thread(target=link.progress, kwargs={"text": "x" * 10_000_000}, daemon=True)
    talking.start()  # until somebody reads, nothing else can be said

    def interrupt() -> None:
        until("the main thread waits to speak", lambda: sys._current_frames()[main.ident].f_code.co_name == "_say")
        signal.pthread_kill(main.ident, signal.SIGINT)

    terminal = threading.Thread(target=interrupt)
    terminal.start()
    with pytest.raises(SystemExit) as ended:
        link.next_round(agreed=True)
    assert ended.value.code == 128 + signal.SIGINT
    terminal.join()
    assert [agent.hear()["op"] for _ in range(2)] == ["hello", "progress"]
    talking.join()
    link.close()


@pytest.mark.parametrize(("seconds_left", "kept"), [(30.0, 1.5), (2.0, 0.5), (0.0, 0.0)])
def test_a_short_notice_keeps_little_of_its_time_from_a_save(agent: Agent, seconds_left: float, kept: float) -> None:
    link = Link(str(agent.path), 0, in_place=True, abort=lambda: None)
    agent.accept()
    agent.say(op="drain", seconds_left=seconds_left, save=True, goes=True)
    until("it is heard", lambda: "leave" in link.wanted)
    assert link.deadline_s is not None and link.deadline_s - link.saved_by_s == pytest.approx(kept)
    link.close()
