"""A job that faults are done to: its nodes, each with a way of its own to etcd, and its etcd."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from spotrun.rendezvous.embedded import EmbeddedEtcd
from tests.etcd_servers import Proxy
from tests.fault.surroundings import CLOCK, Surroundings
from tests.jobs import Node, RealJob, descendants
from tests.networks import Host
from tests.other_version import OtherSpotrun, other_version

SCRIPT = Path(__file__).parents[1] / "scripts" / "api_steps.py"
STEP_S = 0.05


@dataclass
class Place:
    """One machine."""

    node: Node
    proxy: Proxy
    notice: Path
    host: Host | None  # None: all share this machine's network
    clock: Path  # seconds that its wall clock is ahead

    @property
    def name(self) -> str:
        return self.node.node_id

    def agent(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [psutil.Process(self.node.pid)]
        return []

    def workers(self) -> list[psutil.Process]:
        found = []
        for pid in self.node.worker_pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if str(SCRIPT) in process.cmdline():
                    found.append(process)
        return found

    def everything(self) -> list[psutil.Process]:
        return [*self.agent(), *descendants(self.node.pid)]


@dataclass
class Field:
    """`places` are those that are meant to be alive."""

    job: RealJob
    etcd: EmbeddedEtcd
    etcd_data: Path
    kind: str
    most_steps: int
    size: int
    stack: contextlib.ExitStack
    around: Surroundings
    places: list[Place] = field(default_factory=list)
    leaving: list[Place] = field(default_factory=list)
    _made: list[Place] = field(default_factory=list)
    _other: OtherSpotrun | None = None

    def add(self, name: str | None = None) -> Place:
        """A node, up to one more than the job takes: that one is a spare."""
        host = self._free_host()
        proxy = self.stack.enter_context(Proxy(self.etcd, host=self.around.address))
        count = len(self.job.nodes)
        notice = self.job.dir / f"notice-{count}"
        clock = self.job.dir / f"clock-{count}"
        clock.write_text("0")
        script = (
            *(str(SCRIPT), str(self.job.out), str(self.most_steps), str(STEP_S), self.kind),
            *(str(self.checkpoints), str(self.job.dir / "audit")),
        )
        node = self.job.start(
            name or f"n{count}",
            script=script,
            flags=(f"--rdzv-endpoint={proxy.endpoint}",),
            env={"SPOTRUN_NOTICE_FILE": str(notice), "PYTHONPATH": str(CLOCK), "CAMPAIGN_CLOCK": str(clock)},
            within=host.command([]) if host is not None else (),
        )
        place = Place(node, proxy, notice, host, clock)
        self._made.append(place)
        self.places.append(place)
        return place

    def other_version(self) -> OtherSpotrun:
        """A copy of the package that nodes of another version run."""
        if self._other is None:
            self._other = other_version(self.job.dir / "tmp-other-version")
        return self._other

    @property
    def checkpoints(self) -> Path:
        return self.job.dir / "ckpt"

    def _free_host(self) -> Host | None:
        taken = {place.host for place in self._made if place.node.process.poll() is None}
        return next((host for host in self.around.hosts if host not in taken), None)

    def remove(self, place: Place) -> None:
        self.places.remove(place)

    def leave(self, place: Place) -> None:
        """It was told to go, and will end with 0."""
        self.places.remove(place)
        self.leaving.append(place)

    def any(self, pick: int) -> Place:
        return self.places[pick % len(self.places)]

    def several(self, pick: int) -> list[Place]:
        start = pick % len(self.places)
        return (self.places[start:] + self.places[:start])[: max(1, len(self.places) // 2)]

    def order(self) -> list[str]:
        """The nodes of the newest round that anybody told of."""
        formed = [event for place in self.places for event in place.node.events("round_formed")]
        return list(max(formed, key=lambda event: int(event["round"]))["nodes"]) if formed else []

    def rank_0(self) -> Place:
        names = {place.name: place for place in self.places}
        return next((names[name] for name in self.order() if name in names), self.places[0])

    def coordinator(self) -> Place:
        """The one that has been there longest, unless its lease was lost meanwhile."""
        return self.places[0]
