"""A worker's end of the channel to its agent (see `spotrun.launcher.link` for the messages).

One thread reads; what it hears is kept in flags and queues that the training thread looks at. Without an agent of
spotrun's (plain python or torchrun) there is no link, and nothing is heard.
"""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from spotrun.whereabouts import whereabouts

ENVIRONMENT = "SPOTRUN_LINK"
ABORT_AGAIN_S = 0.1
MARGIN_S = 1.5  # of a drain's deadline, left for leaving, more than the agent keeps for itself; not more than ...
MARGIN = 1 / 4  # ... this share of what the drain was told to have
STACKS_SIGNAL = signal.SIGRTMIN + 9  # to a worker: write your stacks to stderr; one that hardly any script uses


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker stands in a round; read from the environment that torchrun and spotrun give it."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    round: int
    run_id: str
    unplanned: int = 0  # the newest round that began without the last step of the one before it being agreed
    node: int = 0  # the group rank of its agent

    @staticmethod
    def of(environment: Mapping[str, str]) -> Place:
        return Place(
            rank=int(environment.get("RANK", 0)),
            local_rank=int(environment.get("LOCAL_RANK", 0)),
            world_size=int(environment.get("WORLD_SIZE", 1)),
            local_world_size=int(environment.get("LOCAL_WORLD_SIZE", 1)),
            round=int(environment.get("TORCHELASTIC_RESTART_COUNT", 0)) + 1,
            run_id=environment.get("TORCHELASTIC_RUN_ID", "none"),
            node=int(environment.get("GROUP_RANK", 0)),
            unplanned=int(environment.get("SPOTRUN_UNPLANNED", 0)),
        )


class Link:
    """`wanted` holds what has been asked for and not done yet: "leave", "save"."""

    def __init__(self, path: str, local_rank: int, *, in_place: bool, abort: Callable[[], None]) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # By way of a descriptor: the address of a socket has room for 107 bytes, and $TMPDIR may be longer.
        directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._sock.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
        finally:
            os.close(directory)
        self._lock = threading.Lock()
        self._abort = abort
        self._left = threading.Event()  # this worker has left its round; a new one for each
        self._rounds: queue.SimpleQueue[dict[str, str] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._segments: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        self._asking = threading.Lock()
        self.wanted: set[str] = set()
        self.deadline_s: float | None = None  # monotonic: by when a drain must be over ...
        self.saved_by_s = 0.0  # ... and by when this worker must have saved, to leave in time
        self.goes = False  # this worker's own node is to leave
        self.step = 0  # the last that this worker has made
        signal.signal(STACKS_SIGNAL, signal.SIG_IGN)  # what counts again while the interpreter ends
        faulthandler.register(STACKS_SIGNAL, file=2)  # in C: it works in a process that hangs, whatever it hangs in
        self._say({"op": "hello", "local_rank": local_rank, "in_place": in_place})
        threading.Thread(target=self._listen, name="spotrun-link", daemon=True).start()

    @staticmethod
    def connect(local_rank: int, *, in_place: bool, abort: Callable[[], None]) -> Link | None:
        path = os.environ.get(ENVIRONMENT)
        return None if path is None else Link(path, local_rank, in_place=in_place, abort=abort)

    def entered(self) -> None:
        """This worker has met all others of its round: from now on they can agree on a step."""
        self._say({"op": "entered"})

    def mark(self, name: str, step: int, samples: int, stepped_s: float) -> None:
        """Where this worker is now, and its last step (monotonic): for the ledger."""
        where = {"step": step, "samples": samples, "stepped_s": stepped_s}
        self._say({"op": "mark", "name": name, "at_s": time.monotonic(), **where})

    def progress(self, **fields: Any) -> None:
        self._say({"op": "progress", **fields})

    def busy(self, busy: bool) -> None:
        """This worker does something else than stepping, which may take long; or no longer."""
        self._say({"op": "busy", "busy": busy})

    def kept(self, url: str, region: str, round: int, saves: int, size_bytes: int) -> None:
        """Where checkpoints lie, and how many this round has written there, for the ledger."""
        where = {"url": url, "region": region, "round": round}
        self._say({"op": "kept", **where, "saves": saves, "size_bytes": size_bytes})

    def lost(self, step: int, durable_step: int, why: str) -> None:
        """The state as of `step` is in no place that stays; the agent writes it down."""
        self._say({"op": "lost", "step": step, "durable_step": durable_step, "why": why})

    def next_round(
        self, timeout_s: float | None = None, *, agreed: bool, in_place: bool = True
    ) -> dict[str, str] | None:
        """Say that this worker has left its round, and wait for the environment of the next one; None: in vain."""
        self._left.set()
        try:
            self._say({"op": "ready", "agreed": agreed, "in_place": in_place})
            environment = self._rounds.get(timeout=timeout_s)
        except queue.Empty:
            return None
        except KeyboardInterrupt:  # the agent ends what was interrupted on its terminal, once all have left
            raise SystemExit(128 + signal.SIGINT) from None
        return environment

    def ask(self, what: str, round_number: int, step: int, name: str) -> bool:
        """Ask the agent for a word of etcd's about a checkpoint (one thread at a time); waits while etcd is away."""
        self._say({"op": "commit", "what": what, "round": round_number, "step": step, "name": name})
        return self._answers.get()

    def segment(self, name: str, size_bytes: int) -> str:
        """The path of that piece of the agent's memory, made if it is not there. Raises OSError where it cannot be."""
        paths = self._ask_segments(name=name, size_bytes=size_bytes)
        if name not in paths:
            raise OSError(f"the agent has no memory for a snapshot of {size_bytes} bytes")
        return paths[name]

    def segments(self) -> dict[str, str]:
        """The paths of all that the agent keeps of its workers, by name."""
        return self._ask_segments()

    def _ask_segments(self, **wanted: Any) -> dict[str, str]:
        with self._asking:
            self._say({"op": "segment", **wanted})
            return self._segments.get()

    def forget(self, step: int, name: str) -> None:
        """A checkpoint is deleted, and with it its record in etcd."""
        self._say({"op": "commit", "what": "forget", "step": step, "name": name})

    def close(self) -> None:
        self._sock.close()

    def _say(self, message: dict[str, Any]) -> None:
        with self._lock:
            try:
                self._sock.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                return  # the agent is gone, and this process with it in a moment

    def _listen(self) -> None:
        try:
            for line in self._sock.makefile("rb"):
                self._hear(json.loads(line))
        except OSError:
            pass  # closed
        self._rounds.put(None)
        self._answers.put(False)
        self._segments.put({})

    def _hear(self, message: dict[str, Any]) -> None:
        op = message["op"]
        if op == "round":
            self.wanted.clear()  # here: what is asked of the new round may be the very next message
            self._left = threading.Event()
            self.deadline_s, self.goes = None, False
            self._rounds.put(message["environment"])
        elif op == "answer":
            self._answers.put(bool(message["yes"]))
        elif op == "segments":
            self._segments.put(message["paths"])
        elif op == "save":
            self.wanted.add("save")
        elif op == "where":
            main = threading.main_thread().ident
            place, waits = whereabouts(sys._current_frames().get(main) if main is not None else None)
            self._say({"op": "where", "step": self.step, "place": place, "waits": waits})
        elif op == "drain":
            seconds_left = float(message["seconds_left"])
            deadline_s = time.monotonic() + seconds_left
            self.saved_by_s = deadline_s - min(MARGIN_S, MARGIN * seconds_left)
            self.deadline_s = deadline_s
            self.goes = bool(message["goes"])
            self.wanted |= {"leave", "durable"} if message["save"] else {"leave"}
        elif op == "release":
            self.wanted.add("leave")
            if not message[
                "planned"
            ]:  # a thread of its own: the training thread may wait for an answer to be read here
                threading.Thread(target=self._end_round, args=(self._left,), name="spotrun-abort", daemon=True).start()

    def _end_round(self, left: threading.Event) -> None:
        """Again and again: the training thread may be on its way into the next thing that cannot succeed."""
        while not left.is_set():
            self._abort()
            left.wait(ABORT_AGAIN_S)
