"""Who may use etcd and how the client says that it may not: TLS, users, wrong servers."""

# ruff: noqa: F811  (fixtures are imported, and then named as arguments)
from __future__ import annotations

import dataclasses
import http.server
import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from spotrun.errors import EtcdRefused, EtcdUnavailable, UsageError
from spotrun.rendezvous.embedded import EmbeddedEtcd
from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig
from spotrun.rendezvous.etcd_diagnosis import too_old
from spotrun.rendezvous.session import Session
from tests.etcd_servers import (  # noqa: F401
    TlsEtcd,
    Told,
    add_user,
    admin,
    client_of,
    etcd,
    kill,
    shared_etcd,
    unused_port,
)
from tests.waiting import until

PASSWORD = "correct-horse"


def refusal(config: EtcdConfig) -> str:
    with EtcdClient(config) as client, pytest.raises(EtcdRefused) as caught:
        client.check()
    return str(caught.value)


def test_check_tells_the_version(etcd: EmbeddedEtcd) -> None:
    with client_of(etcd) as client:
        assert client.check().startswith("3.")


# -- wrong servers


def test_an_http_server_is_recognised() -> None:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"127.0.0.1:{server.server_port}"
        try:
            message = refusal(EtcdConfig((endpoint,)))
        finally:
            server.shutdown()
            thread.join()
    assert endpoint in message and "not etcd" in message


def test_a_server_of_another_kind_is_recognised() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            while True:
                try:
                    link, _ = listener.accept()
                except OSError:
                    return
                with link:
                    link.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
        try:
            message = refusal(EtcdConfig((endpoint,)))
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert endpoint in message and "not etcd ('SSH-2.0-OpenSSH_9.6')" in message


def test_nobody_there_is_said_with_the_endpoints_and_the_code() -> None:
    endpoints = (f"127.0.0.1:{unused_port()}", f"127.0.0.1:{unused_port()}")
    with EtcdClient(EtcdConfig(endpoints, timeout_s=1.0)) as client, pytest.raises(EtcdUnavailable) as caught:
        client.check()
    message = str(caught.value)
    assert all(part in message for part in (*endpoints, "UNAVAILABLE", "refused"))


@pytest.mark.parametrize("version", ["3.3.27", "2.3.8", ""])
def test_too_old_a_version_is_refused(version: str) -> None:
    assert "3.4 or later" in str(too_old("etcd:2379", version))


@pytest.mark.parametrize("version", ["3.4.0", "3.5.1", "3.10.0", "4.0.0-rc.1"])
def test_a_later_version_will_do(version: str) -> None:
    assert too_old("etcd:2379", version) is None


# -- TLS


@dataclass
class Secured:
    server: EmbeddedEtcd
    config: EtcdConfig
    other_authority: Path


@pytest.fixture(scope="module")
def secured(nothing_left_behind: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    other.cert_pem.write_to_path(folder / "other.pem")
    leaf = authority.issue_cert("127.0.0.1")
    leaf.private_key_pem.write_to_path(folder / "key.pem")
    with open(folder / "cert.pem", "wb") as chain:
        for blob in leaf.cert_chain_pems:
            chain.write(blob.bytes())
    ca, cert, key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
    with TlsEtcd(ca, cert, key) as server:
        yield Secured(server, EtcdConfig((server.endpoint,), ca_cert=ca, cert=cert, key=key), folder / "other.pem")


def test_a_client_with_a_certificate_is_served(secured: Secured) -> None:
    with EtcdClient(secured.config) as client:
        assert client.check()
        told = Told()
        told.watch(client, "key", client.put("key", "1"))
        until("the event", lambda: told.values == ["1"])


def test_a_client_without_a_certificate_is_told_to_bring_one(secured: Secured) -> None:
    message = refusal(dataclasses.replace(secured.config, cert=None, key=None))
    assert secured.server.endpoint in message and "client certificate" in message


def test_a_client_that_does_not_trust_the_server_says_so(secured: Secured) -> None:
    message = refusal(dataclasses.replace(secured.config, ca_cert=secured.other_authority))
    assert secured.server.endpoint in message and "not to be trusted" in message


def test_a_client_without_tls_is_told_to_use_it(secured: Secured) -> None:
    assert "wants TLS" in refusal(EtcdConfig((secured.server.endpoint,)))


def test_a_server_without_tls_is_recognised(secured: Secured, etcd: EmbeddedEtcd) -> None:
    message = refusal(dataclasses.replace(secured.config, endpoints=(etcd.endpoint,)))
    assert etcd.endpoint in message and "does not speak TLS" in message


def test_a_certificate_that_cannot_be_read_is_named(secured: Secured, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing\.pem"):
        EtcdClient(dataclasses.replace(secured.config, ca_cert=tmp_path / "missing.pem"))
    with pytest.raises(UsageError, match="belong together"):
        EtcdClient(dataclasses.replace(secured.config, key=None))


def test_a_file_that_is_no_certificate_is_refused(secured: Secured, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    assert "TLS files" in refusal(dataclasses.replace(secured.config, ca_cert=tmp_path / "ca.pem"))


# -- users, without TLS


@pytest.fixture(params=[300, 1], ids=["", "short-lived-tokens"])
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmbeddedEtcd]:
    """A server with a user for everything, and one for what lies below /mine/. Its tokens live for `param` seconds."""
    port = unused_port()
    with EmbeddedEtcd(tmp_path / "etcd", port=port, extra_args=[f"--auth-token-ttl={request.param}"]) as server:
        add_user(server, "root", PASSWORD)
        add_user(server, "user", PASSWORD, "/mine/")
        admin(server, "auth/enable")
        yield server


def as_user(server: EmbeddedEtcd, user: str = "user", password: str = PASSWORD) -> EtcdConfig:
    return EtcdConfig((server.endpoint,), user=user, password=password, timeout_s=10.0)


lasting = pytest.mark.parametrize("guarded", [300], indirect=True)
short_lived = pytest.mark.parametrize("guarded", [1], indirect=True)


@lasting
def test_a_user_may_do_what_the_role_allows(guarded: EmbeddedEtcd) -> None:
    with EtcdClient(as_user(guarded)) as client:
        client.check()
        told, forbidden = Told(), Told()
        told.watch(client, "/mine/", client.put("/mine/a", "1"), prefix=True)
        forbidden.watch(client, "/other/", 1, prefix=True)
        until("the event", lambda: told.values == ["1"])
        assert isinstance(until("the refusal", lambda: forbidden.errors)[0], EtcdRefused)
        with pytest.raises(EtcdRefused, match="permission denied"):
            client.put("/other/a", "")
        client.put("/mine/a", "2")
        until("the second event", lambda: told.values == ["1", "2"])
        assert not told.errors


@lasting
def test_a_wrong_password_is_refused_and_shown_nowhere(guarded: EmbeddedEtcd, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    config = as_user(guarded, password="battery-staple")
    message = refusal(config)
    assert guarded.endpoint in message and "password" in message
    with EtcdClient(config) as client:
        told = Told()
        told.watch(client, "/mine/", 1)
        assert isinstance(until("the refusal", lambda: told.errors)[0], EtcdRefused)
    for text in (message, repr(config), caplog.text, str(told.errors[0])):
        assert "battery-staple" not in text


@lasting
def test_a_client_without_a_user_is_asked_for_one(guarded: EmbeddedEtcd) -> None:
    assert "user and a password" in refusal(EtcdConfig((guarded.endpoint,)))


def test_a_user_that_no_server_asks_for_does_no_harm(etcd: EmbeddedEtcd) -> None:
    with EtcdClient(as_user(etcd)) as client:
        assert client.check()


@short_lived
def test_a_login_that_expired_is_renewed_for_calls_watches_and_leases(guarded: EmbeddedEtcd) -> None:
    with EtcdClient(as_user(guarded)) as client, EtcdClient(as_user(guarded)) as writing:
        old, new = Told(), Told()
        session = Session(client, 20.0, lambda: None)
        start = client.put("/mine/a", "1", session.lease_id)
        old.watch(client, "/mine/a", start)
        until("the first event", lambda: old.values == ["1"])
        threading.Event().wait(3.0)  # a token that is not used lives for 1 s, give or take one
        new.watch(client, "/mine/a", start)  # on the stream that was opened with the old token
        until("the new watch works", lambda: new.values == ["1"], detail=lambda: str(new.errors))
        writing.put("/mine/a", "2", session.lease_id)
        until("both watches work", lambda: old.values == new.values == ["1", "2"])
        threading.Event().wait(3.0)
        assert client.get("/mine/a")
        assert not session.lost.is_set()
        session.close()


@lasting
def test_a_server_that_forgot_the_logins_is_told_them_again(guarded: EmbeddedEtcd) -> None:
    with EtcdClient(as_user(guarded)) as client:
        told = Told()
        session = Session(client, 4.0, lambda: None)
        told.watch(client, "/mine/a", client.put("/mine/a", "1", session.lease_id))
        until("the first event", lambda: told.values == ["1"])
        kill(guarded)
        guarded.start()  # simple tokens are kept in memory alone
        client.put("/mine/a", "2", session.lease_id)
        until("the second event", lambda: told.values == ["1", "2"], detail=lambda: str(told.errors))
        assert not session.lost.wait(5.0)
        session.close()
