"""Whatever goes wrong with a save or with what was saved, the right checkpoint is restored, and the fault is named."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.dirfs import DirFileSystem

from spotrun.checkpoint import Manifest, Saver, Storage, claim, list_checkpoints, load, newest, open_storage, prune
from spotrun.checkpoint.storage_fsspec import FsspecStorage
from spotrun.errors import CheckpointError
from tests.fakes.s3 import KEY, FaultyProxy, s3_server
from tests.ranks import Run, ranks
from tests.scripts.checkpoint_ranks import small_state
from tests.waiting import until

# aiohttp sessions of s3fs live as long as the process; their finalisers warn when a test's filesystem is collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*unclosed.*:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROWS = 500  # with the rest 6 MB: two parts of an S3 upload
ONE, TWO = "step-00000001-r1-a1", "step-00000002-r1-a1"


@pytest.fixture(scope="module", autouse=True)
def run() -> Iterator[Run]:
    with ranks() as run:
        yield run


@pytest.fixture(scope="module", autouse=True)
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


def save(storage: Storage, step: int, round: int = 1, rows: int = 3000, **settings: Any) -> Manifest:
    saver = Saver(storage, run_id="job", **settings)
    handle = saver.save(small_state(step, rows), step=step, round=round)
    assert handle is not None
    manifest = handle.result(60)
    until("the saver is idle", lambda: not saver.busy)
    return manifest


def restored(storage: Storage, *, verify: bool = False, rows: int = 3000) -> int:
    """The step that a new job goes on from; every element is looked at."""
    state = small_state(0, rows)
    loaded = load(storage, state, verify=verify)
    assert loaded is not None
    step = loaded.manifest.step
    assert state["step"] == step
    assert bool((state["big"] == step).all()) and bool((state["w"][0] == step).all())
    return step


# --- ranks that die ---------------------------------------------------------------------------------------------------

BEFORE = [
    ("before publish begin.json", 0),
    ("after publish begin.json", 0),
    ("before create __0_0.distcp", 0),
    ("half create __0_0.distcp", 0),
    ("before create __1_0.distcp", 1),
    ("half create __1_0.distcp", 1),
    ("after create __1_0.distcp", 1),
    ("before create .metadata", 0),
    ("fence", 0),
    ("before publish manifest.json", 0),
]
AFTER = [("after publish manifest.json", 0), ("record", 0)]


@pytest.mark.parametrize("all_die", [False, True], ids=["one", "all"])
@pytest.mark.parametrize(("moment", "victim"), BEFORE + AFTER, ids=lambda value: str(value).replace(" ", "-"))
def test_a_save_whose_ranks_are_killed_is_whole_or_does_not_exist(
    run: Run, tmp_path: Path, moment: str, victim: int, all_die: bool
) -> None:
    victims = [0, 1] if all_die else [victim]
    results = run(2, "save_and_die", tmp_path, {"moment": moment, "victims": victims})
    for rank in victims:
        assert results[rank] == -9
    if not all_die:
        told = results[1 - victim]["error"]
        assert f"rank {victim} is gone" in told
    storage = open_storage(tmp_path / "store")
    published = (moment, victim) in AFTER
    assert restored(storage) == (2 if published else 1)
    # The job goes on in the next round, whatever was left behind, and its checkpoints outrank what came before.
    assert save(storage, 2, round=2).round == 2
    state = small_state(0)
    loaded = load(storage, state, verify=True)
    assert loaded is not None and (loaded.manifest.step, loaded.manifest.round) == (2, 2)
    prune(storage, keep_last=1)
    assert storage.directories() == ["step-00000002-r2-a1"]


@pytest.mark.parametrize("moment", ["half create __0_0.distcp", "half create __2_0.distcp", "fence"])
@pytest.mark.parametrize("victims", [[0, 1], [2, 3]], ids=["first-node", "last-node"])
def test_a_save_whose_node_of_two_ranks_is_killed_is_whole_or_does_not_exist(
    run: Run, tmp_path: Path, moment: str, victims: list[int]
) -> None:
    results = run(4, "save_and_die", tmp_path, {"moment": moment, "victims": victims})
    assert [rank for rank in results if results[rank] == -9] == victims
    told = [results[rank] for rank in range(4) if rank not in victims]
    # A node may be gone after its part was durable: then rank 0 publishes what is whole without it.
    saved = all("saved" in one for one in told)
    assert saved or all(f"rank {victims[0]} is gone" in one["error"] for one in told), told
    assert not (saved and 0 in victims)
    assert restored(open_storage(tmp_path / "store"), verify=True) == (2 if saved else 1)


def test_a_survivor_completes_the_save_of_replicated_state_alone(run: Run, tmp_path: Path) -> None:
    run(2, "save_and_die", tmp_path, {"moment": "half create __1_0.distcp", "victims": [1]})
    storage = open_storage(tmp_path / "store")
    assert save(storage, 2).name in (TWO, "step-00000002-r1-a2")
    assert restored(storage, verify=True) == 2


# --- storage that fails -----------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 10 MB."""
    path = tmp_path / "tiny"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", path], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small tmpfs needs root: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_fails_the_save_and_frees_what_it_had_taken(tiny: Path) -> None:
    storage = open_storage(tiny)
    with pytest.raises(CheckpointError, match=r"rank 0: OSError: .*No space left on device"):
        save(storage, 1)
    assert storage.directories() == []
    saver = Saver(storage, run_id="job")
    handle = saver.save({"w": torch.ones(1000)}, step=1)  # there is room for this one again
    assert handle is not None and handle.result(30).name == "step-00000001-r0-a1"


def test_a_full_disk_of_one_rank_fails_the_save_on_all_and_the_next_one_succeeds(
    run: Run, tmp_path: Path, tiny: Path
) -> None:
    (tiny / "filling").write_bytes(bytes(6_000_000))
    told = run(2, "save_with_failure", tmp_path, {"broken": str(tiny)})
    for rank in (0, 1):
        assert told[rank][0] == told[rank][2] == "saved"
        assert "rank 1: OSError" in told[rank][1] and "No space left" in told[rank][1]
    storage = open_storage(tmp_path / "store")
    assert storage.directories() == [ONE, "step-00000003-r1-a1"]
    assert restored(storage, verify=True) == 3


def test_ranks_that_do_not_share_a_directory_are_told_so(run: Run, tmp_path: Path) -> None:
    told = run(2, "save_with_failure", tmp_path, {"broken": str(tmp_path / "elsewhere")})
    assert "rank 0 sees no bytes of __1_0.distcp" in told[0][1] and "one shared directory" in told[1][1]
    assert restored(open_storage(tmp_path / "store")) == 3


class ShortWrites(DirFileSystem):  # type: ignore[misc]
    """A file system that loses the end of what is written while it says that all went well."""

    lossy = True

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        file = super().open(path, mode, **kwargs)
        if self.lossy and "w" in mode and ".distcp" in path:
            write = file.write
            file.write = lambda data: write(memoryview(data)[: max(0, memoryview(data).nbytes - 1)])
        return file


def test_a_short_write_is_noticed_before_anything_is_published(tmp_path: Path) -> None:
    filesystem = ShortWrites(str(tmp_path), fsspec.filesystem("memory"), skip_instance_cache=True)
    filesystem.protocol = "short"
    storage = FsspecStorage(filesystem, "run", "short://run")
    with pytest.raises(CheckpointError, match=r"has \d+ bytes after \d+ were written"):
        save(storage, 1)
    assert not any(one.whole for one in list_checkpoints(storage))
    filesystem.lossy = False
    save(storage, 2)
    assert restored(storage, verify=True) == 2


# --- checkpoints that go bad ------------------------------------------------------------------------------------------


def truncate(shard: Path) -> None:
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 1)


def flip(shard: Path) -> None:
    with shard.open("r+b") as file:
        file.seek(shard.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))


DAMAGES = [
    pytest.param("__0_0.distcp", truncate, False, "bytes, not", id="truncated-shard"),
    pytest.param("__0_0.distcp", Path.unlink, False, "__0_0.distcp is missing", id="missing-shard"),
    pytest.param("__0_0.distcp", flip, True, "its content has changed", id="flipped-byte"),
    pytest.param(".metadata", flip, False, ".metadata has another checksum", id="flipped-byte-in-metadata"),
    pytest.param(".metadata", Path.unlink, False, ".metadata is missing", id="missing-metadata"),
    pytest.param("manifest.json", flip, False, "manifest", id="flipped-byte-in-manifest"),
    pytest.param("manifest.json", truncate, False, "is not a manifest", id="truncated-manifest"),
]


@pytest.mark.parametrize(("name", "damage", "verify", "says"), DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_restored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Any, verify: bool, says: str
) -> None:
    storage = open_storage(tmp_path)
    save(storage, 1)
    save(storage, 2)
    damage(tmp_path / TWO / name)
    with caplog.at_level(logging.WARNING):
        assert restored(storage, verify=verify) == 1
    warning = next(record.message for record in caplog.records if "damaged and skipped" in record.message)
    assert TWO in warning and says in warning
    damage(tmp_path / ONE / name)
    with pytest.raises(CheckpointError, match=f"no whole checkpoint is left.*{TWO}.*{ONE}"):
        restored(storage, verify=verify)


def test_all_ranks_go_back_together_when_one_of_them_reads_damage(run: Run, tmp_path: Path) -> None:
    run(2, "save_with_failure", tmp_path, {"broken": str(tmp_path / "store")})
    flip(tmp_path / "store" / "step-00000003-r1-a1" / "__1_0.distcp")
    for result in run(3, "load_damaged", tmp_path).values():
        assert result == {"step": 2, "value": 2.0, "held": 2}


def test_metadata_that_would_run_code_is_refused(tmp_path: Path) -> None:
    import os
    import pickle

    from spotrun.checkpoint.reader import unpack_metadata

    class Evil:
        def __reduce__(self) -> Any:
            return (os.system, (f"touch {tmp_path}/ran",))

    with pytest.raises(CheckpointError, match=r"asks for posix\.system"):
        unpack_metadata(pickle.dumps(Evil()))
    assert not (tmp_path / "ran").exists()


def test_a_changed_model_is_told_which_keys_differ(run: Run, tmp_path: Path) -> None:
    save(open_storage(tmp_path / "store"), 1)
    for said in run(2, "load_changed", tmp_path).values():
        assert "not in the checkpoint: new" in said
        assert "only in the checkpoint: step" in said
        assert "changed: big (3000x1000 saved, 3000x999 now)" in said


# --- two worlds, two jobs ---------------------------------------------------------------------------------------------


def test_a_later_step_of_an_older_round_loses_to_the_round_that_replaced_it(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    save(storage, 10, round=2)
    old = Saver(storage, run_id="job")  # round 2, which does not know that it is over
    release = threading.Event()
    old._commit._fence = lambda _: release.wait(60) and None
    late = old.save(small_state(20), step=20, round=2)
    assert late is not None
    save(storage, 11, round=3)
    release.set()
    assert late.result(60).step == 20
    assert restored(storage) == 11


def test_rounds_that_start_over_do_not_bring_back_old_steps(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    save(storage, 10, round=7)
    save(storage, 20, round=1)  # the store of the rounds was lost in between
    assert restored(storage) == 20


@pytest.mark.parametrize("damage", [flip, truncate])
def test_what_is_saved_after_going_back_outranks_the_damaged_checkpoint(tmp_path: Path, damage: Any) -> None:
    storage = open_storage(tmp_path)
    save(storage, 10, round=2)
    save(storage, 20, round=2)
    damage(tmp_path / "step-00000020-r2-a1" / "__0_0.distcp")
    assert restored(storage, verify=True) == 10
    save(storage, 15, round=2)
    assert restored(storage) == 15


def test_a_fence_that_refuses_leaves_the_older_checkpoint_in_place(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    save(storage, 1)

    def fence(manifest: Manifest) -> None:
        raise CheckpointError(f"round {manifest.round} is over, round 2 is on")

    with pytest.raises(CheckpointError, match="round 1 is over"):
        save(storage, 2, fence=fence)
    assert storage.directories() == [ONE]
    assert restored(storage) == 1


def test_a_record_that_fails_does_not_undo_the_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def record(_: Manifest) -> None:
        raise OSError("etcd is away")

    save(open_storage(tmp_path), 1, record=record)
    assert "could not be recorded: OSError: etcd is away" in caplog.text
    assert restored(open_storage(tmp_path)) == 1


def test_two_jobs_on_one_directory_are_refused_and_a_taken_over_job_cannot_commit(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    claim(storage, "job")
    claim(storage, "job")  # the same job, restarted
    save(storage, 1)
    with pytest.raises(CheckpointError, match=r"holds the checkpoints of job 'job', not of 'other'"):
        claim(storage, "other")
    claim(storage, "other", take_over=True)
    with pytest.raises(CheckpointError, match="taken over by job 'other'"):
        save(storage, 2)
    assert restored(storage) == 1


def test_a_job_that_goes_on_in_its_own_directory_writes_nothing_there(tmp_path: Path) -> None:
    """Else a disk that is full or read-only while a round begins fails its workers, though all is in memory."""
    storage = open_storage(tmp_path)
    claim(storage, "job")
    before = tmp_path.stat().st_mtime_ns
    claim(storage, "job")
    assert tmp_path.stat().st_mtime_ns == before


# --- S3 ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    s3fs = pytest.importorskip("s3fs")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    proxy = FaultyProxy(endpoint)
    yield proxy
    proxy.close()


def s3(proxy: FaultyProxy) -> Storage:
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    config = {"read_timeout": 1, "connect_timeout": 1, "retries": {"max_attempts": 0}}
    options: dict[str, Any] = {
        "endpoint_url": proxy.url,
        "default_block_size": 5 << 20,
        "config_kwargs": config,
        **KEY,
    }
    fsspec.filesystem("s3", **options).mkdir(bucket)
    return open_storage(f"s3://{bucket}/run", **options)


def uploads(storage: Storage) -> list[Any]:
    assert isinstance(storage, FsspecStorage)
    return list(storage.filesystem.list_multipart_uploads(storage.url.split("/")[2]))


@pytest.mark.parametrize("stage", ["partNumber=2", "begin.json", ".metadata", "manifest.json"])
@pytest.mark.parametrize("how", ["fail", "hang"])
def test_s3_that_answers_500_or_nothing_fails_the_save_and_keeps_the_one_before(
    proxy: FaultyProxy, stage: str, how: str
) -> None:
    storage = s3(proxy)
    save(storage, 1, rows=ROWS)
    setattr(proxy, how, ("PUT", stage))
    with pytest.raises(CheckpointError, match=r"step 2 was not saved|may or may not count"):
        save(storage, 2, rows=ROWS)
    assert proxy.failed or proxy.hung
    assert restored(storage, rows=ROWS) == 1
    assert uploads(storage) == []
    proxy.fail = None
    proxy.release()
    save(storage, 3, rows=ROWS)
    assert restored(storage, verify=True, rows=ROWS) == 3


def test_s3_that_fails_while_loading_is_no_reason_to_go_back_to_an_older_checkpoint(proxy: FaultyProxy) -> None:
    storage = s3(proxy)
    save(storage, 1, rows=ROWS)
    save(storage, 2, rows=ROWS)
    proxy.fail = ("GET", f"{TWO}/__0_0.distcp")
    with pytest.raises(CheckpointError, match=f"{TWO} in s3://.* cannot be read, though it may be whole"):
        restored(storage, rows=ROWS)
    proxy.fail = None
    assert restored(storage, rows=ROWS) == 2


# --- storage that hangs -----------------------------------------------------------------------------------------------


class Hanging:
    """Every new file waits for `go`."""

    def __init__(self, inner: Storage) -> None:
        self._inner = inner
        self.go = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[Any]:
        with self._inner.create(path) as sink:
            assert self.go.wait(60)
            yield sink


def test_a_hanging_storage_blocks_nobody_and_the_save_is_given_up_in_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inner = open_storage(tmp_path)
    save(inner, 1)
    storage = Hanging(inner)
    saver = Saver(storage, run_id="job")
    handle = saver.save(small_state(2), step=2, round=1)
    assert handle is not None and not handle.done() and handle.stage == "writing"
    assert saver.save(small_state(3), step=3, round=1) is None
    assert "step 3 is not saved: an earlier save is under way" in caplog.text
    assert handle.give_up(0.1) is False
    with pytest.raises(CheckpointError, match=r"step 2 was given up after .* while writing"):
        handle.result()
    assert saver.busy  # the call still hangs; its buffer is not used again
    storage.go.set()
    until("the hanging call is back", lambda: not saver.busy)
    assert restored(inner) == 1 and inner.directories() == [ONE]
    again = saver.save(small_state(4), step=4, round=1)
    assert again is not None and again.give_up(60) is True
    assert restored(inner) == 4


def test_state_may_change_as_soon_as_save_returns(tmp_path: Path) -> None:
    storage = Hanging(open_storage(tmp_path))
    state = small_state(5)
    handle = Saver(storage, run_id="job").save(state, step=5)
    state["big"].fill_(6.0)
    storage.go.set()
    assert handle is not None and handle.result(60).step == 5
    assert restored(open_storage(tmp_path), verify=True) == 5


def test_rank_state_that_is_no_json_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    saver = Saver(open_storage(tmp_path), run_id="job")
    with pytest.raises(CheckpointError, match="must be JSON"):
        saver.save({"w": torch.ones(3)}, step=1, rank_state={1, 2})
    until("the saver is idle", lambda: not saver.busy)


def test_state_that_cannot_be_restored_safely_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    saver = Saver(open_storage(tmp_path), run_id="job")
    with pytest.raises(CheckpointError, match=r"'user.path' is a pathlib\.PosixPath"):
        saver.save({"user": {"path": Path("x")}}, step=1)
    until("the saver is idle", lambda: not saver.busy)
    assert newest(list_checkpoints(open_storage(tmp_path))) is None
    assert open_storage(tmp_path).directories() == []
