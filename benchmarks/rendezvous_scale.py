"""The rendezvous at scale: N simulated agents on one machine, one real etcd.

    python -m spotrun.benchmarks.rendezvous_scale [--sizes 8,64,256,1000] [--processes 4] [--repeat 3] [--out FILE.json]

Each agent is a real `Membership` (lease, node key, watches, place in line, liveness port); many of them share a
process, its client and its watch stream, but no knowledge. Measured, in seconds of one monotonic clock:

    join   all agents start at once -> everyone has its rank and world size
    lost   SIGKILL of the process that holds one of them -> everyone has the round without it
    grow   one more agent starts -> everyone has the round with it, less the window in which joiners are gathered
    idle   CPU seconds a minute of all agents and of etcd while nothing happens
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

from spotrun.benchmarks.measurement import Measurement
from spotrun.rendezvous.embedded import EmbeddedEtcd
from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig
from spotrun.rendezvous.liveness import Liveness, listen
from spotrun.rendezvous.membership import Membership
from spotrun.rendezvous.reactor import Reactor
from spotrun.rendezvous.settings import GROW_WINDOW_S, Settings
from spotrun.rendezvous.state import Job, Node

TITLE = "Rendezvous: agents on one machine, one etcd"
HOW = (
    "Real memberships (lease, node key, watches, place in line, liveness port) in a few processes. join: all start at "
    "once, until everyone has its rank; lost: SIGKILL of one; grow: one more, less the window in which it is gathered."
)
FEATURED = ("join_s", "lost_s", "grow_s", "idle_agents_cpu_s_a_minute", "idle_etcd_cpu_s_a_minute")
IDLE_S = 10.0
DEADLINE_S = 120.0


class Agents:
    """The members that share this process; tells on stdout when all of them are in the same newer round."""

    def __init__(self, endpoint: str, run_id: str, size: int, most: int, names: list[str]) -> None:
        self.client = EtcdClient(EtcdConfig((endpoint,)))
        self.reactor = Reactor()
        self.liveness = Liveness()
        self.members: list[Membership] = []
        self.seen: dict[int, int] = {}
        self.told = 0
        self.next_port = 1
        job = Job(size, most, 0)
        for index, name in enumerate(names):
            agent = listen("127.0.0.1")
            self.liveness.serve(agent)
            node = Node(name, name, "127.0.0.1", agent.getsockname()[1], self._port(), 1)
            member = Membership(
                self.client,
                run_id,
                job,
                Settings(lease_ttl_s=10),
                node,
                lambda index=index: self._changed(index),  # type: ignore[misc]
                reactor=self.reactor,
                liveness=self.liveness,
            )
            self.members.append(member)

    def _port(self) -> int:
        self.next_port += 1
        return self.next_port

    def _changed(self, index: int) -> None:
        standing = self.members[index].standing()
        if standing.refused is not None:
            raise SystemExit(str(standing.refused))
        if standing.round is None or standing.group_rank is None:
            return
        if standing.group_rank == 0 and self.seen.get(index) != standing.round.number:
            self.members[index].announce(store_port=self._port())
        self.seen[index] = standing.round.number
        if len(self.seen) == len(self.members) and min(self.seen.values()) > self.told:
            self.told = min(self.seen.values())
            print(json.dumps({"round": self.told, "world": len(standing.round.members), "mono_s": time.monotonic()}))
            sys.stdout.flush()


def hold(argv: list[str]) -> None:
    """One process of agents: ready, go on a line from stdin, until stdin closes."""
    raise_limit()
    endpoint, run_id, size, most, names = argv[0], argv[1], int(argv[2]), int(argv[3]), argv[4].split(",")
    agents = Agents(endpoint, run_id, size, most, names)
    print("ready", flush=True)
    sys.stdin.readline()
    for member in agents.members:
        member.start()
    sys.stdin.read()


class Process:
    def __init__(self, endpoint: str, run_id: str, size: int, most: int, names: list[str]) -> None:
        command = [sys.executable, "-m", __spec__.name, "hold", endpoint, run_id, str(size), str(most), ",".join(names)]
        self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.popen.stdout is not None
        assert self.popen.stdout.readline() == "ready\n"

    def go(self) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write("go\n")
        self.popen.stdin.flush()

    def until_world(self, world: int) -> float:
        """When the last of its agents was in a round of that size."""
        assert self.popen.stdout is not None
        end_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < end_s:
            told = json.loads(self.popen.stdout.readline())
            if told["world"] == world:
                return float(told["mono_s"])
        raise SystemExit(f"no round of {world} within {DEADLINE_S:g} s")

    def cpu_s(self) -> float:
        times = psutil.Process(self.popen.pid).cpu_times()
        return times.user + times.system

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()


def measure(size: int, processes: int, run_id: str, etcd: EmbeddedEtcd) -> dict[str, float]:
    """One run; seconds, and CPU seconds a minute."""
    names = [f"n{i:04d}" for i in range(size)]
    shares = [names[1:][i::processes] for i in range(processes)]
    held = [Process(etcd.endpoint, run_id, size - 1, size, share) for share in shares if share]
    victim = Process(etcd.endpoint, run_id, size - 1, size, names[:1])
    newcomer = Process(etcd.endpoint, run_id, size - 1, size, ["newcomer"])
    everyone = [*held, victim, newcomer]
    try:
        began_s = time.monotonic()
        for process in (*held, victim):
            process.go()
        join_s = max(process.until_world(size) for process in (*held, victim)) - began_s
        before = sum(process.cpu_s() for process in held), etcd_cpu_s(etcd)
        time.sleep(IDLE_S)
        after = sum(process.cpu_s() for process in held), etcd_cpu_s(etcd)
        began_s = time.monotonic()
        victim.kill()
        lost_s = max(process.until_world(size - 1) for process in held) - began_s
        began_s = time.monotonic()
        newcomer.go()
        grow_s = max(process.until_world(size) for process in (*held, newcomer)) - began_s
    finally:
        for process in everyone:
            process.kill()
    a_minute = 60 / IDLE_S
    return {
        "join_s": join_s,
        "lost_s": lost_s,
        "grow_s": grow_s,
        "idle_agents_cpu_s_a_minute": (after[0] - before[0]) * a_minute,
        "idle_etcd_cpu_s_a_minute": (after[1] - before[1]) * a_minute,
    }


def etcd_cpu_s(etcd: EmbeddedEtcd) -> float:
    times = psutil.Process(etcd.pid).cpu_times()
    return times.user + times.system


def raise_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="8,64,256,1000")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    raise_limit()
    settings = {"processes": options.processes, "grow_window_s": GROW_WINDOW_S}
    document = Measurement("rendezvous_scale", TITLE, HOW, FEATURED, settings)
    print(f"{'agents':>6} {'join s':>8} {'lost s':>8} {'grow s':>8} {'idle CPU s/min':>15} {'etcd CPU s/min':>15}")
    for size in map(int, options.sizes.split(",")):
        for repeat in range(options.repeat):
            with EmbeddedEtcd() as etcd:
                document.add(measure(size, options.processes, f"scale-{size}-{repeat}", etcd), agents=size)
            document.write(options.out)
        runs = document.results[-1]["runs"]
        row = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        figures = (row["join_s"], row["lost_s"], row["grow_s"])
        idle = (row["idle_agents_cpu_s_a_minute"], row["idle_etcd_cpu_s_a_minute"])
        print(f"{size:>6} " + " ".join(f"{figure:>8.3f}" for figure in figures), *(f"{cpu:>15.2f}" for cpu in idle))


if __name__ == "__main__":
    if sys.argv[1:2] == ["hold"]:
        hold(sys.argv[2:])
    else:
        main()
