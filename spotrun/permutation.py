"""A random order of range(n) that is computed, never stored: O(1) memory and O(1) start at any position.

It is a keyed bijection: a Feistel network over a grid of `a` x `b` cells, a * b barely above n, with cycle walking for
the few cells past n (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Each round shifts one
coordinate by a hash of the other, which can be undone, so no two positions ever share a value. It shuffles data; it
does not hide them.

The order is part of what a checkpoint means: a change of any constant here changes the data of running jobs.
"""

from __future__ import annotations

import hashlib
from math import isqrt

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

MAX_N = 1 << 60  # both sides of the grid stay below 2^32, so that no product overflows 64 bits
ROUNDS = 8  # 4 pass the tests of randomness for large n; the others are margin
_SMALL, _SMALL_ROUNDS = 1024, 24  # few cells give a round little to choose from: 8 leave 5! orders visibly uneven
_BLOCK = 1 << 13  # positions handled at once: the few arrays of a block stay in a core's L2 cache
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)  # the multipliers of SplitMix64 (Steele, Lea, Flood 2014)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_32 = np.uint64(32)
_29 = np.uint64(29)


class Permutation:
    """The order of range(n) that belongs to `key`, for example (seed, epoch). Other keys give unrelated orders."""

    def __init__(self, n: int, key: tuple[int, ...]) -> None:
        """Raises ValueError unless 1 <= n <= 2^60."""
        if not 1 <= n <= MAX_N:
            raise ValueError(f"a permutation of {n} items: between 1 and 2^60 are supported")
        self.n = n
        # One side is even: over two odd sides every round is an even permutation, and so is their product.
        self._a = 2 * ((isqrt(n - 1) + 2) // 2)
        self._b = -(-n // self._a)
        rounds = _SMALL_ROUNDS if n < _SMALL else ROUNDS
        digest = hashlib.shake_128("/".join(map(str, (n, *key))).encode()).digest(8 * rounds)
        self._keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def __call__(self, positions: npt.ArrayLike) -> Ids:
        """The values at `positions` (integers in range(n), any 1-d array or range), as int64 of the same length."""
        wanted = np.asarray(positions, dtype=np.int64)
        if wanted.size and not (int(wanted.min()) >= 0 and int(wanted.max()) < self.n):
            raise ValueError(f"positions reach outside of range({self.n})")
        values = np.empty(wanted.shape, dtype=np.int64)
        for start in range(0, wanted.size, _BLOCK):
            block = self._once(wanted[start : start + _BLOCK].astype(np.uint64))
            # Cells past n lead to the next cell of their cycle; the cycle comes back below n, where it came from.
            while (outside := np.flatnonzero(block >= self.n)).size:
                block[outside] = self._once(block[outside])
            values[start : start + _BLOCK] = block
        return values

    def _once(self, cells: _Words) -> _Words:
        a, b = np.uint64(self._a), np.uint64(self._b)
        left = cells // b
        right = cells - left * b
        work, high = np.empty_like(cells), np.empty_like(cells)
        for number, key in enumerate(self._keys):
            if number % 2 == 0:
                _shift(left, right, a, key, work, high)
            else:
                _shift(right, left, b, key, work, high)
        left *= b
        left += right
        return left


def _shift(target: _Words, source: _Words, size: np.uint64, key: np.uint64, work: _Words, high: _Words) -> None:
    """target = (target + hash(source)) mod size, in place; `work` and `high` are scratch."""
    np.add(source, key, out=work)
    work *= _MIX_1
    np.right_shift(work, _29, out=high)
    work ^= high
    work *= _MIX_2
    work >>= _32
    work *= size  # 32 random bits to range(size) by multiply and shift (Lemire 2019): no slow 64-bit remainder
    work >>= _32
    target += work
    # Where target < size the difference wraps to a huge number: the minimum is the remainder.
    np.subtract(target, size, out=work)
    np.minimum(target, work, out=target)
