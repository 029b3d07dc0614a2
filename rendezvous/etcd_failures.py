"""What a failed request to etcd means: whether it can have been carried out, and whether to try again. Pure."""

from __future__ import annotations

import enum

import grpc

from spotrun.errors import EtcdError, EtcdRefused, LeaseLost


class Verdict(enum.Enum):
    NOT_DONE = "etcd did not carry it out; any endpoint may be asked again"
    UNKNOWN = "etcd may have carried it out"
    LOGIN = "etcd did not carry it out, because the token is no longer valid"


# Of a request that never left, from gRPC; of one turned away before it was proposed to the cluster, from etcd.
_NOT_DONE = (
    "failed to connect",
    "connections to all backends failing",
    "dns resolution failed",
    "etcdserver: no leader",
    "raft proposal dropped",
    "etcdserver: too many requests",
)
_LOGIN = ("invalid auth token", "revision of auth store is old")
_TRANSIENT = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.ABORTED,
)


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    code: grpc.StatusCode = getattr(error, "code", lambda: grpc.StatusCode.UNKNOWN)()
    return code


def details_of(error: grpc.RpcError) -> str:
    """What gRPC or etcd says, without gRPC's preamble about all addresses."""
    return _text(error).rpartition("last error: ")[2].strip()


def _text(error: grpc.RpcError) -> str:
    return str(getattr(error, "details", lambda: error)() or "")


def judge(error: grpc.RpcError, endpoint: str, does: str) -> Verdict | EtcdError:
    """What follows from `error`: a verdict where trying again can help, else the error to raise."""
    code, details = code_of(error), details_of(error)
    text = _text(error).lower()
    if any(sign in text for sign in _LOGIN):
        return Verdict.LOGIN
    if any(sign in text for sign in _NOT_DONE):
        return Verdict.NOT_DONE
    if code in _TRANSIENT:
        return Verdict.UNKNOWN
    if "requested lease not found" in text:
        return LeaseLost("etcd says that the lease is gone: it expired or was revoked.")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return EtcdRefused(f"{endpoint} speaks gRPC but is no etcd v3: check --rdzv-endpoint.")
    if "user name is empty" in text:
        return EtcdRefused(f"etcd at {endpoint} asks for a user and a password: give both.")
    if "authentication failed" in text:
        return EtcdRefused(f"etcd at {endpoint} does not take this user with this password.")
    if "database space exceeded" in text:
        return EtcdRefused(f"etcd at {endpoint} is full ({details}): compact and defragment it, or raise its quota.")
    return EtcdRefused(f"etcd at {endpoint} refused {does}: {details} ({code.name}).")
