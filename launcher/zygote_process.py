"""The zygote as its parent has it: the process, the socket to it, and the environment it was started in.

No torch here: it is started before the agent imports torch, so that both import at the same time.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import spotrun
from spotrun.launcher.channel import Channel
from spotrun.launcher.read_late import difference

PRELOADED = ("torch", "torch.distributed", "torch._dynamo")  # DDP imports the last: half of a start's cost
# What job.track would import while all other ranks wait; by name, for the launcher imports no training API.
TRAINING_API = ("spotrun.runner", "spotrun.job_state", "spotrun.memory")

# The parent folder of the `spotrun` package, and what the zygote runs. sys.path[0] is dropped before anything is
# imported, so that no file in the working directory is taken for a module of the standard library.
_ROOT = str(Path(spotrun.__file__).absolute().parent.parent)
_COMMAND = (
    "import sys; at_start = frozenset(sys.modules)\n"
    "if sys.path[:1] == ['']: del sys.path[0]\n"
    "sys.path.insert(0, sys.argv[2])\n"
    "from spotrun.launcher.zygote import main\n"
    "del sys.path[0]\n"
    "become = main(int(sys.argv[1]), sys.argv[3].split(), at_start)\n"
    "if become is not None: become()\n"
)


class ZygoteProcess:
    """One that imports `modules`, and starts workers as forks; without modules, cold starts alone."""

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self.modules = tuple(modules)
        self.environment = dict(environment)
        ours, theirs = socket.socketpair()
        with theirs:
            # Warm workers are forks of it, so it is started as they would be: with torchrun's -u and everything that
            # the environment says. For cold starts alone it leaves out what is not needed.
            flags = ["-u"] if modules else ["-I", "-S"]
            self.process = subprocess.Popen(
                [sys.executable, *flags, "-c", _COMMAND, str(theirs.fileno()), _ROOT, " ".join(modules)],
                pass_fds=[theirs.fileno()],
                env=self.environment,  # as the workers get it, without what C code (readline) has set behind Python
                start_new_session=True,  # a terminal's Ctrl-C is the agent's to act on
            )
        self.channel = Channel(ours)

    def fits(self, modules: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Whether it is what would be started now."""
        return self.modules == tuple(modules) and not difference(self.environment, environment)

    def kill(self) -> int:
        """Its exit code. What it has started dies with it, but not what that has started."""
        self.channel.close()
        self.process.kill()
        return self.process.wait()
