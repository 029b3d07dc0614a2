"""Why an endpoint does not serve as etcd, found out without gRPC, whose own words for it help nobody."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spotrun.rendezvous.etcd_connections import EtcdConfig

OLDEST = (3, 4)  # the first that lets the client number its watches
LOOK_S = 0.7
_REQUEST = b"GET /version HTTP/1.0\r\nHost: etcd\r\n\r\n"  # etcd answers HTTP and gRPC on the same port


def diagnose(endpoint: str, config: EtcdConfig) -> str | None:
    """What is wrong with `endpoint`, as a sentence; None where nothing is wrong but that it may be down."""
    try:
        context = _context(config) if config.tls else None
    except ssl.SSLError as error:
        return f"The TLS files do not hold what they should ({_reason(error)}): check --etcd-cacert, -cert and -key."
    try:
        answer = _ask(endpoint, context)
    except (OSError, ValueError) as error:
        return _tls_trouble(endpoint, config, error) if config.tls else None
    if not config.tls and (b"HTTP request to an HTTPS server" in answer or (not answer and _speaks_tls(endpoint))):
        return f"{endpoint} wants TLS: give --etcd-cacert, and a client certificate and key if it asks for one."
    if answer and b'"etcdserver"' not in answer:
        return f"What answers at {endpoint} is not etcd ({_first_line(answer)}): check --rdzv-endpoint."
    version = re.search(rb'"etcdserver":\s*"([^"]*)"', answer)
    return too_old(endpoint, version[1].decode()) if version else None


def too_old(endpoint: str, version: str) -> str | None:
    """The sentence that refuses `version`, or None if it will do."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers >= OLDEST:
        return None
    return f"etcd at {endpoint} is of version {version or 'unknown'}: {'.'.join(map(str, OLDEST))} or later is needed."


def _context(config: EtcdConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=config.ca_cert)
    if config.cert and config.key:
        context.load_cert_chain(config.cert, config.key)
    return context


def _ask(endpoint: str, context: ssl.SSLContext | None) -> bytes:
    """What the endpoint says to a question for its version. Raises OSError, ssl.SSLError among them."""
    host, _, port = endpoint.rpartition(":")
    host = host.strip("[]")
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(socket.create_connection((host, int(port)), timeout=LOOK_S))
        if context is not None:
            link = stack.enter_context(context.wrap_socket(link, server_hostname=host))
        answer = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            link.sendall(_REQUEST)
            while len(answer) < 4096 and (piece := link.recv(4096)):
                answer += piece
        return answer


def _speaks_tls(endpoint: str) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        _ask(endpoint, context)
    except ssl.SSLError as error:
        return "alert" in _reason(error)  # it asked for a certificate of ours
    except (OSError, ValueError):
        return False
    return True


def _tls_trouble(endpoint: str, config: EtcdConfig, error: Exception) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"The certificate of etcd at {endpoint} is not to be trusted ({error.verify_message}): check --etcd-cacert."
        )
    reason = _reason(error) if isinstance(error, ssl.SSLError) else ""
    if "alert" in reason or "certificate required" in reason:
        what = "does not take this client certificate" if config.cert else "wants a client certificate"
        return f"etcd at {endpoint} {what} ({reason}): check --etcd-cert and --etcd-key."
    with contextlib.suppress(OSError, ValueError):
        if _ask(endpoint, None):  # etcd without TLS just hangs up on it
            return f"{endpoint} does not speak TLS: leave out the certificates, or check --rdzv-endpoint."
    return None


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "").lower().replace("_", " ")


def _first_line(answer: bytes) -> str:
    return repr(answer.split(b"\n")[0][:60].decode("latin-1").strip())
