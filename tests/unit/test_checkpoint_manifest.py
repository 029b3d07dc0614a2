from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotrun.checkpoint.manifest import FileRecord, Manifest, decode, directory_name, encode, parse_name, wrong_sizes
from spotrun.errors import CheckpointError

FILES = (FileRecord("__0_0.distcp", 100, 0xDEADBEEF), FileRecord(".metadata", 10, 1))
MANIFEST = Manifest(120, 3, 1, 2, "llm", "abc", 4, FILES, "2.13.0", "0.1.0", 1.5, {"sample": 7, "nested": [1, None]})


def test_a_manifest_comes_back_as_it_was() -> None:
    assert MANIFEST.name == "step-00000120-r3-a1"
    assert decode(encode(MANIFEST), MANIFEST.name) == MANIFEST


@given(st.integers(0, 10**12), st.integers(0, 10**6), st.integers(1, 99))
def test_a_name_says_step_round_and_attempt(step: int, round: int, attempt: int) -> None:
    assert parse_name(directory_name(step, round, attempt)) == (step, round, attempt)


@pytest.mark.parametrize("name", ["", "step-1-r1-a1", "step-00000001-r1-a1.old", "x-step-00000001-r1-a1", "lost+found"])
def test_other_directories_are_no_checkpoints(name: str) -> None:
    assert parse_name(name) is None


@given(st.integers(0, len(encode(MANIFEST)) - 1), st.integers(0, 7))
def test_no_flipped_bit_gives_another_manifest(position: int, bit: int) -> None:
    data = bytearray(encode(MANIFEST))
    data[position] ^= 1 << bit
    with contextlib.suppress(CheckpointError):
        assert decode(bytes(data), MANIFEST.name) == MANIFEST  # a space that became another space


@given(st.integers(0, len(encode(MANIFEST)) - 1))
def test_a_torn_manifest_is_none(length: int) -> None:
    with pytest.raises(CheckpointError, match="is not a manifest"):
        decode(encode(MANIFEST)[:length], MANIFEST.name)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff", b'{"v": 1}', b'{"v": 1, "crc32": 5}'])
def test_what_is_no_manifest_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=MANIFEST.name):
        decode(data, MANIFEST.name)


def test_a_manifest_of_a_later_version_is_named_so() -> None:
    data = json.dumps(json.loads(encode(MANIFEST)) | {"v": 2}).encode()
    with pytest.raises(CheckpointError, match="has version 2, this spotrun reads 1"):
        decode(data, MANIFEST.name)


def test_a_manifest_in_another_directory_does_not_count() -> None:
    with pytest.raises(CheckpointError, match="belongs to step-00000120-r3-a1"):
        decode(encode(MANIFEST), "step-00000130-r3-a1")


def test_a_manifest_cannot_name_files_elsewhere() -> None:
    evil = replace(MANIFEST, files=(*FILES, FileRecord("../other", 1, 1)))
    with pytest.raises(CheckpointError, match="outside its directory"):
        decode(encode(evil), evil.name)


def test_extra_state_that_is_not_json_is_refused_when_saving() -> None:
    with pytest.raises(CheckpointError, match="must be JSON"):
        encode(replace(MANIFEST, extra={"x": object()}))


def test_files_of_other_sizes_are_named() -> None:
    present = {"__0_0.distcp": 99, "begin.json": 5}
    assert wrong_sizes(MANIFEST, present) == ["__0_0.distcp has 99 bytes, not 100", ".metadata is missing"]
    assert wrong_sizes(MANIFEST, {"__0_0.distcp": 100, ".metadata": 10}) == []


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({"step": 10}, {"step": 11}),
        ({"round": 2, "step": 20}, {"round": 3, "step": 11}),  # the older round did not know that it was over
        ({"generation": 1, "round": 7, "step": 10}, {"generation": 2, "round": 1, "step": 11}),  # rounds started over
        ({"attempt": 1}, {"attempt": 2}),
    ],
)
def test_the_newer_checkpoint_is_told_by_the_manifests_alone(older: dict[str, int], newer: dict[str, int]) -> None:
    assert replace(MANIFEST, **older).order < replace(MANIFEST, **newer).order  # type: ignore[arg-type]
