"""Real etcd servers for tests: one a session for those that leave it alone, private ones to kill, stop and restart.

from tests.etcd_servers import etcd, shared_etcd  # noqa: F401  (fixtures: import `shared_etcd` along with the others)
def test_x(etcd: EmbeddedEtcd) -> None: ...
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from spotrun.errors import EtcdError
from spotrun.rendezvous.embedded import EmbeddedEtcd
from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig, Watch, WatchEvent
from tests.waiting import until


def client_of(*servers: EmbeddedEtcd | Proxy, timeout_s: float = 10.0) -> EtcdClient:
    """A client of these servers; the time of an operation is generous, since tests share their machine."""
    return EtcdClient(EtcdConfig(tuple(server.endpoint for server in servers), timeout_s=timeout_s))


def unused_port() -> int:
    """A port that nothing listens on, out of the range from which the kernel takes those of connections."""
    for _ in range(100):
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no unused port")


def send_signal(server: EmbeddedEtcd, number: signal.Signals) -> None:
    """Send a signal to the server's process, and to no other."""
    assert server.pid is not None
    os.kill(server.pid, number)


def kill(server: EmbeddedEtcd) -> None:
    """SIGKILL; `start` then goes on with the same data on the same port."""
    send_signal(server, signal.SIGKILL)
    server.end_process()


@contextlib.contextmanager
def stopped(server: EmbeddedEtcd) -> Iterator[None]:
    """SIGSTOP: the server's connections stay open, but nothing is answered. Heals afterwards."""
    send_signal(server, signal.SIGSTOP)
    tasks = Path(f"/proc/{server.pid}/task")
    until("all its threads have stopped", lambda: all(_state(task) == "T" for task in tasks.iterdir()))
    try:
        yield
    finally:
        send_signal(server, signal.SIGCONT)


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def admin(server: EmbeddedEtcd, path: str, **body: Any) -> Any:
    """What the client under test does not offer, in JSON: `admin(server, "kv/compaction", revision=7)`."""
    link = http.client.HTTPConnection(server.host, server.port, timeout=10)
    try:
        link.request("POST", f"/v3/{path}", json.dumps(body))
        answer = link.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        return json.loads(content)
    finally:
        link.close()


def add_user(server: EmbeddedEtcd, name: str, password: str, prefix: str | None = None) -> None:
    """A user who may read and write below `prefix`, or (None) may do everything."""
    role = "root" if prefix is None else f"role-of-{name}"
    admin(server, "auth/user/add", name=name, password=password)
    admin(server, "auth/role/add", name=role)
    if prefix is not None:
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        permission = {"permType": "READWRITE", "key": _base64(prefix), "range_end": _base64(end)}
        admin(server, "auth/role/grant", name=role, perm=permission)
    admin(server, "auth/user/grant", user=name, role=role)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@dataclass
class Told:
    """What a watch told: give `on_event` and `on_error` to the watch."""

    events: list[WatchEvent] = field(default_factory=list)
    errors: list[EtcdError] = field(default_factory=list)

    def watch(self, client: EtcdClient, key: str, start_revision: int, *, prefix: bool = False) -> Watch:
        return client.watch(
            key,
            prefix=prefix,
            start_revision=start_revision,
            on_event=self.events.append,
            on_error=self.errors.append,
        )

    @property
    def values(self) -> list[str]:
        return [event.value.decode() for event in self.events]


class Cluster:
    """Several members of one etcd cluster, each of them a process to do anything to."""

    def __init__(self, size: int, folder: Path) -> None:
        peers = {f"m{i}": f"http://127.0.0.1:{unused_port()}" for i in range(size)}
        self.members = [
            EmbeddedEtcd(
                folder / name,
                port=unused_port(),
                extra_args=(  # a later flag replaces an earlier one
                    f"--name={name}",
                    f"--listen-peer-urls={url}",
                    f"--initial-advertise-peer-urls={url}",
                    "--heartbeat-interval=100",  # etcd's own defaults
                    "--election-timeout=1000",
                    "--initial-cluster=" + ",".join(f"{n}={u}" for n, u in peers.items()),
                ),
            )
            for name, url in peers.items()
        ]

    def __enter__(self) -> Cluster:
        try:
            with ThreadPoolExecutor(len(self.members)) as pool:  # none serves before most are there
                list(pool.map(lambda member: member.start(), self.members))
        except BaseException:  # an interrupt too: no member may stay behind
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        for member in self.members:
            if member.pid is not None:
                kill(member)
            member.stop()

    def leader(self) -> EmbeddedEtcd:
        """The member that leads now."""

        def leading() -> EmbeddedEtcd | None:
            for member in self.members:
                status = admin(member, "maintenance/status")
                if status["header"]["member_id"] == status.get("leader"):
                    return member
            return None

        leader = until("a leader", leading)
        assert leader is not None
        return leader

    def at(self, endpoint: str | None) -> EmbeddedEtcd:
        """The member behind an endpoint."""
        return next(member for member in self.members if member.endpoint == endpoint)


class TlsEtcd(EmbeddedEtcd):
    """A server that speaks TLS and asks every client for a certificate."""

    def __init__(self, authority: Path, cert: Path, key: Path) -> None:
        self._context = ssl.create_default_context(cafile=authority)
        self._context.load_cert_chain(cert, key)
        super().__init__(
            extra_args=(
                f"--cert-file={cert}",
                f"--key-file={key}",
                "--client-cert-auth",
                f"--trusted-ca-file={authority}",
            )
        )

    def _command(self, binary: Path, folder: Path) -> list[str]:
        return [
            word.replace(f"http://{self.endpoint}", f"https://{self.endpoint}")
            for word in super()._command(binary, folder)
        ]

    def _serves(self) -> bool:
        link = http.client.HTTPSConnection(self.host, self.port, timeout=1.0, context=self._context)
        try:
            link.request("GET", "/health")
            return b'"true"' in link.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            link.close()


@dataclass
class Proxy:
    """A TCP proxy in front of a server, to lose what is said on the way."""

    target: EmbeddedEtcd
    port: int = 0
    host: str = "127.0.0.1"
    delay_s: float = 0.0  # each piece that passes is held so long
    _muted: threading.Event = field(default_factory=threading.Event)
    _refusing: bool = False
    _pairs: list[tuple[socket.socket, socket.socket]] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Proxy:
        self._listener = socket.create_server((self.host, 0))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._refusing = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"

    def mute(self) -> None:
        """From now on what the server answers is lost; what it is sent arrives."""
        self._muted.set()

    def unmute(self) -> None:
        """New connections work again; cut the old ones, which have lost bytes."""
        self._muted.clear()
        self.cut()

    def cut(self) -> None:
        """Break all connections."""
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """While within, the server cannot be reached through here."""
        self._refusing = True
        self.cut()
        try:
            yield
        finally:
            self._refusing = False

    def _start(self, work: Any, *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._refusing:
                    raise ConnectionRefusedError
                server = socket.create_connection((self.target.host, self.target.port))
            except OSError:
                client.close()
                continue
            self._pairs.append((client, server))
            self._start(self._pump, client, server, False)
            self._start(self._pump, server, client, True)

    def _pump(self, source: socket.socket, sink: socket.socket, may_mute: bool) -> None:
        with contextlib.suppress(OSError), source:
            while piece := source.recv(65536):
                if self.delay_s:
                    time.sleep(self.delay_s)
                if not (may_mute and self._muted.is_set()):
                    sink.sendall(piece)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="session")
def shared_etcd(nothing_left_behind: None) -> Iterator[EmbeddedEtcd]:
    """One server for all tests; being older than any test, it is not taken for a process that one left behind."""
    with EmbeddedEtcd() as server:
        yield server


@pytest.fixture
def etcd(shared_etcd: EmbeddedEtcd) -> EmbeddedEtcd:
    """The server of the session: use keys of your own, and leave it running."""
    return shared_etcd


@pytest.fixture
def etcd_client(etcd: EmbeddedEtcd) -> Iterator[EtcdClient]:
    with client_of(etcd) as client:
        yield client


@pytest.fixture
def private_etcd(tmp_path: Path) -> Iterator[EmbeddedEtcd]:
    """A server of the test's own, with its data on disk: what it is said to survive, it may be subjected to."""
    with EmbeddedEtcd(tmp_path / "etcd", port=unused_port()) as server:
        yield server


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three members."""
    with Cluster(3, tmp_path) as cluster:
        yield cluster
