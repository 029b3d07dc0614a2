"""What every storage promises, over local directories, fsspec filesystems and a real S3 server."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from spotrun.checkpoint import Saver, Storage, list_checkpoints, load, open_storage
from spotrun.checkpoint.region import check_region
from spotrun.checkpoint.storage_fsspec import FsspecStorage
from spotrun.errors import CheckpointError
from tests.fakes.google_storage import BUCKETS, GoogleStorage
from tests.fakes.s3 import KEY, s3_server

# aiohttp sessions of s3fs live as long as the process; their finalisers warn when a fixture's filesystem is collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*unclosed.*:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)  # before each test's look at the processes
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


def s3_storage(endpoint: str) -> Storage:
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    options: dict[str, Any] = {"endpoint_url": endpoint, "default_block_size": 5 << 20, **KEY}
    fsspec.filesystem("s3", **options).mkdir(bucket)
    return open_storage(f"s3://{bucket}/run/checkpoints", **options)


@pytest.fixture(params=["local", "memory", "file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(tmp_path / "deep" / "down")
    if request.param == "memory":
        return open_storage(f"memory://{uuid.uuid4().hex}")
    if request.param == "file":  # a local directory through fsspec, as other filesystems are
        return FsspecStorage(fsspec.filesystem("file"), str(tmp_path), f"file://{tmp_path}")
    endpoint: str = request.getfixturevalue("endpoint")
    return s3_storage(endpoint)


def put(storage: Storage, path: str, data: bytes) -> None:
    with storage.create(path) as sink:
        sink.write(data)


def test_a_created_file_is_there_when_the_block_ends_and_not_before(storage: Storage) -> None:
    with storage.create("d/f") as sink:
        sink.write(b"one")
        sink.write(memoryview(b"two"))
        assert "f" not in storage.files("d")
    assert storage.files("d") == {"f": 6}
    assert storage.read("d/f") == b"onetwo"


@pytest.mark.parametrize("size", [10, 12_000_000])  # less than a part of an S3 upload, and more than two
def test_a_failed_write_leaves_nothing_under_the_final_name(storage: Storage, size: int) -> None:
    with pytest.raises(RuntimeError, match="stopped"), storage.create("d/f") as sink:
        sink.write(bytes(size))
        raise RuntimeError("stopped")
    assert storage.files("d") == {}
    assert not uploads(storage)
    put(storage, "d/f", b"again")
    assert storage.read("d/f") == b"again"


def uploads(storage: Storage) -> list[Any]:
    filesystem = getattr(storage, "filesystem", None)
    if not hasattr(filesystem, "list_multipart_uploads"):
        return []
    return list(filesystem.list_multipart_uploads(storage.url.split("/")[2]))


def test_a_large_file_comes_back_and_can_be_read_from_the_middle(storage: Storage) -> None:
    data = bytes(range(256)) * 50_000
    put(storage, "d/f", data)
    assert storage.files("d") == {"f": len(data)}
    with storage.open("d/f") as file:
        file.seek(9_999_999)
        assert file.read(1000) == data[9_999_999:10_000_999]


def test_an_empty_file_is_a_file(storage: Storage) -> None:
    put(storage, "d/f", b"")
    assert storage.files("d") == {"f": 0}


def test_what_is_published_is_never_replaced(storage: Storage) -> None:
    storage.publish("d/m", b"first")
    with pytest.raises(FileExistsError):
        storage.publish("d/m", b"second")
    assert storage.read("d/m") == b"first"
    assert storage.files("d") == {"m": 5}


def test_publishing_the_same_bytes_again_succeeds_because_an_answer_may_have_been_lost(storage: Storage) -> None:
    storage.publish("m", b"first")
    storage.publish("m", b"first")


@pytest.mark.parametrize("kind", ["local", "s3"])  # fsspec's own exclusive create is not atomic everywhere
def test_of_many_publishers_one_wins(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    storage = open_storage(tmp_path) if kind == "local" else s3_storage(request.getfixturevalue("endpoint"))
    won: list[bytes] = []
    start = threading.Barrier(8)

    def publish(data: bytes) -> None:
        start.wait()
        try:
            storage.publish("m", data)
        except FileExistsError:
            return
        won.append(data)

    threads = [threading.Thread(target=publish, args=(f"writer {n}".encode(),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [storage.read("m")]


def test_listing_tells_files_from_directories(storage: Storage) -> None:
    assert storage.directories() == []
    assert storage.files() == {} and storage.files("none") == {}
    put(storage, "b/f", b"1")
    put(storage, "a/g", b"22")
    storage.publish("top", b"333")
    assert storage.directories() == ["a", "b"]
    assert storage.files() == {"top": 3}
    assert storage.files("a") == {"g": 2}


def test_deleting_is_repeatable(storage: Storage) -> None:
    put(storage, "a/f", b"1")
    put(storage, "a/g", b"1")
    storage.delete("a/f")
    storage.delete("a/f")
    assert storage.files("a") == {"g": 1}
    storage.delete_directory("a")
    storage.delete_directory("a")
    assert storage.directories() == [] and storage.files("a") == {}


def test_what_is_not_there_is_said_so(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("d/none")
    with pytest.raises(FileNotFoundError):
        storage.open("d/none").read()


def test_uploads_of_a_killed_process_go_with_their_directory(endpoint: str) -> None:
    storage = s3_storage(endpoint)
    assert isinstance(storage, FsspecStorage)
    bucket = storage.url.split("/")[2]
    storage.filesystem.call_s3("create_multipart_upload", Bucket=bucket, Key="run/checkpoints/a/f")
    storage.filesystem.call_s3("create_multipart_upload", Bucket=bucket, Key="run/checkpoints/ab/f")
    storage.delete_directory("a")
    assert [upload["Key"] for upload in uploads(storage)] == ["run/checkpoints/ab/f"]


def test_a_checkpoint_goes_through_any_storage(storage: Storage) -> None:
    state = {"model": {"w": torch.arange(3_000_000.0), "b": torch.ones(2)}, "lr": 0.1}
    saver = Saver(storage, run_id="job")
    for step in (1, 2):
        state["model"]["b"].fill_(step)  # type: ignore[index]
        handle = saver.save(state, step=step, extra={"sample": step * 10}, rank_state={"seed": 7})
        assert handle is not None
        handle.result()
        assert saver.close(10)
    target = {"model": {"w": torch.zeros(3_000_000), "b": torch.zeros(2)}, "lr": 0.0}
    loaded = load(storage, target, verify=True)
    assert loaded is not None and loaded.extra == {"sample": 20} and loaded.rank_states == ({"seed": 7},)
    assert torch.equal(target["model"]["w"], state["model"]["w"])  # type: ignore[index]
    assert target["lr"] == 0.1 and target["model"]["b"].tolist() == [2.0, 2.0]  # type: ignore[index]
    assert [one.whole for one in list_checkpoints(storage)] == [True, True]
    assert not uploads(storage)


def test_a_bucket_outside_of_the_allowed_regions_is_refused_before_anything_is_read(endpoint: str) -> None:
    options = {**KEY, "endpoint_url": endpoint, "client_kwargs": {"region_name": "eu-west-1"}}
    filesystem = fsspec.filesystem("s3", **options)
    filesystem.call_s3(
        "create_bucket", Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    storage = open_storage("s3://far-away/run", **options)
    assert check_region(storage, {"SPOTRUN_REGIONS": "us-*,eu-west-1"}) == "eu-west-1"
    with pytest.raises(CheckpointError, match="is in eu-west-1, outside of --regions=us-"):
        check_region(storage, {"SPOTRUN_REGIONS": "us-*"})
    with pytest.raises(CheckpointError, match="cannot be asked for"):
        check_region(open_storage("s3://no-such-bucket/run", **options), {"SPOTRUN_REGIONS": "us-*"})


def test_a_bucket_of_google_outside_of_the_allowed_regions_is_refused_before_anything_is_read() -> None:
    with GoogleStorage({"far-away": "EUROPE-WEST4"}) as server:
        options = {"token": "anon", "endpoint_url": server.url}
        storage = open_storage("gs://far-away/run", **options)
        assert check_region(storage, {"SPOTRUN_REGIONS": "us-*,europe-*"}) == "europe-west4"
        with pytest.raises(CheckpointError, match="is in europe-west4, outside of --regions=us-"):
            check_region(storage, {"SPOTRUN_REGIONS": "us-*"})
        with pytest.raises(CheckpointError, match="cannot be asked for"):
            check_region(open_storage("gs://no-such-bucket/run", **options), {"SPOTRUN_REGIONS": "us-*"})
        assert {request.path for request in server.requests("far-away")} == {BUCKETS + "far-away"}
