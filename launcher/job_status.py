"""How a job stands, from what lies in etcd: for people, for `status --json`, for metrics.

Pure but for `read`. Seconds until a node has to go were counted by that node when it wrote them; how old they are is
not known here, so they are the most that it may have left. Goodput compares the clocks of nodes with ours: it is as
exact as these are set alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from spotrun.launcher.ledger import ENDS, Entry, checkpoint_s_by_round, entries, entry_of
from spotrun.rendezvous.etcd import EtcdClient, KeyValue, Op
from spotrun.rendezvous.keys import Keys
from spotrun.rendezvous.state import Drain, Job, Node, Outcome, Progress, Quarantine, Round, Vitals, readable


@dataclass(frozen=True, slots=True)
class NodeStatus:
    node: str
    state: str  # training, saving, starting, leaving, spare, or waiting
    first_rank: int | None
    nproc: int
    step: int | None
    zone: str
    seconds_left: float | None  # until it has to be gone, at most
    vitals: Vitals | None


@dataclass(frozen=True, slots=True)
class JobStatus:
    run_id: str
    state: str  # waiting, training, or as it ended: succeeded, failed, stopped
    reason: str  # of the end, or of the present round
    min_nodes: int
    max_nodes: int
    round: int
    world_size: int
    restarts: int
    step: int | None
    samples: int | None
    step_s: float | None
    loss: float | None
    snapshot_step: int | None  # in memory, on each node
    replica_step: int | None  # of it, what would outlive the loss of any one node; 0: nothing
    durable_step: int | None
    shares: dict[str, float]  # of a step's time: data, communication, checkpoint, compute
    goodput: float | None  # of the time since the first round that the ledger knows
    paused_s: float
    steps_recomputed: int
    incidents: int
    nodes: tuple[NodeStatus, ...]
    quarantine: tuple[Quarantine, ...]

    def to_json(self) -> str:
        return json.dumps({"v": 1, **dataclasses.asdict(self)})


@dataclass(frozen=True, slots=True)
class Found:
    """What lies in etcd of one job, at one revision."""

    run_id: str
    job: Job | None
    nodes: tuple[Node, ...]  # in the order of their coming
    round: Round | None
    outcome: Outcome | None
    drains: dict[str, Drain]
    progress: dict[str, Progress]
    vitals: dict[str, Vitals]
    quarantine: tuple[Quarantine, ...]
    ledger: tuple[Entry, ...]
    durable_step: int | None
    revision: int


def read(client: EtcdClient, keys: Keys) -> Found:
    """Raises EtcdError."""
    prefixes = (keys.nodes, keys.drains, keys.progress, keys.vitals, keys.quarantine, keys.ledger)
    singles = (keys.job, keys.round, keys.outcome, keys.latest_checkpoint)
    ops = [*(Op.get_prefix(prefix) for prefix in prefixes), *(Op.get(key) for key in singles)]
    result = client.txn([], ops)
    nodes, drains, progress, vitals, quarantine, ledger, job, current, outcome, checkpoint = result.responses
    return Found(
        run_id=keys.run_id,
        job=next(iter(readable(Job, _values(job))), None),
        nodes=tuple(readable(Node, _values(sorted(nodes, key=lambda kv: kv.create_revision)))),
        round=next(iter(readable(Round, _values(current))), None),
        outcome=next(iter(readable(Outcome, _values(outcome))), None),
        drains={drain.node_id: drain for drain in readable(Drain, _values(drains))},
        progress={word.node_id: word for word in readable(Progress, _values(progress))},
        vitals={word.node_id: word for word in readable(Vitals, _values(vitals))},
        quarantine=tuple(readable(Quarantine, _values(quarantine))),
        ledger=tuple(entries(sorted(ledger, key=lambda kv: kv.mod_revision))),
        durable_step=_step_of(checkpoint),
        revision=result.revision,
    )


def _values(found: Iterable[KeyValue]) -> Iterator[bytes]:
    return (kv.value for kv in found)


def _step_of(found: Sequence[KeyValue]) -> int | None:
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return int(json.loads(found[0].value)["step"])
    return None


def status_of(found: Found, wall_s: float | None = None) -> JobStatus:
    """`wall_s`: the time now."""
    current = found.round
    members = {
        (member.node_id, member.incarnation): rank for rank, member in enumerate(current.members if current else ())
    }
    here = [word for word in found.progress.values() if current is not None and word.round == current.number]
    slowest = min(here, key=lambda word: word.step, default=None)
    nodes = tuple(_node(node, found, members.get((node.node_id, node.incarnation))) for node in found.nodes)
    incidents = [entry for entry in found.ledger if entry.what == "incident" and entry.cost is not None]
    costs = [entry.cost for entry in incidents if entry.cost is not None]
    steps = sum(cost.steps_recomputed or 0 for cost in costs)
    complete = current is not None and all(
        any(node.node_id == member.node_id for node in found.nodes) for member in current.members
    )
    durable = [word.last_commit_step for word in here] + ([found.durable_step] if found.durable_step else [])
    return JobStatus(
        run_id=found.run_id,
        state=found.outcome.state if found.outcome else "training" if complete else "waiting",
        reason=found.outcome.reason if found.outcome else current.reason if current else "no round has begun",
        min_nodes=found.job.min_nodes if found.job else 0,
        max_nodes=found.job.max_nodes if found.job else 0,
        round=current.number if current else 0,
        world_size=current.world_size if current else 0,
        restarts=current.restarts if current else 0,
        step=slowest.step if slowest else None,
        samples=slowest.samples if slowest else None,
        step_s=max(word.step_time_s for word in here) if here else None,
        loss=slowest.loss if slowest else None,
        snapshot_step=min((word.last_snapshot_step for word in here), default=None),
        replica_step=min((word.last_replica_step for word in here), default=None),
        durable_step=max(durable, default=None),
        shares=_shares(here),
        goodput=_goodput(found, time.time() if wall_s is None else wall_s),
        paused_s=sum(cost.paused_s for cost in costs),
        steps_recomputed=steps,
        incidents=sum(1 for entry in incidents if entry.detail.get("cause") != "start"),
        nodes=nodes,
        quarantine=found.quarantine,
    )


def latest(found: Found, wall_s: float) -> list[Entry]:
    """What the nodes of a running job said last of their steps, as the ledger of a node would have it at `wall_s`."""
    current = found.round
    if found.outcome is not None or current is None:
        return []
    here = [word for word in found.progress.values() if word.round == current.number]
    return [
        entry_of(
            {
                **dataclasses.asdict(word),
                "kind": "progress",
                "node": word.node_id,
                "wall_s": wall_s,
                "step": word.step,
            },
            f"{word.incarnation}-now",
        )
        for word in here
    ]


def _node(node: Node, found: Found, group_rank: int | None) -> NodeStatus:
    current, word, drain = found.round, found.progress.get(node.node_id), found.drains.get(node.node_id)
    stepping = word is not None and current is not None and word.round == current.number
    if drain is not None:
        state = "leaving"
    elif group_rank is not None:
        state = ("busy" if word is not None and word.busy else "training") if stepping else "starting"
    else:
        full = current is not None and found.job is not None and len(current.members) >= found.job.max_nodes
        state = "spare" if full else "waiting"
    return NodeStatus(
        node=node.node_id,
        state=state,
        first_rank=current.first_rank(group_rank) if current is not None and group_rank is not None else None,
        nproc=node.nproc,
        step=word.step if word is not None and stepping else None,
        zone=node.labels.get("zone") or node.labels.get("region", ""),
        seconds_left=drain.seconds_left if drain is not None else None,
        vitals=found.vitals.get(node.node_id),
    )


def _shares(words: Sequence[Progress]) -> dict[str, float]:
    """The means over the nodes; what is not known of all of them is part of compute."""
    if not words:
        return {}
    data = sum(word.data_share for word in words) / len(words)
    checkpoint = sum(word.checkpoint_share for word in words) / len(words)
    found = {"data": data, "checkpoint": checkpoint}
    told = [word.communication_share for word in words if word.communication_share is not None]
    if len(told) == len(words):
        found["communication"] = sum(told) / len(told)
    return {**found, "compute": max(0.0, 1.0 - sum(found.values()))}


def _goodput(found: Found, wall_s: float) -> float | None:
    """The share of the time that made steps which counted; that a shrunken world makes fewer is not reckoned in."""
    told = [entry for entry in found.ledger if entry.what in ENDS | {"round_formed", "incident"}]
    if not told:
        return None
    ended = told[-1].what in ENDS
    passed_s = (told[-1].wall_s if ended else wall_s) - told[0].wall_s
    lost_s = 0.0
    for entry in told:
        if entry.cost is not None:
            lost_s += entry.cost.node_s / max(1, len(entry.detail.get("nodes", "").split(",")))
            lost_s += entry.cost.checkpoint_s
    if found.round is not None:  # of whose saves no incident tells yet
        here = [word.checkpoint_s for word in found.progress.values() if word.round == found.round.number]
        lost_s += max(here, default=checkpoint_s_by_round(found.ledger).get(found.round.number, 0.0))
    return min(1.0, max(0.0, 1.0 - lost_s / passed_s)) if passed_s > 0 else None
