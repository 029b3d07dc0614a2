"""A job that faults are done to: its nodes, each with a way of its own to etcd, and its etcd."""

from __future__ import annotations

import abc
import contextlib
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from spotrun import events
from spotrun.rendezvous.embedded import EmbeddedEtcd
from tests.etcd_servers import Proxy
from tests.fault.surroundings import CLOCK, Surroundings
from tests.jobs import Node, RealJob, descendants
from tests.networks import Host
from tests.other_version import OtherSpotrun, other_version
from tests.waiting import until

SCRIPT = Path(__file__).parents[1] / "scripts" / "api_steps.py"
STEP_S = 0.05
SIZE = 3  # nodes of a job
ENDLESS = 10**9  # steps: the job ends when it is told to
AGAIN_S = 60.0  # by when a job makes steps again: a new node imports torch meanwhile
JOB_REFUSES = 4


@dataclass(frozen=True)
class Place:
    """One machine."""

    name: str
    pid: int  # of its agent
    events_file: Path
    proxy: Proxy
    notice: Path
    host: Host | None  # None: all share this machine's network
    clock: Path  # seconds that its wall clock is ahead

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in told(self.events_file, kind) if event["node"] == self.name]

    def agent(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [psutil.Process(self.pid)]
        return []

    def workers(self) -> list[psutil.Process]:
        started = self.events("workers_started")
        found = []
        for pid in started[-1]["pids"] if started else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if str(SCRIPT) in process.cmdline():
                    found.append(process)
        return found

    def everything(self) -> list[psutil.Process]:
        return [*self.agent(), *descendants(self.pid)]


def told(file: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in events.read(file) if event["kind"] == kind]


@dataclass
class Field(abc.ABC):
    """`places` are those that are meant to be alive."""

    job: RealJob
    etcd: EmbeddedEtcd
    etcd_data: Path
    kind: str
    around: Surroundings
    proxies: list[Proxy] = field(default_factory=list)
    _other: OtherSpotrun | None = None

    @property
    @abc.abstractmethod
    def places(self) -> list[Place]: ...

    @property
    @abc.abstractmethod
    def can(self) -> frozenset[str]:
        """What kinds of faults may need.

        apart: each node has a proxy, a notice file and a clock of its own; adds: nodes are started by the campaign;
        pool: pools do that; exec: by a program that can be harmed.
        """

    @abc.abstractmethod
    def add(self, name: str | None = None) -> Place | None:
        """A node, up to one more than the job takes: that one is a spare. None: others see to it."""

    @abc.abstractmethod
    def remove(self, place: Place) -> None:
        """It is gone, or will be."""

    @abc.abstractmethod
    def leave(self, place: Place) -> None:
        """It was told to go, and will end with 0."""

    @abc.abstractmethod
    def events(self, kind: str) -> list[dict[str, Any]]:
        """Those of all nodes that there ever were."""

    @abc.abstractmethod
    def end(self) -> dict[str, int]:
        """Tell the job to end; how each process that should be there ended."""

    def goes_on(self) -> None:
        """More steps are made, whatever the world."""
        before = self._lines()
        until("the job makes steps again", lambda: self._lines() >= before + 3, AGAIN_S)

    def _lines(self) -> int:
        return self.job.out.read_bytes().count(b"\n")

    @property
    def script(self) -> tuple[str, ...]:
        return (
            *(str(SCRIPT), str(self.job.out), str(ENDLESS), str(STEP_S), self.kind),
            *(str(self.checkpoints), str(self.job.dir / "audit")),
        )

    def other_version(self) -> OtherSpotrun:
        """A copy of the package that nodes of another version run."""
        if self._other is None:
            self._other = other_version(self.job.dir / "tmp-other-version")
        return self._other

    @property
    def checkpoints(self) -> Path:
        return self.job.dir / "ckpt"

    def any(self, pick: int) -> Place:
        there = self.places
        return there[pick % len(there)]

    def several(self, pick: int) -> list[Place]:
        there = self.places
        start = pick % len(there)
        return (there[start:] + there[:start])[: max(1, len(there) // 2)]

    def order(self) -> list[str]:
        """The nodes of the newest round that anybody told of."""
        formed = [event for place in self.places for event in place.events("round_formed")]
        return list(max(formed, key=lambda event: int(event["round"]))["nodes"]) if formed else []

    def rank_0(self) -> Place:
        names = {place.name: place for place in self.places}
        return next((names[name] for name in self.order() if name in names), self.places[0])

    def coordinator(self) -> Place:
        """The one that has been there longest, unless its lease was lost meanwhile."""
        return self.places[0]


@dataclass
class Nodes(Field):
    """A job whose nodes the campaign starts itself."""

    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _places: list[Place] = field(default_factory=list)
    _leaving: list[Place] = field(default_factory=list)
    _made: list[tuple[Place, Node]] = field(default_factory=list)

    @property
    def places(self) -> list[Place]:
        return self._places

    @property
    def can(self) -> frozenset[str]:
        return self.around.can | {"apart", "adds"}

    def add(self, name: str | None = None) -> Place:
        host = self._free_host()
        proxy = self.stack.enter_context(Proxy(self.etcd, host=self.around.address))
        count = len(self.job.nodes)
        notice = self.job.dir / f"notice-{count}"
        clock = self.job.dir / f"clock-{count}"
        clock.write_text("0")
        node = self.job.start(
            name or f"n{count}",
            script=self.script,
            flags=(f"--rdzv-endpoint={proxy.endpoint}",),
            env={"SPOTRUN_NOTICE_FILE": str(notice), "PYTHONPATH": str(CLOCK), "CAMPAIGN_CLOCK": str(clock)},
            within=host.command([]) if host is not None else (),
        )
        place = Place(node.node_id, node.pid, node.events_file, proxy, notice, host, clock)
        self._made.append((place, node))
        self._places.append(place)
        self.proxies.append(proxy)
        return place

    def _free_host(self) -> Host | None:
        taken = {place.host for place, node in self._made if node.process.poll() is None}
        return next((host for host in self.around.hosts if host not in taken), None)

    def remove(self, place: Place) -> None:
        self._places.remove(place)

    def leave(self, place: Place) -> None:
        self._places.remove(place)
        self._leaving.append(place)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for node in self.job.nodes for event in node.events(kind)]

    def end(self) -> dict[str, int]:
        exits = {}
        self.job.out.with_suffix(".end").touch()
        end_s = time.monotonic() + 2 * AGAIN_S
        # A node that was told to go before its agent could listen died of it.
        heard = [place for place in self._leaving if place.events("round_formed")]
        expected = [*self._places, *heard]
        for place, node in self._made:
            if place not in expected:
                continue
            try:
                code = node.process.wait(max(0.1, end_s - time.monotonic()))
                came_too_late = code == JOB_REFUSES and not place.events("round_formed")
                exits[place.name] = 0 if came_too_late else code
            except subprocess.TimeoutExpired:
                exits[f"{place.name} (still runs)"] = -1
        return exits
