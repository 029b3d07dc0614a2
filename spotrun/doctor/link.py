"""One pair of nodes: a real process group of two, its results checked and its speed measured.

Each measurement has a process of its own, for a collective that hangs can only be ended by ending its process. They
are forked from a server that has imported torch, once a node instead of once a pair.
"""

from __future__ import annotations

import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

JOIN_S = 60.0  # for the other one to come; it may be importing torch on a busy host
LINK_S = 8.0  # for one operation once both are there: below 2 MB/s a link is as good as none
LIMIT_S = 100.0  # for all of it
STORE_S = 60.0  # for torch to be imported, and the store of this node's pairs to listen
PAYLOAD_BYTES, REPEATS = 16 << 20, 5
SMALL_REPEATS = 50


@dataclass(frozen=True, slots=True)
class Task:
    address: str  # of the store, on the pair's first node
    port: int
    name: str  # tells the pairs apart in the store
    rank: int
    backend: str


@dataclass(frozen=True, slots=True)
class Measured:
    """As one side saw it. `error` is empty where all went well."""

    bytes_per_s: float = 0.0
    latency_s: float = 0.0
    ahead_s: float = 0.0  # the other's clock before ours
    error: str = ""


class Links:
    """Measures this node's side of pairs, and hosts the store in which those meet that begin with this node.

    `nccl`: the node has GPUs and NCCL for them.
    """

    def __init__(self, address: str) -> None:
        """Raises OSError where no store can listen at `address`."""
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, "torch.distributed"])
        self._store, answers = self._start(_serve, address)
        try:
            if not answers.poll(STORE_S):
                raise OSError(f"no store listens at {address} within {STORE_S:g} s")
            found = answers.recv()
        except (OSError, EOFError) as error:
            self._end(self._store)
            raise OSError(str(error) or "the store ended at once") from None
        if isinstance(found, str):
            self._end(self._store)
            raise OSError(f"no store can listen at {address}: {found}")
        self.port, self.nccl = found

    def run(self, task: Task) -> Measured:
        """LIMIT_S at most."""
        process, answers = self._start(_answer, task)
        try:
            if not answers.poll(LIMIT_S):
                return Measured(error=f"no answer within {LIMIT_S:g} s")
            found: Measured = answers.recv()
            return found
        except EOFError:
            process.join()
            return Measured(error=f"the measurement ended with exit code {process.exitcode}")
        finally:
            self._end(process)
            answers.close()

    def _start(self, target: Callable[..., None], argument: Any) -> tuple[Any, Connection]:
        answers, told = self._context.Pipe(duplex=False)
        process = self._context.Process(target=target, args=(argument, told), daemon=True)
        process.start()
        told.close()
        return process, answers

    def _end(self, process: Any) -> None:
        process.kill()
        process.join()

    def __enter__(self) -> Links:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end(self._store)


def _serve(address: str, told: Connection) -> None:
    """Tells the port and whether there is NCCL, or what went wrong; serves until the doctor has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the doctor's affair
    import torch
    from torch._C._distributed_c10d import TCPStore  # where torch's stubs declare it
    from torch.distributed import is_nccl_available

    try:
        store = TCPStore(address, 0, is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        told.send(_last_line(error))
        return
    told.send((store.port, torch.cuda.is_available() and is_nccl_available()))
    doctor = multiprocessing.parent_process()
    assert doctor is not None
    doctor.join()


def _answer(task: Task, told: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        found = measure(task)
    except Exception as error:  # noqa: BLE001  # whatever torch raises is what was found
        found = Measured(error=_last_line(error))
    told.send(found)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]


def measure(task: Task) -> Measured:
    """Raises what torch.distributed does."""
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore, TCPStore  # where torch's stubs declare them

    store = TCPStore(task.address, task.port, is_master=False, timeout=timedelta(seconds=JOIN_S))
    alone = _alone(task.backend)
    store.set(f"{task.name}/{task.rank}", alone)
    if alone:
        raise RuntimeError(alone)
    if other := store.get(f"{task.name}/{1 - task.rank}").decode():
        raise RuntimeError(f"the other one has no {task.backend}: {other}")
    device = torch.device("cuda", 0) if task.backend == "nccl" else torch.device("cpu")
    dist.init_process_group(
        task.backend,
        store=PrefixStore(task.name, store),
        rank=task.rank,
        world_size=2,
        timeout=timedelta(seconds=LINK_S),
    )
    try:
        small = torch.ones(1, device=device)
        latencies_s = [_timed(small, device) for _ in range(SMALL_REPEATS)]
        clocks = [torch.zeros(1, dtype=torch.float64, device=device) for _ in range(2)]
        dist.all_gather(clocks, torch.tensor([time.time()], dtype=torch.float64, device=device))
        large = torch.empty(PAYLOAD_BYTES // 4, device=device)
        times_s = []
        for _ in range(REPEATS):
            large.fill_(task.rank + 1.0)
            times_s.append(_timed(large, device))
            if not bool((large == 3.0).all()):
                raise RuntimeError("the sum over both nodes is wrong: data was damaged on the way")
        return Measured(
            PAYLOAD_BYTES / statistics.median(times_s),
            statistics.median(latencies_s),
            float(clocks[1 - task.rank]) - float(clocks[task.rank]),
        )
    finally:
        dist.destroy_process_group()


def _alone(backend: str) -> str:
    """What keeps this node from taking part in any group; the other one need not wait for it then."""
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore  # where torch's stubs declare it

    try:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        dist.destroy_process_group()
    except Exception as error:  # noqa: BLE001  # as in `_answer`
        return _last_line(error)
    return ""


def _timed(tensor: Any, device: Any) -> float:
    import torch
    import torch.distributed as dist

    began_s = time.perf_counter()
    dist.all_reduce(tensor)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began_s
