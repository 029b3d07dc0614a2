"""Other users of the machine do not reach the channel to the workers, and the network not what is for this machine."""

from __future__ import annotations

import os
import stat

import pytest

from spotrun.config import parse_metrics
from spotrun.launcher.link import Link
from spotrun.launcher.snapshots import Snapshots
from spotrun.memory import PrivateShelf
from spotrun.rendezvous.liveness import listen


def mode(path: os.PathLike[str] | str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_the_channel_to_the_workers_is_this_users_alone_whatever_the_umask() -> None:
    before = os.umask(0)
    try:
        link = Link(lambda question, answer: None, lambda mark: None)
    finally:
        os.umask(before)
    try:
        assert (mode(link.path), mode(link.path.parent)) == (0o600, 0o700)
        assert os.stat(link.path).st_uid == os.getuid()
    finally:
        link.close()


def test_snapshots_are_this_users_alone_and_have_no_name() -> None:
    before = set(os.listdir("/dev/shm"))
    agent, alone = Snapshots(), PrivateShelf()
    try:
        agent.make("0.own.a", 4096)
        for path in (agent.paths()["0.own.a"], alone.segment("0.own.a", 4096)):
            assert mode(path) == 0o600 and os.stat(path).st_uid == os.getuid()
            assert os.readlink(path).startswith("/memfd:")
        assert set(os.listdir("/dev/shm")) == before
    finally:
        agent.close()


@pytest.mark.parametrize("flag", ["9400", ":9400"])
def test_metrics_are_for_this_machine_unless_a_host_is_given(flag: str) -> None:
    assert parse_metrics(flag) == ("127.0.0.1", 9400)


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
def test_a_job_on_loopback_listens_on_loopback_alone(address: str) -> None:
    with listen(address) as sock:
        assert sock.getsockname()[0] in ("127.0.0.1", "::1")
