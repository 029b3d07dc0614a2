"""What is asked of any cluster: how many nodes, and the line of spotrun that each of them runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from spotrun.config import parse_nnodes
from spotrun.errors import UsageError

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?")
_OURS = ("--nnodes", "--rdzv-id", "--rdzv_id", "--node-id", "--standalone")


@dataclass(frozen=True, slots=True)
class Request:
    """`arguments` are further flags of `spotrun run`, the script and its own arguments."""

    name: str
    min_nodes: int
    max_nodes: int
    arguments: tuple[str, ...]

    @property
    def nnodes(self) -> str:
        return f"{self.min_nodes}:{self.max_nodes}"

    @property
    def line(self) -> str:
        """The arguments, quoted for a shell."""
        return shlex.join(self.arguments)


def request(name: str, nodes: str, arguments: tuple[str, ...], environ: Mapping[str, str]) -> Request:
    """Raises UsageError for what no node could run. The endpoint of etcd may come from the environment."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"--name={name[:80]} cannot be used: give up to 52 small letters, digits and dashes.")
    lowest, highest = parse_nnodes(nodes)
    flags = [argument.partition("=")[0] for argument in arguments]
    for flag in _OURS:
        if flag in flags:
            raise UsageError(
                f"{flag} is written by `spotrun submit` itself: leave it out, and give --nodes and --name."
            )
    if not arguments:
        raise UsageError("There is nothing to run: give flags of spotrun, the script and its arguments.")
    if "--rdzv-endpoint" not in flags and "--rdzv_endpoint" not in flags:
        if not (endpoint := environ.get("PET_RDZV_ENDPOINT")):
            raise UsageError("The nodes need an etcd to meet in: give --rdzv-endpoint=HOST:2379.")
        arguments = (f"--rdzv-endpoint={endpoint}", *arguments)
    return Request(name, lowest, highest, arguments)
