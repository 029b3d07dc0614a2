"""`spotrun.run` and `spotrun.init`: rounds without leaving the process, or a Job for a plain script."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from spotrun import events
from spotrun.api import Job, Options, RoundOver
from spotrun.interrupt import EXIT_CODE, Interrupt
from spotrun.last_words import speak_plainly
from spotrun.link import Link, Place
from spotrun.peer_loss import tells_of_peer_loss

if TYPE_CHECKING:
    from spotrun.memory import Memory

STORE_S = 2.0  # one try to reach the store of a round
VERDICT_S = 15.0  # after a collective failed: by then a lost node's lease has told, and a newer round is known


def run(train: Callable[[Job], None], **options: Any) -> None:
    """Call `train(job)` once a round, in this process, until it returns or the job ends.

    options: `checkpoint_dir` (path or fsspec URL), `save_every` ("auto", "500steps", "10min"), `keep_last`,
    `keep_every` (steps), `verify` (checksums on load), `audit_dir`. It also works without spotrun's launcher, then
    with one round only; Ctrl-C then saves the next step and exits. Errors of `train` go through.
    """
    settings = Options(**options)
    groups = Groups()
    speak_plainly()
    place = Place.of(os.environ)
    link = Link.connect(place.local_rank, in_place=True, abort=groups.abort)
    memory = _memory(link, place)
    interrupt = Interrupt()
    if link is None:
        interrupt.catch()
    while True:
        environment = _one_round(train, place, link, memory, settings, groups, interrupt)
        if environment is None:
            return
        os.environ.update(environment)
        place = Place.of(os.environ)


def init(**options: Any) -> Job:
    """A Job for a plain script, with the options of `run`. At a change of the world the script is started anew."""
    groups = Groups()
    speak_plainly()
    place = Place.of(os.environ)
    link = Link.connect(place.local_rank, in_place=False, abort=groups.abort)
    interrupt = Interrupt()
    if link is None:
        interrupt.catch()
    groups.open()
    return _PlainJob(place, link, _memory(link, place), Options(**options), interrupt.wanted)


def _memory(link: Link | None, place: Place) -> Memory:
    from spotrun.memory import Memory, PrivateShelf  # with torch, which `import spotrun` does without

    return Memory(link or PrivateShelf(), place.local_rank)


class _PlainJob(Job):
    """At the agreed step it saves and waits to be ended by the agent."""

    def _leave(self, *, durable: bool) -> None:
        try:
            super()._leave(durable=True)
        except RoundOver:
            if self._link is None:
                self.close()
                sys.exit(EXIT_CODE)
            self._link.next_round(agreed=True, in_place=False)
            sys.exit(0)  # the agent is gone


class Groups:
    """The default process group of the present round, and a way to end what hangs in it."""

    def __init__(self) -> None:
        self._before: set[int] = set()  # sockets that are none of the groups'
        self._aborted = False
        self._lock = threading.Lock()

    def open(self) -> None:
        import torch
        import torch.distributed as dist
        from torch._C._distributed_c10d import HashStore  # where torch's stubs declare it

        with self._lock:
            self._before, self._aborted = _tcp_sockets(), False
        if not dist.is_initialized():
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            backend = "cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo"
            if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # DDP and FSDP want a group all the same
                dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
            elif os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
                rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
                dist.init_process_group(backend, store=self._meet(), rank=rank, world_size=size)
            else:
                dist.init_process_group(backend)

    def _meet(self) -> Any:
        """The store of the round. By itself torch would try to reach one that is gone for half an hour."""
        import torch.distributed as dist
        from torch._C._distributed_c10d import TCPStore  # where torch's stubs declare it

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        while not self._aborted:
            with contextlib.suppress(dist.DistError):
                return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=STORE_S))
        raise dist.DistNetworkError(f"the store of the round at {address}:{port} is gone")

    def close(self) -> None:
        import torch.distributed as dist

        if dist.is_initialized():
            with contextlib.suppress(RuntimeError):  # a member is gone: there is nobody to say goodbye to
                dist.destroy_process_group()
        # torch names a group by counting, and starts anew only when one is destroyed. One that was given up before all
        # had met was counted: without this, the next would have another name here than on ranks that were not in it.
        dist.distributed_c10d._world.group_count = 0
        gc.collect()  # groups live in cycles; their sockets must go before the next round

    def abort(self) -> None:
        """Called on the link's thread: a collective that waits for a node that is gone must fail now.

        NCCL can abort. gloo cannot: its connections are shut down under it, which it reports as closed by the peer.
        """
        import torch
        import torch.distributed as dist

        if torch.cuda.is_available() and dist.is_initialized():
            dist.distributed_c10d._abort_process_group()
        self._aborted = True
        with self._lock:
            for fd in _tcp_sockets() - self._before:
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as copy:
                    copy.shutdown(socket.SHUT_RDWR)


def _one_round(
    train: Callable[[Job], None],
    place: Place,
    link: Link | None,
    memory: Memory,
    options: Options,
    groups: Groups,
    interrupt: Interrupt,
) -> dict[str, str] | None:
    """The environment of the next round, or None when `train` has returned."""
    job: Job | None = None
    try:
        groups.open()
        job = Job(place, link, memory, options, interrupt.wanted)
        train(job)
        job.finish()
        groups.close()
        return None
    except RoundOver:
        failure: Exception | None = None
    except Exception as error:  # backends tell of a lost peer by many classes: is_peer_loss tells them apart
        if link is None or not is_peer_loss(error):
            raise
        failure = error
        events.emit("collective_failed", level=logging.DEBUG, round=place.round, error=str(error)[:500])
    # torch caches what it knows of sharded tensors by the shape of the mesh, not by the rank in it: a process that
    # comes back with another rank to a mesh of the same shape cuts its shards wrong. FSDP workers are started anew.
    in_place = job is None or not job.sharded
    # Closing the groups also tells those peers that wait for this rank.
    if job is not None and failure is not None:
        job.keep()
    _forget_frames(failure)
    if job is not None:
        job.close()
        del job
    groups.close()
    environment = None
    if link is not None:
        within_s = None if failure is None else VERDICT_S
        environment = link.next_round(within_s, agreed=failure is None, in_place=in_place)
    if environment is None and failure is not None:
        raise failure
    if environment is None:
        sys.exit(0 if link is not None else EXIT_CODE)
    return environment


def is_peer_loss(error: BaseException) -> bool:
    """Whether `error` may only tell that another rank went away."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and tells_of_peer_loss(str(error))


def _forget_frames(error: BaseException | None) -> None:
    """Let go of the frames of `train`, which hold the model and, through it, the process groups."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _tcp_sockets() -> set[int]:
    """The descriptors of this process that are connected TCP sockets."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError, ValueError):
            fd = int(name)
            if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                with socket.socket(fileno=os.dup(fd)) as copy:
                    if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.getpeername():
                        found.add(fd)
    return found
