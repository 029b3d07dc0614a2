"""Keys and ranges of keys as etcd wants them: bytes."""

from __future__ import annotations


def encode_key(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def text_key(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def key_range(key: str, prefix: bool) -> tuple[bytes, bytes]:
    """`key` and `range_end` of a request: that key alone, or all keys that begin with it."""
    start = encode_key(key)
    if not prefix:
        return start, b""
    if not start:
        return b"\0", b"\0"  # all keys there are
    stem = start.rstrip(b"\xff")
    return start, stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"
