"""Counter-based random numbers as a value: the same bits in any order, any process, after any interruption.

The generator is Threefry-2×32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
3", section on Threefry), checked against the known answers published with Random123. The generator needs only
32-bit additions, rotations and exclusive-ors, so any framework computes the same bits. The key identifies the
draw (seed, weight, step, purpose). The counter is the position in the weight.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from nt_core.errors import SpecError

Key: TypeAlias = tuple[int, int]
"""Two unsigned 32-bit words."""

Positions: TypeAlias = NDArray[np.integer[Any]] | slice
"""Non-negative integers of any shape, or a slice with an explicit stop, which is never made into an array."""

Words: TypeAlias = NDArray[np.uint32]

LARGEST_SEED: Final = (1 << 64) - 1
"""Largest seed of a training, because frameworks' own generators read 64 bits."""

_T = TypeVar("_T", np.uint32, np.float64)

_CHUNK: Final = 1 << 15  # three scratch rows of 32-bit words stay in a second-level cache
_PARITY: Final = 0x1BD11BDA
_ROTATIONS: Final = ((13, 15, 26, 6), (17, 29, 16, 24))
_WORD: Final = 0xFFFFFFFF


def expect_seed(seed: int) -> None:
    """Check the seed of a training, which frameworks' own generators read, too.

    Raises:
        SpecError: it is no whole number, or needs more than 64 bits.

    Example:
        >>> expect_seed(-1)
        Traceback (most recent call last):
        nt_core.errors.SpecError: seed: expected a whole number from 0 to 2**64 - 1, found -1
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed <= LARGEST_SEED:
        raise SpecError(f"seed: expected a whole number from 0 to 2**64 - 1, found {seed!r:.80}")


def threefry2x32(key: Key, counter0: Words, counter1: Words) -> tuple[Words, Words]:
    """Encrypt counters with Threefry-2×32-20 (Salmon et al. 2011, section on Threefry).

    Args:
        key: two unsigned 32-bit words.
        counter0: uint32 of any shape, the first word of each counter.
        counter1: uint32 of the same shape, the second word.

    Returns:
        The two words of each random block, uint32 of the same shape.

    Example:
        >>> zero = np.zeros(1, np.uint32)
        >>> [f"{word[0]:08x}" for word in threefry2x32((0, 0), zero, zero)]
        ['6b200159', '99ba4efe']
    """
    word0, word1 = counter0.flatten(), counter1.flatten()
    scratch = np.empty(min(_CHUNK, word0.size), np.uint32)
    for part in _parts(word0.size):
        _encrypt(key, word0[part], word1[part], scratch[: part.stop - part.start])
    return word0.reshape(counter0.shape), word1.reshape(counter1.shape)


@dataclass(frozen=True, slots=True)
class Random:
    """The root of all randomness of a run.

    Attributes:
        seed: any integer.

    Example:
        >>> stream = Random(7).at(weight="head2/stage3.1/conv1", step=1200, purpose="grow")
        >>> stream.bits(slice(0, 3))
        array([3993348652, 1463720216, 2623924050], dtype=uint32)
        >>> stream.bits(np.array([2]))
        array([2623924050], dtype=uint32)
    """

    seed: int

    def at(self, *, weight: str, step: int = 0, purpose: str) -> Stream:
        """Return the stream of one draw; equal names give equal bits, different names unrelated bits.

        The key is the 8-byte BLAKE2b digest, read as two little-endian words, of the JSON text of
        ``[seed, weight, step, purpose]`` without spaces, in ASCII.

        Args:
            weight: the full name of the weight.
            step: the training step; 0 for draws before training.
            purpose: of the draw, such as ``"initial"`` or ``"grow"``.

        Example:
            >>> Random(0).at(weight="a", purpose="b") == Random(0).at(weight="a", step=0, purpose="b")
            True
        """
        name = json.dumps([int(self.seed), weight, int(step), purpose], separators=(",", ":"))
        digest = hashlib.blake2b(name.encode("ascii"), digest_size=8).digest()
        return Stream((int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")))


@dataclass(frozen=True, slots=True)
class Stream:
    """An endless sequence of random values, each addressed by its position and independent of every other.

    The methods take positions of any shape and return values of that shape. A slice ``slice(start, stop,
    step)`` means ``range(start, stop, step)``, so ``stream.gumbel`` is a score that
    `nt_core.masks.top_k` can read a chunk at a time. Bits and uniform values are the same on every platform.
    Gumbel and normal values depend on the last digit of the platform's ``log``.

    Attributes:
        key: two unsigned 32-bit words.

    Example:
        >>> Stream((0, 0)).bits(np.zeros((1, 2), int))
        array([[1797259609, 1797259609]], dtype=uint32)
    """

    key: Key

    def bits(self, positions: Positions) -> Words:
        """Return 32 random bits per position: the first word of the block whose counter is the position.

        The counter is (low 32 bits, high 32 bits) of the position.

        Example:
            >>> Stream((0, 0)).bits(slice(0, 1))
            array([1797259609], dtype=uint32)
        """
        return self._fill(positions, np.uint32, _first_word)

    def uniform(self, positions: Positions) -> NDArray[np.float64]:
        """Return uniform values (i + ½)·2⁻⁵², i from 52 bits of both words; never 0, never 1.

        Example:
            >>> Stream((0, 0)).uniform(slice(0, 2)).round(6)
            array([0.418457, 0.314682])
        """
        return self._fill(positions, np.float64, _uniform)

    def gumbel(self, positions: Positions) -> NDArray[np.float64]:
        """Return standard Gumbel values −log(−log u).

        The k largest of log p + Gumbel are a sample of k without replacement with probability ∝ p (Kool et
        al. 2019, "Stochastic beams and where to find them", §2.3).

        Example:
            >>> Stream((0, 0)).gumbel(slice(0, 2)).round(6)
            array([ 0.137906, -0.145133])
        """
        return self._fill(positions, np.float64, _gumbel)

    def normal(self, positions: Positions) -> NDArray[np.float64]:
        """Return standard normal values, by inversion of the uniform values.

        Example:
            >>> Stream((0, 0)).normal(slice(0, 2)).round(6)
            array([-0.205842, -0.482623])
        """
        return self._fill(positions, np.float64, _normal)

    def _fill(
        self, positions: Positions, dtype: type[_T], finish: Callable[[Words, Words, NDArray[_T]], object]
    ) -> NDArray[_T]:
        """Encrypt the positions chunk by chunk and let ``finish`` turn each chunk's words into values."""
        where = _as_range(positions) if isinstance(positions, slice) else positions.reshape(-1)
        out = np.empty(len(where), dtype)
        word0, word1, scratch = np.empty((3, min(_CHUNK, len(where))), np.uint32)
        for part in _parts(len(where)):
            size = part.stop - part.start
            low, high = _counters(where[part], word0[:size], word1[:size])
            _encrypt(self.key, low, high, scratch[:size])
            finish(low, high, out[part])
        return out if isinstance(positions, slice) else out.reshape(positions.shape)


def _parts(size: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK))


def _as_range(positions: slice) -> range:
    step = 1 if positions.step is None else positions.step
    return range(positions.start or 0, positions.stop, step)


def _counters(where: range | NDArray[np.integer[Any]], low: Words, high: Words) -> tuple[Words, Words]:
    """Split positions into 32-bit words, in place."""
    if isinstance(where, range):
        where = np.arange(where.start, where.stop, where.step, dtype=np.int64)
    low[...] = where.astype(np.uint32)
    high[...] = where >> 32 if where.dtype.itemsize == 8 else 0
    return low, high


def _encrypt(key: Key, word0: Words, word1: Words, scratch: Words) -> None:
    """Apply the 20 rounds in place; ``scratch`` is overwritten."""
    keys = tuple(np.uint32(word) for word in (*key, key[0] ^ key[1] ^ _PARITY))
    word0 += keys[0]
    word1 += keys[1]
    for group in range(1, 6):
        for distance in _ROTATIONS[(group - 1) % 2]:
            word0 += word1
            np.left_shift(word1, np.uint32(distance), out=scratch)
            word1 >>= np.uint32(32 - distance)
            word1 |= scratch
            word1 ^= word0
        word0 += keys[group % 3]
        word1 += np.uint32((int(keys[(group + 1) % 3]) + group) & _WORD)


def _first_word(word0: Words, _: Words, out: Words) -> None:
    out[...] = word0


def _uniform(word0: Words, word1: Words, out: NDArray[np.float64]) -> None:
    # 53 bits and a half would round up to 1; 52 and a half are exact.
    np.multiply(word0, 2.0**20, out=out)
    word1 >>= np.uint32(12)
    out += word1
    out += 0.5
    out *= 2.0**-52


def _gumbel(word0: Words, word1: Words, out: NDArray[np.float64]) -> None:
    _uniform(word0, word1, out)
    for _ in range(2):
        np.log(out, out=out)
        np.negative(out, out=out)


def _normal(word0: Words, word1: Words, out: NDArray[np.float64]) -> None:
    _uniform(word0, word1, out)
    ndtri(out, out=out)
