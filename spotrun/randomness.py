"""The state of the global random generators: of python, numpy, torch, and this process's CUDA device.

At an equal world size `restore` of each rank's own state makes a resume bit-exact. At another world size there is no
state to hand to each rank, and `seed_all(seed, step, rank)` starts new, unrelated streams that a second resume from
the same step would get again.
"""

from __future__ import annotations

import hashlib
import random
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from spotrun.errors import CheckpointError

if TYPE_CHECKING:
    import torch


def capture() -> dict[str, Any]:
    """The state as JSON, about 12 kB. CUDA is left out where this process has not used it; nothing is initialised."""
    import torch

    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "v": 1,
        "python": {"version": version, "words": _encode(np.array(words, dtype="<u4").tobytes()), "gauss": gauss},
        "numpy": {
            "name": name,
            "keys": _encode(np.asarray(keys, dtype="<u4").tobytes()),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": _encode(torch.get_rng_state().numpy().tobytes()),
    }
    cuda: Any = torch.cuda  # partly untyped
    if cuda.is_initialized():
        state["cuda"] = _encode(cuda.get_rng_state().numpy().tobytes())
    return state


def restore(state: Mapping[str, Any]) -> None:
    """Put back what `capture` returned. CUDA's part is used only where CUDA is in use or available here.

    Raises CheckpointError, with nothing changed, on a state of another version or form.
    """
    import torch

    try:
        if state["v"] != 1:
            raise ValueError(f"version {state['v']}")
        python, legacy = state["python"], state["numpy"]
        words = tuple(np.frombuffer(b64decode(python["words"], validate=True), dtype="<u4").tolist())
        keys = np.frombuffer(b64decode(legacy["keys"], validate=True), dtype="<u4").astype(np.uint32)
        python_state = (python["version"], words, python["gauss"])
        numpy_state = (legacy["name"], keys, legacy["position"], legacy["has_gauss"], legacy["cached"])
        random.Random().setstate(python_state)  # refuses a wrong form before anything is changed
        np.random.RandomState().set_state(numpy_state)
        torch_state = _tensor(state["torch"])
        torch.Generator().set_state(torch_state)
        cuda_state = _tensor(state["cuda"]) if "cuda" in state else None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"this is not the state of random generators that this version can read: {error}"
        ) from error
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    torch.set_rng_state(torch_state)
    if cuda_state is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda_state)


def seed_of(*key: int) -> int:
    """A seed of 63 bits that belongs to `key`."""
    return _words(key)[0]


def seed_all(*key: int) -> None:
    """Seed every generator from `key`, for example (seed, step, rank); other keys give unrelated numbers."""
    words = _words(key)
    random.seed(words[0])
    np.random.seed([words[1] & 0xFFFFFFFF, words[1] >> 32])
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(words[2])  # CUDA's included, at once or when it is first used


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Within, the CPU generators are seeded from `key`; afterwards they go on as if nothing had happened."""
    torch = sys.modules.get("torch")
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.get_rng_state() if torch else None
    words = _words(key)
    random.seed(words[0])
    np.random.seed([words[1] & 0xFFFFFFFF, words[1] >> 32])
    if torch:
        torch.default_generator.manual_seed(words[2])
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if torch:
            torch.set_rng_state(torch_state)


def _words(key: tuple[int, ...]) -> list[int]:
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=24, person=b"spotrun-seed").digest()
    # 63 bits: torch takes a signed seed.
    return [int.from_bytes(digest[at : at + 8], "little") >> 1 for at in (0, 8, 16)]


def _encode(data: bytes) -> str:
    return b64encode(data).decode("ascii")


def _tensor(text: str) -> torch.Tensor:
    import torch

    return torch.frombuffer(bytearray(b64decode(text, validate=True)), dtype=torch.uint8)
