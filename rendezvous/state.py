"""What is written to etcd: frozen records, and their JSON form with a version.

Whatever comes out of etcd may have been written by anyone: `decode` checks every type and size and raises BadRecord.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from spotrun.errors import BadRecord, OtherVersion
from spotrun.rendezvous.keys import is_node_id

PROTOCOL = 1
MAX_BYTES = 1 << 20  # etcd's own limit for a request is 1.5 MiB
MAX_TEXT = 16_384
MAX_NPROC = 4096  # workers of a node: far beyond any machine
PORTS = 1 << 16
R = TypeVar("R")
# What no terminal or file is given: control characters besides tab and line feed, and halves of a surrogate pair.
_UNFIT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Job:
    """What all nodes must agree on. Nodes may differ in nproc, as with torchrun: the round record holds each one's."""

    min_nodes: int
    max_nodes: int
    max_restarts: int
    regions: str = ""  # where nodes may be: patterns, separated by commas; empty: anywhere


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive; written under its lease, so that its key goes when the node does."""

    node_id: str
    incarnation: str  # a nonce for each start: tells a node that came back from the one that went
    address: str
    agent_port: int  # held open while the agent lives: refused means dead
    store_port: int  # listening, never used before: the store of the next round, should this node become rank 0
    nproc: int
    last_round: int = 0  # the newest round it has seen, so that numbers go on rising after etcd has lost its data
    labels: dict[str, str] = field(default_factory=dict)
    restarts: int = 0  # charged so far, as it has seen: what etcd loses is not given to the job again
    snapshot_port: int = 0  # where nodes that stand by fetch what its workers keep in memory; 0: nowhere
    snapshot_key: str = ""  # who has it may


@dataclass(frozen=True, slots=True)
class Member:
    node_id: str
    incarnation: str
    nproc: int


@dataclass(frozen=True, slots=True)
class Round:
    """Who trains together. Members stand in rank order."""

    number: int
    members: tuple[Member, ...]
    store_address: str
    store_port: int
    kind: str  # start, lost, drained, joined, failed, hung or rejoined: why the round was formed
    reason: str
    restarts: int  # worker failures charged to the job so far
    formed_by: str  # incarnation of the coordinator
    unplanned: int = 0  # the newest round that began without the last step of the one before it being agreed

    PLANNED: ClassVar[tuple[str, ...]] = ("joined", "drained")

    def index(self, node_id: str, incarnation: str) -> int | None:
        """The group rank of that node, or None where it is not in this round."""
        for rank, member in enumerate(self.members):
            if member.node_id == node_id and member.incarnation == incarnation:
                return rank
        return None

    def first_rank(self, group_rank: int) -> int:
        """The global rank of the first worker of the node with that group rank."""
        return sum(member.nproc for member in self.members[:group_rank])

    @property
    def world_size(self) -> int:
        return sum(member.nproc for member in self.members)


@dataclass(frozen=True, slots=True)
class Failure:
    """One worker that failed."""

    rank: int
    exit_code: int
    message: str
    address: str
    peer_loss: bool  # what it says is that another rank went away
    error_file: str = ""
    log_file: str = ""  # of its stderr, where that goes to one
    said: bool = False  # it ended with an error of spotrun.errors: `message` is a sentence, `exit_code` documented
    final: bool = False  # and starting it again cannot help


@dataclass(frozen=True, slots=True)
class Stall:
    """One worker of a group that makes no steps any more."""

    rank: int
    step: int  # the last that it made
    place: str  # of the script, where its main thread stands; empty: it gave no answer
    waits: bool  # there it waits for other ranks
    address: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a node says of its workers in a round: failed, succeeded, hung, or rejoin (it asks for a new round)."""

    node_id: str
    incarnation: str
    round: int
    kind: str
    failures: tuple[Failure, ...] = ()
    stalls: tuple[Stall, ...] = ()


@dataclass(frozen=True, slots=True)
class Drain:
    """A node that is to leave. `seconds_left` counts from the writing, by the writer's clock."""

    node_id: str
    seconds_left: float
    source: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A node that is kept out until somebody says otherwise."""

    node_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a node's workers have come in a round. Steps count from the beginning of the training."""

    node_id: str
    incarnation: str
    round: int
    steps: tuple[int, ...]  # made by each worker, by local rank
    samples: int  # consumed by the whole job
    step_time_s: float  # the median of the last hundred
    loss: float | None  # as the script last told it
    last_snapshot_step: int  # in memory
    last_commit_step: int  # the newest whole checkpoint that this node knows of
    busy: bool = False  # a worker said that it does something else than stepping: an evaluation, the last save
    data_share: float = 0.0  # of the time of a step, that its slowest worker waited for data ...
    checkpoint_share: float = 0.0  # ... that snapshots and saves took ...
    communication_share: float | None = None  # ... that gradients were reduced; None: not known
    last_replica_step: int = 0  # of the newest snapshot that would outlive this node; 0: there is none
    checkpoint_s: float = 0.0  # that snapshots and saves have kept the slowest worker from going on in this round

    @property
    def step(self) -> int:
        """Made by all workers of the node."""
        return min(self.steps, default=0)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was whole when this was written."""

    step: int
    round: int
    name: str  # of its directory


@dataclass(frozen=True, slots=True)
class GpuVitals:
    """One GPU that workers may use."""

    index: int
    busy_share: float
    memory_bytes: int
    memory_used_bytes: int
    temperature_c: int


@dataclass(frozen=True, slots=True)
class Vitals:
    """How a node's machine is."""

    node_id: str
    load: float  # processes that want a processor, for each processor; the mean of a minute
    cpu_share: float
    memory_bytes: int  # of the host, or of our cgroup where that is tighter
    memory_free_bytes: int
    gpus: tuple[GpuVitals, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the job ended."""

    state: str  # succeeded, failed or stopped
    reason: str
    node_id: str
    failures: tuple[Failure, ...] = ()


def encode(record: Any) -> bytes:
    """The JSON form of a record of this module."""
    return json.dumps({"v": PROTOCOL, **_plain(record)}, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    """What `dataclasses.asdict` gives, without its deep copies: a round of a thousand members is encoded in 3 ms."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in _names(value.__class__)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


@functools.lru_cache(maxsize=64)
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(kind))


@functools.lru_cache(maxsize=256)
def decode(kind: type[R], value: bytes) -> R:
    """The record of class `kind` that `value` holds; raises BadRecord where it does not."""
    if len(value) > MAX_BYTES:
        raise BadRecord(f"A {kind.__name__} record of {len(value)} bytes is larger than {MAX_BYTES}.")
    try:
        data = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"A {kind.__name__} record is not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("v") != PROTOCOL:
        version = f"{data.get('v') if isinstance(data, dict) else None!r:.40}"
        raise OtherVersion(
            f"A {kind.__name__} record has protocol version {version}, this spotrun speaks {PROTOCOL}: "
            "run the same spotrun on every node.",
            version,
        )
    del data["v"]
    record = typing.cast(R, _build(kind, data, kind.__name__))
    _check(record)
    return record


def readable(kind: type[R], values: Iterable[bytes]) -> list[R]:
    """The records among `values`; what is none is left out."""
    records = []
    for value in values:
        with contextlib.suppress(BadRecord):
            records.append(decode(typing.cast("Any", kind), value))
    return records


def _check(record: Any) -> None:
    """Raises BadRecord for values that no node writes, and that nothing could be made of."""
    match record:
        case Job(min_nodes=low, max_nodes=high) if not 1 <= low <= high:
            raise BadRecord(f"A Job record asks for {low} to {high} nodes.")
        case Node(node_id=name) if not is_node_id(name):
            raise BadRecord(f"A Node record is of {name[:80]!r}, which is no node id.")
        case Node(agent_port=agent, store_port=store) if not (0 <= agent < PORTS and 0 <= store < PORTS):
            raise BadRecord(f"A Node record has the ports {agent} and {store}.")
        case Node(snapshot_port=port) if not 0 <= port < PORTS:
            raise BadRecord(f"A Node record has the port {port} for snapshots.")
        case Node(nproc=nproc) if not 1 <= nproc <= MAX_NPROC:
            raise BadRecord(f"A Node record has {nproc} workers.")
        case Round(number=number, store_port=store) if number < 1 or not 0 <= store < PORTS:
            raise BadRecord(f"A Round record has the number {number} and the port {store}.")
        case Round(members=members):
            names = {member.node_id for member in members}
            if not members or len(names) < len(members) or not all(map(is_node_id, names)):
                raise BadRecord("A Round record has no members, or one twice, or one that is no node id.")
            if not all(1 <= member.nproc <= MAX_NPROC for member in members):
                raise BadRecord(f"A Round record has a member without workers, or with more than {MAX_NPROC}.")


@functools.lru_cache(maxsize=64)
def _shape(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    hints = typing.get_type_hints(kind)
    needed = {
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    return hints, frozenset(needed)


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value`, as JSON gives it, as an instance of the annotation `kind`."""
    if hasattr(kind, "__dataclass_fields__"):
        hints, needed = _shape(kind)
        if not isinstance(value, dict) or not needed <= value.keys():
            raise BadRecord(f"{where} lacks fields.")
        # Unknown fields are let through, so that a newer peer of the same protocol may add some.
        return kind(**{name: _build(hints[name], v, f"{where}.{name}") for name, v in value.items() if name in hints})
    origin = typing.get_origin(kind)
    if origin is tuple and isinstance(value, list):
        inner = typing.get_args(kind)[0]
        return tuple(_build(inner, item, f"{where}[]") for item in value)
    if origin is dict and isinstance(value, dict):
        if not all(isinstance(k, str) and isinstance(v, str) for k, v in value.items()):
            raise BadRecord(f"{where} is not a mapping of text to text.")
        return {_fit(k): _fit(v) for k, v in value.items()}
    if origin is types.UnionType:
        return None if value is None else _build(typing.get_args(kind)[0], value, where)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62:
        return value
    if kind is str and isinstance(value, str) and len(value) <= MAX_TEXT:
        return _fit(value)
    if kind is bool and isinstance(value, bool):
        return value
    raise BadRecord(f"{where} is {str(value)[:60]!r}, not {getattr(kind, '__name__', kind)}.")


def _fit(text: str) -> str:
    return text if text.isprintable() else _UNFIT.sub("\N{REPLACEMENT CHARACTER}", text)
