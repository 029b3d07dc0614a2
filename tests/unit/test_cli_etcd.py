"""`spotrun etcd`: the member that its flags describe, and what the nodes are told to use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spotrun.cli.etcd import Member, check
from spotrun.errors import UsageError

CLUSTER = "a=http://host-a:2380,b=http://[fd00::b]:2380,c=http://host-c:2380"


def member(tmp_path: Path, **changes: Any) -> Member:
    settings = {"name": "a", "host": "host-a", "port": 23790, "peer_port": 23800, "data_dir": tmp_path, "cluster": ""}
    return Member(**{**settings, **changes})


def test_a_lone_member_is_its_own_cluster(tmp_path: Path) -> None:
    alone = member(tmp_path)
    assert alone.endpoints == "host-a:23790"
    assert "--initial-cluster=a=http://host-a:23800" in alone.arguments()


def test_the_nodes_are_told_of_every_member(tmp_path: Path) -> None:
    assert member(tmp_path, cluster=CLUSTER).endpoints == "host-a:23790,[fd00::b]:23790,host-c:23790"
    one_host = "a=http://host-a:2380,b=http://host-a:12380"
    assert member(tmp_path, cluster=one_host).endpoints == "host-a:23790"
    assert f"--initial-cluster={CLUSTER}" in member(tmp_path, cluster=CLUSTER).arguments()


@pytest.mark.parametrize(
    ("host", "listens", "advertises"),
    [
        ("localhost", "127.0.0.1", "localhost"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("::1", "[::1]", "[::1]"),
        ("10.0.0.5", "0.0.0.0", "10.0.0.5"),
        ("host-a", "0.0.0.0", "host-a"),
    ],
)
def test_loopback_stays_private_and_a_name_is_served_on_every_interface(
    tmp_path: Path, host: str, listens: str, advertises: str
) -> None:
    arguments = member(tmp_path, host=host).arguments()
    assert f"--listen-client-urls=http://{listens}:23790" in arguments
    assert f"--advertise-client-urls=http://{advertises}:23790" in arguments


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cluster": "host-a:2380"}, "no list of members"),
        ({"cluster": "a=host-a:2380"}, "no list of members"),
        ({"cluster": CLUSTER, "name": "d"}, "but not this member, d"),
        ({"data_dir": Path(__file__)}, "is not a directory"),
    ],
)
def test_what_etcd_would_refuse_is_told_before(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check(member(tmp_path, **changes))
