"""A job whose nodes two pools keep up: one is active, the other in reserve. Machines are of a script, or local."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from spotrun.errors import EtcdError
from spotrun.pool.pool import LEASE_TTL_S
from spotrun.rendezvous.keys import Keys
from tests.etcd_servers import Proxy, client_of
from tests.fault.field import SIZE, Field, Place, told
from tests.fault.history import Fleet, Seen
from tests.fault.kind import TTL_S
from tests.waiting import until

KINDS_OF_POOL = ("exec", "local")
MOST = SIZE + 1
PRICES = {"near": 1.0, "far": 2.0}  # in the order in which they are asked
MAX_PRICE = 7.0  # four machines of the dearer place are too dear
PATIENCE_S = 30.0  # an agent imports torch meanwhile, on a machine that others keep busy
# Until as many nodes as are wanted train again: another pool takes over, a machine is given up that does not come, its
# place is left alone for a while, and the next one starts.
AGAIN_S = 150.0
LOOK_S = 0.2
END_S = 120.0
FLEET = Path(__file__).with_name("fleet.py")


@dataclass
class Keeper:
    """One process of `spotrun pool`."""

    process: subprocess.Popen[bytes]
    proxy: Proxy


@dataclass
class Pools(Field):
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    provider: str = "exec"
    keepers: list[Keeper] = field(default_factory=list)
    _slots: list[Place] = field(default_factory=list)  # the machine that a place would be on; without a name
    _seen: list[Seen] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    @property
    def state(self) -> Path:
        return self.job.dir / "fleet"

    @property
    def can(self) -> frozenset[str]:
        return (
            (self.around.can - {"hosts"} | {"pool"})
            if self.provider == "local"
            else self.around.can | {"pool", "apart", "exec"}
        )

    def start(self) -> None:
        (self.state / "machines").mkdir(parents=True)
        self.job.scratch.mkdir(exist_ok=True)
        hosts = self.around.hosts[:-1] or (None,) * (2 * MOST)  # on the last one nothing runs
        slots = []
        for host in hosts if self.provider == "exec" else ():
            proxy = self._proxy()
            self._slots.append(Place("", 0, self.state, proxy, self.state, host, self.state))
            slots.append({"within": host.command([]) if host is not None else [], "endpoint": proxy.endpoint})
        (self.state / "slots.json").write_text(json.dumps(slots))
        watcher = threading.Thread(target=self._watch)
        watcher.start()
        self.stack.callback(watcher.join)
        self.stack.callback(self._ended.set)
        self.stack.callback(self._stop)
        for _ in range(2):
            self.add_keeper()

    def _proxy(self) -> Proxy:
        self.proxies.append(self.stack.enter_context(Proxy(self.etcd, host=self.around.address)))
        return self.proxies[-1]

    # -- the pools

    def add_keeper(self) -> None:
        proxy = self._proxy()
        provider = self.provider if self.provider == "local" else f"exec:{sys.executable} -S {FLEET} {self.state}"
        command = [
            *(sys.executable, "-m", "spotrun", "pool", f"--rdzv-endpoint={proxy.endpoint}"),
            *(f"--rdzv-id={self.job.run_id}", f"--want={SIZE}", f"--max={MOST}", f"--provider={provider}"),
            *(f"--place={name}={price:g}" for name, price in PRICES.items()),
            *(f"--max-price={MAX_PRICE:g}", f"--patience={PATIENCE_S:g}", f"--nnodes={self.job.nnodes}"),
            *(f"--lease-ttl={TTL_S:g}", "--max-restarts=1000", "--join-window=2"),
            *(f"--events={self.state / 'all'}.events", *self.script),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(self.job.scratch)}
        with (self.job.dir / f"pool-{len(self.proxies)}.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        self.keepers.append(Keeper(process, proxy))

    def active(self) -> Keeper:
        """Where none is, or etcd does not say so: the one that has been there longest."""
        said = ""
        with contextlib.suppress(EtcdError), client_of(self.etcd, timeout_s=1.0) as client:
            kv = client.get(Keys(self.job.run_id).pool)
            said = kv.value.decode() if kv is not None else ""
        return next((it for it in self.keepers if f"process {it.process.pid}" in said), self.keepers[0])

    def kill(self, keeper: Keeper) -> None:
        self.keepers.remove(keeper)
        keeper.process.kill()
        keeper.process.wait()

    # -- its machines

    def machines(self) -> dict[str, psutil.Process]:
        """By name: all that there are, whether they ever join or not."""
        found: dict[str, psutil.Process] = {}
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                words = process.cmdline()
                is_one = words[1:4] == ["-m", "spotrun", "run"] or str(self.state) in words[-1:]
                if not is_one or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                for name in (word[10:] for word in words[3:5] if word.startswith("--node-id=")):
                    # One that it forks is called the same until it runs another program.
                    if name not in found or process.create_time() < found[name].create_time():
                        found[name] = process
        return dict(sorted(found.items(), key=lambda one: one[1].create_time()))

    @property
    def places(self) -> list[Place]:
        there = until("a machine", self._places, AGAIN_S)
        return there

    def _places(self) -> list[Place]:
        found = []
        for name, process in self.machines().items():
            with contextlib.suppress(psutil.NoSuchProcess, OSError, ValueError):
                if process.cmdline()[1:3] == ["-m", "spotrun"]:
                    found.append(self._place(name, process.pid))
        return found

    def _place(self, name: str, pid: int) -> Place:
        if self.provider == "local":
            return Place(name, pid, self.state / "all.events", self.proxies[0], self.state, None, self.state)
        slot = self._slots[json.loads((self.state / "machines" / name).read_text())["slot"]]
        own = self.state / f"notice-{name}", slot.host, self.state / f"clock-{name}"
        return Place(name, pid, self.state / f"{name}.events", slot.proxy, *own)

    def add(self, name: str | None = None) -> None:
        """The pool does."""

    def remove(self, place: Place) -> None:
        """It will be found missing."""

    leave = remove

    # -- what is known of it

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for file in self.state.glob("*.events") for event in told(file, kind)]

    def goes_on(self) -> None:
        """As many train as are wanted."""
        before = self._lines()

        def made() -> bool:
            return self._lines() >= before + 3 and [line["world"] for line in self.job.steps()[-3:]] == [SIZE] * 3

        until("as many train as are wanted", made, AGAIN_S)

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_S):
            names = tuple(self.machines())
            if not self._seen or self._seen[-1].machines != names:
                self._seen.append(Seen(time.monotonic(), names))

    def fleet(self) -> Fleet:
        calls = list(self._calls())
        asked = {words[1]: PRICES[words[2]] for words in calls if words[0] == "ask"}
        released = tuple(words[1] for words in calls if words[0] == "release")
        return Fleet(SIZE, MOST, MAX_PRICE, AGAIN_S, tuple(self._seen), asked, released)

    def _calls(self) -> Iterator[list[str]]:
        if (self.state / "calls").exists():
            yield from map(json.loads, (self.state / "calls").read_text().splitlines())

    def end(self) -> dict[str, int]:
        """All that is left are its pools, and these see to their machines."""
        self.job.out.with_suffix(".end").touch()
        end_s = time.monotonic() + END_S + LEASE_TTL_S
        exits = {}
        for keeper in self.keepers:
            name = f"pool {keeper.process.pid}"
            try:
                exits[name] = keeper.process.wait(max(0.1, end_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                exits[f"{name} (still runs)"] = -1
        return exits

    def _stop(self) -> None:
        for keeper in list(self.keepers):
            self.kill(keeper)
        for process in self.machines().values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
