"""Whether etcd serves a job: each endpoint, the quorum, the login, room for data, and how long a write takes."""

from __future__ import annotations

import secrets
import statistics
import time
from dataclasses import replace

from spotrun.doctor.finding import Finding, Grade, ok
from spotrun.errors import EtcdError, EtcdRefused
from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig, MemberStatus
from spotrun.rendezvous.keys import Keys

WRITES = 9
SLOW_WRITE_S = 0.1  # etcd's own heartbeat interval: beyond it its elections get unsteady as well
LEASE_S = 10  # should this process die, its key goes by itself
FULL_SHARE = 0.8  # of the quota
QUOTA_BYTES = 2 << 30  # etcd's default; it tells a client its quota only from 3.6 on
_REVISION = """$({ctl} endpoint status -w json | grep -o '"revision":[0-9]*' | cut -d: -f2 | head -1)"""


def _shrink(endpoint: str) -> str:
    ctl = f"etcdctl --endpoints={endpoint}"
    return f"{ctl} compact {_REVISION.format(ctl=ctl)} && {ctl} defrag"


def look(config: EtcdConfig) -> list[Finding]:
    """Everything about etcd that a job needs. Takes as long as an endpoint needs to be given up."""
    found = [finding for endpoint in config.endpoints for finding in _endpoint(replace(config, endpoints=(endpoint,)))]
    if not any(it.check == "etcd" and it.grade is Grade.OK for it in found):
        return found
    with EtcdClient(config) as client:
        return found + _use(client)


def _endpoint(config: EtcdConfig) -> list[Finding]:
    endpoint = config.endpoints[0]
    with EtcdClient(config) as client:
        try:
            version = client.check()
            status = client.status()
        except EtcdError as error:
            refused = isinstance(error, EtcdRefused)
            return [
                Finding(
                    "etcd",
                    Grade.FAIL,
                    str(error),
                    "nodes meet in etcd: without it no job starts",
                    "correct the flag that the message names"
                    if refused
                    else f"etcdctl --endpoints={endpoint} endpoint health",
                )
            ]
    return [
        ok("etcd", f"{endpoint} serves, version {version}, {status.db_bytes / 1e6:.1f} MB"),
        *judge_status(endpoint, status),
    ]


def judge_status(endpoint: str, status: MemberStatus) -> list[Finding]:
    """What a member says of itself that stops a job, now or soon."""
    found = []
    for error in status.errors:
        if "NOSPACE" in error:
            found.append(
                Finding(
                    "etcd space",
                    Grade.FAIL,
                    f"{endpoint} has raised the alarm NOSPACE: it takes no writes",
                    "no node can join, and no checkpoint can be committed",
                    f"{_shrink(endpoint)} && etcdctl --endpoints={endpoint} alarm disarm",
                )
            )
        else:
            found.append(
                Finding(
                    "etcd health",
                    Grade.FAIL,
                    f"{endpoint} says: {error}",
                    "it does not serve reliably",
                    f"etcdctl --endpoints={endpoint} endpoint health",
                )
            )
    if not status.leader:
        found.append(
            Finding(
                "etcd quorum",
                Grade.FAIL,
                f"{endpoint} knows no leader",
                "most members must reach each other",
                f"etcdctl --endpoints={endpoint} member list",
            )
        )
    quota = status.quota_bytes or QUOTA_BYTES
    if not found and status.db_bytes > FULL_SHARE * quota:
        found.append(
            Finding(
                "etcd space",
                Grade.WARN,
                f"{endpoint} holds {status.db_bytes / 1e9:.1f} GB of {quota / 1e9:.1f} GB",
                "at its quota it takes no writes at all",
                _shrink(endpoint),
            )
        )
    return found


def _use(client: EtcdClient) -> list[Finding]:
    """Writes through the quorum, as a job does, under a lease."""
    key = Keys("doctor").node(f"probe-{secrets.token_hex(4)}")
    times_s = []
    try:
        lease = client.grant(LEASE_S)
        for _ in range(WRITES):
            began_s = time.monotonic()
            client.put(key, b"", lease)
            times_s.append(time.monotonic() - began_s)
        client.revoke(lease)
    except EtcdError as error:
        return [
            Finding(
                "etcd writes",
                Grade.FAIL,
                f"A write under /spotrun/ failed: {error}",
                "a job keeps its nodes and rounds there",
                "etcdctl role grant-permission ROLE readwrite /spotrun/ --prefix=true   # or what the message names",
            )
        ]
    return [judge_writes(times_s)]


def judge_writes(times_s: list[float]) -> Finding:
    middle_s = statistics.median(times_s)
    slowest = f"slowest of {len(times_s)}: {max(times_s) * 1e3:.1f} ms"
    text = f"a write through the quorum takes {middle_s * 1e3:.1f} ms ({slowest})"
    if middle_s <= SLOW_WRITE_S:
        return ok("etcd writes", text)
    return Finding(
        "etcd writes",
        Grade.WARN,
        text,
        "every change of the membership costs several writes",
        "put etcd's data on a local SSD, near the nodes: spotrun etcd --data-dir=/local/ssd",
    )
