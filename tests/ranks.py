"""Real rank processes without the price of an import each: a server process has torch imported and forks them.

    with ranks() as run:
        exits = run(3, "save", directory, {"step": 1})     # tests.scripts.checkpoint_ranks.save in three processes
        exits = run(2, "habits.train", directory, {...})   # tests.scripts.habits.train

Each rank gets (rank, world size, directory, arguments), with torch.distributed set up over gloo; what it returns is in
`directory/result-<rank>.json`. An exit code below 0 is a signal, as in subprocess.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DEADLINE_S = 60.0
Run = Callable[..., dict[int, Any]]


class RankFailed(AssertionError):
    pass


@contextmanager
def ranks() -> Iterator[Run]:
    scratch = tempfile.TemporaryDirectory()  # for torch's caches
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.ranks"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TMPDIR": scratch.name},
        start_new_session=True,
    )
    assert server.stdin is not None and server.stdout is not None

    def run(world: int, what: str, directory: Path, arguments: dict[str, Any] | None = None) -> dict[int, Any]:
        """Rank -> its result, or its exit code if that is not 0."""
        directory.mkdir(exist_ok=True, parents=True)
        for old in directory.glob("result-*.json"):
            old.unlink()
        request = {"world": world, "what": what, "directory": str(directory), "arguments": arguments or {}}
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(request).encode() + b"\n")
        server.stdin.flush()
        ready, _, _ = select.select([server.stdout], [], [], DEADLINE_S)
        assert ready, f"the ranks of {what} are not done within {DEADLINE_S:g} s"
        exits = json.loads(server.stdout.readline())
        results: dict[int, Any] = {}
        for rank, code in enumerate(exits):
            if code > 0:
                raise RankFailed((directory / f"error-{rank}.txt").read_text())
            results[rank] = code or json.loads((directory / f"result-{rank}.json").read_text())
        return results

    try:
        yield run
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        server.stdin.close()
        server.stdout.close()
        scratch.cleanup()


def _serve() -> None:
    import torch._dynamo  # noqa: F401 - each rank would import it anew for its DTensors
    import torch.distributed as dist

    from tests.scripts import checkpoint_ranks  # noqa: F401 - what most runs want is imported before the fork

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        rendezvous = Path(request["directory"]) / f"rendezvous-{uuid.uuid4().hex}"
        children = []
        for rank in range(request["world"]):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    dist.init_process_group(
                        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=request["world"]
                    )
                    (Path(request["directory"]) / f"pid-{rank}").write_text(str(os.getpid()))
                    dist.barrier()  # all pids are there
                    module, _, name = request["what"].rpartition(".")
                    function = getattr(importlib.import_module(f"tests.scripts.{module or 'checkpoint_ranks'}"), name)
                    result = function(rank, request["world"], Path(request["directory"]), request["arguments"])
                    (Path(request["directory"]) / f"result-{rank}.json").write_text(json.dumps(result))
                    code = 0
                except BaseException:  # noqa: BLE001 - the edge of the forked process
                    (Path(request["directory"]) / f"error-{rank}.txt").write_text(traceback.format_exc())
                finally:
                    os._exit(code)
            children.append(child)
        exits = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        answers.write(json.dumps(exits) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
