"""Other users of the machine do not reach the channel to the workers, and the network not what is for this machine."""

from __future__ import annotations

import os
import stat

import pytest

from spotrun.launcher.link import Link
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


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
def test_a_job_on_loopback_listens_on_loopback_alone(address: str) -> None:
    with listen(address) as sock:
        assert sock.getsockname()[0] in ("127.0.0.1", "::1")
