"""Which pairs of nodes are measured when, and what their links say about the nodes. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from spotrun.doctor.finding import Finding, Grade, ok
from spotrun.doctor.link import Measured

SLOW = 0.5  # of what the others reach
CLOCK_S = 1.0


@dataclass(frozen=True, slots=True)
class Link:
    """What `node` measured with `peer`."""

    node: str
    peer: str
    backend: str
    measured: Measured


def schedule(count: int) -> list[list[tuple[int, int]]]:
    """Every pair of `count` nodes once, in rounds in which no node has two (the circle method)."""
    ring = list(range(count + count % 2))  # an odd one out meets nobody
    rounds = []
    for _ in range(len(ring) - 1):
        half = len(ring) // 2
        pairs = zip(ring[:half], reversed(ring[half:]), strict=True)
        rounds.append([(min(pair), max(pair)) for pair in pairs if max(pair) < count])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return rounds


def judge(links: Sequence[Link], nodes: Sequence[str]) -> list[Finding]:
    """Names the node that is broken or slow, or else the pair."""
    found = []
    for backend in sorted({link.backend for link in links}):
        found += _judge_backend(backend, [link for link in links if link.backend == backend], nodes)
    return found + list(_clocks(links, nodes))


def _judge_backend(backend: str, links: Sequence[Link], nodes: Sequence[str]) -> list[Finding]:
    check = f"{backend} pairs"
    errors: dict[frozenset[str], str] = {}
    rates: dict[frozenset[str], float] = {}
    for link in links:
        pair = frozenset((link.node, link.peer))
        if link.measured.error:
            errors.setdefault(pair, link.measured.error)
        else:
            rates[pair] = min(rates.get(pair, link.measured.bytes_per_s), link.measured.bytes_per_s)
    rates = {pair: rate for pair, rate in rates.items() if pair not in errors}
    found = list(_broken(check, errors, rates, nodes))
    for node in nodes:
        own = [rate for pair, rate in rates.items() if node in pair]
        others = [rate for pair, rate in rates.items() if node not in pair]
        if own and others and max(own) < SLOW * statistics.median(others):
            usual = _rate(statistics.median(others))
            text = f"{node} is slow: {_rate(max(own))} at best, while the other nodes reach {usual}"
            why = "every step waits for the slowest node"
            found.append(
                Finding(
                    check, Grade.FAIL, text, why, f"spotrun drain {node}   # or replace it; look at: ethtool, iperf3"
                )
            )
    if not found:
        slowest = min(rates, key=lambda pair: rates[pair])
        text = f"all {len(rates)} pairs of {len(nodes)} nodes: right sums, {_rate(rates[slowest])} or more"
        found.append(ok(check, text))
    return found


def _broken(
    check: str, errors: dict[frozenset[str], str], rates: dict[frozenset[str], float], nodes: Sequence[str]
) -> Iterator[Finding]:
    why = "a collective that a node cannot take part in hangs on all of them"
    fix = "let these hosts talk on all TCP ports; export GLOO_SOCKET_IFNAME=NIC NCCL_SOCKET_IFNAME=NIC"
    if errors and not rates:
        yield Finding(check, Grade.FAIL, f"no pair of nodes can talk: {next(iter(errors.values()))}", why, fix)
        return
    broken = [node for node in nodes if not any(node in pair for pair in rates)]
    for node in broken:
        reason = next(error for pair, error in errors.items() if node in pair)
        yield Finding(check, Grade.FAIL, f"{node} is broken: it can talk to no other node: {reason}", why, fix)
    for pair, reason in errors.items():
        if not pair & set(broken):
            yield Finding(
                check, Grade.FAIL, f"{' and '.join(sorted(pair))} cannot talk to each other: {reason}", why, fix
            )


def _clocks(links: Sequence[Link], nodes: Sequence[str]) -> Iterator[Finding]:
    for node in nodes:
        ahead = [-link.measured.ahead_s for link in links if link.node == node and not link.measured.error]
        if ahead and abs(middle_s := statistics.median(ahead)) > CLOCK_S:
            where = "ahead of" if middle_s > 0 else "behind"
            text = f"the clock of {node} is {abs(middle_s):.1f} s {where} those of the others"
            why = "spotrun compares no clocks, but TLS, S3 and readers of logs do"
            yield Finding("clocks", Grade.WARN, text, why, "systemctl enable --now systemd-timesyncd   # or chrony")


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:.0f} MB/s"
