"""Standard normals specified to the bit, in plain PyTorch; NOTES.md is the specification."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

LN2 = float.fromhex("0x1.62e430p-1")
HALF_PI_2M30 = float.fromhex("0x1.921fb6p-30")
SQRT_HALF_BITS = 0x3F3504F3
ONE_BITS = 0x3F800000
LOG = tuple(
    map(
        float.fromhex,
        (
            "-0x1.00006cp-1",
            "0x1.5558f4p-2",
            "-0x1.ff6978p-3",
            "0x1.97b1a4p-3",
            "-0x1.61212cp-3",
            "0x1.4b5dc8p-3",
            "-0x1.9d03acp-4",
        ),
    )
)
SIN = tuple(map(float.fromhex, ("-0x1.555546p-3", "0x1.11077ep-7", "-0x1.9956b6p-13")))
COS = tuple(map(float.fromhex, ("-0x1p-1", "0x1.55554ap-5", "-0x1.6c0c1ap-10", "0x1.99e0eep-16")))


def philox_normal(
    shape: list[int],
    seed: Tensor,
    sample_index: Tensor,
    draw: Tensor,
    stream: int,
    dtype: torch.dtype,
) -> Tensor:
    """Normals [N, ...] for seed [], sample_index and draw [N], all int64."""
    elements = math.prod(shape[1:])
    device = sample_index.device
    group = torch.arange(-(-elements // 4), device=device)
    counter = (
        group & WORD,
        (sample_index & WORD)[:, None],
        (draw & WORD)[:, None],
        (stream | (sample_index >> 32 & 0xFFFF) << 16)[:, None],
    )
    w0, w1, w2, w3 = philox(counter, (seed & WORD, seed >> 32 & WORD))
    lanes = torch.stack((*box_muller(w0, w1), *box_muller(w2, w3)), dim=-1)
    return lanes.flatten(1)[:, :elements].reshape(shape).to(dtype).contiguous()


def philox(counter: tuple[Tensor, ...], key: tuple[int | Tensor, ...]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al. 2011): four words as int64 tensors in 0..2**32-1."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # int64 products wrap as unsigned ones do; the masks keep the right bits of either half.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> 32 & WORD) ^ c1 ^ k0,
            p1 & WORD,
            (p0 >> 32 & WORD) ^ c3 ^ k1,
            p0 & WORD,
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def box_muller(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent float32 normals from two words, each operation rounded by itself."""
    u = radius_word.to(torch.float32) * 2.0**-32 + 2.0**-33
    # torch.sqrt of float32 is not correctly rounded on every CPU; of float64, rounded, it is.
    radius = (log(u) * -2.0).to(torch.float64).sqrt().to(torch.float32)
    cos, sin = cos_sin_of_turn(angle_word)
    return radius * cos, radius * sin


def log(u: Tensor) -> Tensor:
    """Natural logarithm of normal float32 u > 0: exponent * ln 2 + log(1 + f), f near 0."""
    shifted = u.view(torch.int32) + (ONE_BITS - SQRT_HALF_BITS)
    exponent = ((shifted >> 23) - 127).to(torch.float32)
    f = ((shifted & 0x7FFFFF) + SQRT_HALF_BITS).view(torch.float32) - 1.0
    return exponent * LN2 + (f * f * horner(LOG, f) + f)


def cos_sin_of_turn(word: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2 pi (word - 2**29) / 2**32: two bits of quadrant, 30 of angle."""
    quadrant = word >> 30
    x = ((word & 0x3FFFFFFF) - 0x20000000).to(torch.float32) * HALF_PI_2M30
    y = x * x
    sin = x * y * horner(SIN, y) + x
    cos = y * horner(COS, y) + 1.0
    odd = quadrant % 2 == 1
    a, b = torch.where(odd, sin, cos), torch.where(odd, cos, sin)
    return torch.where((quadrant == 1) | (quadrant == 2), -a, a), torch.where(quadrant >= 2, -b, b)


def horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """coefficients[0] + coefficients[1] * x + ..., from the highest power down."""
    *lower, value = coefficients
    total: Tensor | float = value
    for coefficient in reversed(lower):
        total = x * total + coefficient
    return torch.as_tensor(total)
