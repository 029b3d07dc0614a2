"""The doctor against real etcd servers that are set up wrongly."""

from __future__ import annotations

from spotrun.doctor.etcd import look
from spotrun.doctor.finding import Finding, Grade
from spotrun.rendezvous.embedded import EmbeddedEtcd
from spotrun.rendezvous.etcd import EtcdConfig
from tests.etcd_servers import Cluster, add_user, admin, cluster, etcd, kill, private_etcd, shared_etcd, unused_port

__all__ = ["cluster", "etcd", "private_etcd", "shared_etcd"]


def failures(findings: list[Finding]) -> list[Finding]:
    return [it for it in findings if it.grade is Grade.FAIL]


def test_a_good_etcd_is_found_good_and_nothing_is_left_in_it(etcd: EmbeddedEtcd) -> None:
    found = look(EtcdConfig((etcd.endpoint,)))
    assert not failures(found), found
    assert {it.check for it in found} == {"etcd", "etcd writes"}
    assert "count" not in admin(etcd, "kv/range", key="L3Nwb3RydW4vZG9jdG9y", range_end="L3Nwb3RydW4vZG9jdG9z")


def test_an_etcd_that_is_not_there_is_told_alone() -> None:
    [finding] = look(EtcdConfig((f"127.0.0.1:{unused_port()}",), timeout_s=1.0))
    assert finding.grade is Grade.FAIL and finding.why and finding.fix


def test_an_etcd_without_space_is_told_with_what_frees_it(private_etcd: EmbeddedEtcd) -> None:
    member = admin(private_etcd, "maintenance/status")["header"]["member_id"]
    admin(private_etcd, "maintenance/alarm", action="ACTIVATE", memberID=member, alarm="NOSPACE")
    found = failures(look(EtcdConfig((private_etcd.endpoint,))))
    assert [it.check for it in found] == ["etcd space", "etcd writes"]
    assert "alarm disarm" in found[0].fix and private_etcd.endpoint in found[0].fix


def test_a_wrong_password_and_a_missing_right_are_told_apart(private_etcd: EmbeddedEtcd) -> None:
    add_user(private_etcd, "root", "secret")
    add_user(private_etcd, "elsewhere", "secret", prefix="/other/")
    admin(private_etcd, "auth/enable")
    end = (private_etcd.endpoint,)
    [wrong] = look(EtcdConfig(end, user="root", password="guess"))
    assert wrong.check == "etcd" and wrong.grade is Grade.FAIL
    [anonymous] = look(EtcdConfig(end))
    assert anonymous.check == "etcd" and anonymous.grade is Grade.FAIL
    [right] = failures(look(EtcdConfig(end, user="elsewhere", password="secret")))
    assert right.check == "etcd writes" and "grant-permission" in right.fix
    assert not failures(look(EtcdConfig(end, user="root", password="secret")))


def test_the_member_that_is_away_is_the_one_that_is_named(cluster: Cluster) -> None:
    away, *others = cluster.members
    kill(away)
    found = look(EtcdConfig(tuple(member.endpoint for member in cluster.members), timeout_s=3.0))
    assert [away.endpoint in it.what for it in failures(found)] == [True]
    kill(others[0])
    checks = [it.check for it in failures(look(EtcdConfig((others[1].endpoint,), timeout_s=3.0)))]
    assert checks, "an etcd without a quorum was found good"
