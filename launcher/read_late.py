"""Which variables a module reads when it uses them, and not on import. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping

# What differs between workers, or between the agent's start and theirs. Any other difference to the environment that
# the modules were imported in could be one that they have acted on.
_NAMES = frozenset(
    (
        *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME"),
        *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
        *("CUDA_VISIBLE_DEVICES", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TMPDIR"),
        *("PWD", "OLDPWD", "SHLVL", "_"),
    )
)
_PREFIXES = ("TORCHELASTIC_", "TORCH_NCCL_", "NCCL_", "GLOO_", "SPOTRUN_")


def difference(imported_in: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """The first variable that an import may have acted on and that has another value by now; "": none."""
    for name in sorted(imported_in.keys() | wanted.keys()):
        if imported_in.get(name) != wanted.get(name) and name not in _NAMES and not name.startswith(_PREFIXES):
            return name
    return ""
