"""What the doctor concludes from what it sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from spotrun.doctor import machine, network, storage
from spotrun.doctor.etcd import judge_status, judge_writes
from spotrun.doctor.finding import Finding, Grade, as_json, ok
from spotrun.doctor.link import Measured
from spotrun.doctor.pairs import Link, judge, schedule
from spotrun.launcher.vitals import Gpu, Space, Vitals
from spotrun.rendezvous.etcd import MemberStatus

GIB = 1 << 30
WELL = machine.Machine(
    "2.13.0",
    Vitals((), Space("host memory", 64 * GIB, 50 * GIB), Space("/dev/shm", GIB * 32, GIB * 32)),
    65536,
    65536,
    True,
)
PLAIN = network.Network("a", ("10.0.0.1",), {"lo": ("127.0.0.1",), "eth0": ("10.0.0.1",)}, "10.0.0.1")


def troubles(findings: list[Finding]) -> dict[str, Grade]:
    assert all(it.why and it.fix for it in findings if it.grade is not Grade.OK)
    return {it.check: it.grade for it in findings if it.grade is not Grade.OK}


@pytest.mark.parametrize("count", range(2, 14))
def test_every_pair_is_measured_once_and_no_node_twice_at_a_time(count: int) -> None:
    rounds = schedule(count)
    pairs = [pair for each in rounds for pair in each]
    assert sorted(pairs) == [(i, j) for i in range(count) for j in range(i + 1, count)]
    assert all(len({node for pair in each for node in pair}) == 2 * len(each) for each in rounds)


def links(names: str, rate: float = 1e9, **changed: Measured) -> list[Link]:
    """Both sides of every pair; `ab=` changes what the pair a, b measured."""
    found = []
    for first in names:
        for second in names:
            if first != second:
                pair = "".join(sorted(first + second))
                found.append(Link(first, second, "gloo", changed.get(pair, Measured(rate, 1e-4))))
    return found


def test_a_group_of_good_nodes_has_no_troubles() -> None:
    assert troubles(judge(links("abcd"), "abcd")) == {}
    assert troubles(judge(links("ab"), "ab")) == {}


def test_a_slow_node_is_named_and_its_peers_are_not() -> None:
    slow = Measured(2e8, 1e-4)
    found = judge(links("abcd", ad=slow, bd=slow, cd=slow), "abcd")
    assert [it.what.partition(" is slow")[0] for it in found] == ["d"]


def test_a_node_that_nobody_reaches_is_broken_and_its_peers_are_not() -> None:
    gone = Measured(error="connection refused")
    found = judge(links("abc", ac=gone, bc=gone), "abc")
    assert [it.what for it in found] == ["c is broken: it can talk to no other node: connection refused"]


def test_one_cut_pair_is_told_as_a_pair() -> None:
    found = judge(links("abc", ac=Measured(error="timed out")), "abc")
    assert [it.what for it in found] == ["a and c cannot talk to each other: timed out"]


def test_where_no_pair_can_talk_no_node_is_blamed() -> None:
    gone = Measured(error="timed out")
    found = judge(links("abc", ab=gone, ac=gone, bc=gone), "abc")
    assert [it.what for it in found] == ["no pair of nodes can talk: timed out"]


def test_a_clock_that_is_off_is_named() -> None:
    off = [
        replace(
            it, measured=replace(it.measured, ahead_s={"c": 90.0}.get(it.peer, 0.0) - {"c": 90.0}.get(it.node, 0.0))
        )
        for it in links("abcd")
    ]
    found = [it for it in judge(off, "abcd") if it.check == "clocks"]
    assert [it.what for it in found] == ["the clock of c is 90.0 s ahead of those of the others"]


def test_a_good_machine_has_no_troubles() -> None:
    assert troubles(machine.judge(WELL)) == {}
    assert troubles(network.judge(PLAIN, {}, several=True)) == {}


@pytest.mark.parametrize(
    ("changes", "check", "grade"),
    [
        ({"torch": None}, "torch", Grade.FAIL),
        ({"torch": "2.10.1"}, "torch", Grade.FAIL),
        ({"torch": "2.99.0"}, "torch", Grade.WARN),
        ({"open_files": 1024}, "open files", Grade.WARN),
        ({"open_files": 128}, "open files", Grade.FAIL),
        ({"clock_synchronized": False}, "clock", Grade.WARN),
        ({"driver_loaded": True}, "GPUs", Grade.FAIL),
        ({"vitals": replace(WELL.vitals, shm=None)}, "/dev/shm", Grade.FAIL),
        ({"vitals": replace(WELL.vitals, shm=Space("/dev/shm", 64 << 20, 64 << 20))}, "/dev/shm", Grade.WARN),
        ({"vitals": replace(WELL.vitals, shm=Space("/dev/shm", GIB, 0))}, "/dev/shm", Grade.FAIL),
        ({"vitals": replace(WELL.vitals, memory=Space("host memory", 64 * GIB, GIB))}, "memory", Grade.WARN),
        ({"vitals": replace(WELL.vitals, gpus=(Gpu(0, remap_failed=True),))}, "GPUs", Grade.FAIL),
        (
            {"vitals": replace(WELL.vitals, gpus=(Gpu(0), Gpu(1))), "driver": machine.TorchGpus("13.0", 1, (2, 27))},
            "CUDA",
            Grade.FAIL,
        ),
    ],
)
def test_each_fault_of_a_machine_is_its_own_finding(changes: dict[str, object], check: str, grade: Grade) -> None:
    assert troubles(machine.judge(replace(WELL, **changes))) == {check: grade}  # type: ignore[arg-type]


def test_a_name_that_leads_to_loopback_fails_only_where_others_must_reach_it() -> None:
    debian = replace(PLAIN, resolves_to=("127.0.1.1",))
    assert troubles(network.judge(debian, {}, several=True)) == {"host name": Grade.FAIL}
    assert troubles(network.judge(debian, {}, several=False)) == {"host name": Grade.WARN}
    assert troubles(network.judge(debian, {"GLOO_SOCKET_IFNAME": "eth0"}, several=True)) == {}
    [finding] = [it for it in network.judge(debian, {}, several=True) if it.check == "host name"]
    assert finding.fix.startswith("export GLOO_SOCKET_IFNAME=eth0 ")
    assert "10.0.0.1 a" in finding.fix


def test_an_unknown_name_and_a_loopback_address_are_told() -> None:
    assert troubles(network.judge(replace(PLAIN, resolves_to=()), {}, several=True)) == {"host name": Grade.FAIL}
    assert troubles(network.judge(replace(PLAIN, address="127.0.0.1"), {}, several=True)) == {"address": Grade.WARN}


@pytest.mark.parametrize(
    ("environ", "bad"),
    [
        ({"NCCL_SOCKET_IFNAME": "eth"}, False),  # NCCL takes the beginning of a name
        ({"NCCL_SOCKET_IFNAME": "=eth"}, True),
        ({"NCCL_SOCKET_IFNAME": "^docker"}, False),
        ({"GLOO_SOCKET_IFNAME": "eth"}, True),  # gloo does not
        ({"GLOO_SOCKET_IFNAME": "eth0"}, False),
    ],
)
def test_interfaces_that_are_asked_for_must_be_there(environ: dict[str, str], bad: bool) -> None:
    assert troubles(network.judge(PLAIN, environ, several=True)) == ({"interface": Grade.FAIL} if bad else {})


def test_several_interfaces_are_told_with_the_one_to_choose_but_not_those_of_containers() -> None:
    two = replace(PLAIN, interfaces={**PLAIN.interfaces, "ib0": ("10.1.0.1",), "docker0": ("172.17.0.1",)})
    [finding] = [it for it in network.judge(two, {}, several=True) if it.grade is not Grade.OK]
    assert "eth0 (10.0.0.1), ib0 (10.1.0.1)" in finding.what and "docker0" not in finding.what
    assert finding.fix == "export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0"


def test_what_a_member_of_etcd_tells_is_judged() -> None:
    good = MemberStatus("3.5.1", 1000, 0, 7, ())
    assert judge_status("e:1", good) == []
    assert troubles(judge_status("e:1", replace(good, leader=0))) == {"etcd quorum": Grade.FAIL}
    assert troubles(judge_status("e:1", replace(good, db_bytes=19 * GIB // 10))) == {"etcd space": Grade.WARN}
    assert troubles(judge_status("e:1", replace(good, db_bytes=3 * GIB, quota_bytes=8 * GIB))) == {}
    assert troubles([judge_writes([0.001] * 8 + [3.0])]) == {}
    assert troubles([judge_writes([0.3] * 9)]) == {"etcd writes": Grade.WARN}


def test_a_path_is_on_the_mount_that_is_nearest() -> None:
    mounts = [("/", "ext4"), ("/mnt/data", "nfs4"), ("/mnt", "xfs")]
    assert storage.filesystem(Path("/mnt/data/run"), mounts) == "nfs4"
    assert storage.filesystem(Path("/mnt/database"), mounts) == "xfs"
    assert storage.filesystem(Path("/home"), mounts) == "ext4"


def test_a_place_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    assert storage.look(str(tmp_path / "new"))[0].grade is Grade.OK
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert troubles(storage.look(str(tmp_path / "file"))) == {"storage": Grade.FAIL}


def test_the_json_form_says_whether_anything_failed() -> None:
    warned = Finding("b", Grade.WARN, "so", "because", "mend")
    told = as_json("n", [ok("a", "well"), warned])
    assert told["ok"] is True and [it["grade"] for it in told["findings"]] == ["ok", "warn"]
    assert as_json("n", [replace(warned, grade=Grade.FAIL)])["ok"] is False
