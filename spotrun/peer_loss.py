"""What an error says when it is another rank that went away, in the words of gloo, NCCL, the TCPStore and the kernel.

It only ever buys time: whoever reads such an error waits for the lease of a lost node to tell before it blames anyone.
"""

from __future__ import annotations

import re

_WORDS = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|closed by peer|remote process|connectfullmesh|nccl|"
    r"socket|timed? ?out|failed to (recv|send)|aborted|heartbeat.*monitor|process group",
    re.IGNORECASE,
)


def tells_of_peer_loss(message: str) -> bool:
    """Whether an error with this message may only tell that another rank went away."""
    return _WORDS.search(message) is not None
