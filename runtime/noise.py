"""Normal noise of a seed, as other programs draw it, so that seeds keep their meaning."""

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.runtime import cephes
from diffusion_rt.runtime.request import RNGS, way_out

Normal = NDArray[np.float32]
Words = NDArray[np.uint32]

MASK_32 = 0xFFFF_FFFF
MASK_64 = 0xFFFF_FFFF_FFFF_FFFF


class NoiseSource(Protocol):
    """One generator of noise, for one image. Each draw goes on from the one before."""

    def normal(self, shape: tuple[int, ...]) -> Normal:
        """The next standard normal draw, float32 of this shape."""
        ...


def make_noise(kind: str, seed: int) -> NoiseSource:
    """The noise of `seed` as `cpu` (PyTorch on a CPU) or `nv` (PyTorch on an NVIDIA GPU) has it.

    Seeds are those of torch.Generator.manual_seed: -2**63 to 2**64 - 1, negative ones counted from
    2**64 down. Raises BadInput.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise BadInput(f"seed={seed!r} is no whole number from {-(2**63)} to {2**64 - 1}")
    if kind == "cpu":
        return TorchNoise(seed)
    if kind == "nv":
        return PhiloxNoise(seed)
    raise BadInput(f"rng={kind!r} is not known; {way_out(str(kind), RNGS)}")


class TorchNoise:
    """torch.randn in float32 with a CPU generator, its draws to 4e-7."""

    def __init__(self, seed: int) -> None:
        """Only the lower 32 bits of the seed count, as in PyTorch."""
        # RandomState seeds the Mersenne Twister as Matsumoto and Nishimura's init_genrand does,
        # which is what PyTorch does too; its stream is frozen by NumPy's policy (NEP 19).
        self._twister = np.random.RandomState(seed & MASK_32)
        self._second: float | None = None

    def normal(self, shape: tuple[int, ...]) -> Normal:
        """The next draw, float32 of this shape."""
        count = math.prod(shape)
        values = self._few(count) if count < 16 else self._many(count)
        return values.reshape(shape)

    def _many(self, count: int) -> Normal:
        """By sixteens; the last sixteen are drawn anew where `count` is no multiple of sixteen."""
        whole = count // 16 * 16
        words = self._words(count)
        values = np.empty(count, np.float32)
        values[:whole] = _sixteens(words[:whole])
        if whole < count:
            values[-16:] = _sixteens(self._words(16))
        return values

    def _few(self, count: int) -> Normal:
        """Fewer than sixteen values come in pairs; half a pair waits for the next such draw."""
        values = np.empty(count, np.float32)
        for i in range(count):
            if self._second is None:
                first, second = self._uniform(), self._uniform()
                radius = math.sqrt(-2 * math.log1p(-second))
                values[i] = radius * math.cos(2 * math.pi * first)
                self._second = radius * math.sin(2 * math.pi * first)
            else:
                values[i], self._second = self._second, None
        return values

    def _uniform(self) -> float:
        """A float64 of 53 bits in [0, 1), from two words, the upper one first."""
        upper, lower = self._words(2).tolist()
        return float(((upper << 32 | lower) & (2**53 - 1)) * 2.0**-53)

    def _words(self, count: int) -> Words:
        return self._twister.randint(0, 2**32, count, np.uint32)


def _sixteens(words: Words) -> Normal:
    """Box and Muller (1958) on eight pairs of words at a time: eight cosines, then eight sines."""
    uniform = (words & np.uint32(0xFF_FFFF)).astype(np.float32).reshape(-1, 2, 8)
    uniform *= np.float32(2.0**-24)
    radius = np.sqrt(np.float32(-2) * cephes.log(1 - uniform[:, 0]))
    sine, cosine = cephes.sine_and_cosine(np.float32(2 * math.pi) * uniform[:, 1])
    values = np.empty_like(uniform)
    np.multiply(radius, cosine, out=values[:, 0])
    np.multiply(radius, sine, out=values[:, 1])
    return values.reshape(-1)


class PhiloxNoise:
    """torch.randn in float32 on an NVIDIA GPU, as AUTOMATIC1111's "NV" source draws it anywhere.

    Value i of draw d is made of the Philox block with counter (d, 0, i, 0) and the seed as key. On
    a GPU that holds for draws small enough that each thread makes one value; latents are.
    """

    def __init__(self, seed: int) -> None:
        """All 64 bits of the seed count."""
        self._key = seed & MASK_64
        self._draws = 0

    def normal(self, shape: tuple[int, ...]) -> Normal:
        """The next draw, float32 of this shape."""
        count = math.prod(shape)
        counter = np.zeros((4, count), np.uint32)
        counter[0] = self._draws & MASK_32
        counter[1] = self._draws >> 32
        counter[2] = np.arange(count)
        self._draws += 1
        first, second, _, _ = philox_4x32(counter, self._key)
        # cuRAND's Box and Muller: both words fall in the middle of their intervals, 2 pi is its
        # float32, and the sine comes first.
        radius = np.sqrt(-2 * np.log(first * 2.0**-32 + 2.0**-33))
        turn = 2.0**-32 * float(np.float32(2 * math.pi))
        values: Normal = (radius * np.sin(second * turn + turn / 2)).astype(np.float32)
        return values.reshape(shape)


def philox_4x32(counter: Words, key: int, rounds: int = 10) -> Words:
    """Philox-4x32 (Salmon et al., 2011, section 3.3): the blocks [4, n] of counters [4, n]."""
    c0, c1, c2, c3 = counter
    low, high = key & MASK_32, key >> 32
    for _ in range(rounds):
        # The 64-bit products as pairs of words, the lower one first.
        left = np.multiply(c0, 0xD251_1F53, dtype="<u8").view("<u4").reshape(-1, 2)
        right = np.multiply(c2, 0xCD9E_8D57, dtype="<u8").view("<u4").reshape(-1, 2)
        c0 = right[:, 1] ^ c1 ^ np.uint32(low)
        c2 = left[:, 1] ^ c3 ^ np.uint32(high)
        c1, c3 = right[:, 0], left[:, 0]
        low, high = (low + 0x9E37_79B9) & MASK_32, (high + 0xBB67_AE85) & MASK_32
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)
