"""Standard normals specified to the bit, in Triton; NOTES.md is the specification.

Whoever calls `normal_tile` launches with `enable_fp_fusion=False`: one fused multiply-add in the
polynomials would change the bits.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton import block_of, grid_of, tile_of_sample, vector
from . import reference

ROUNDS = tl.constexpr(reference.ROUNDS)
MULTIPLIER_0, MULTIPLIER_1 = map(tl.constexpr, reference.MULTIPLIERS)
KEY_STEP_0, KEY_STEP_1 = map(tl.constexpr, reference.KEY_STEPS)
LN2 = tl.constexpr(reference.LN2)
HALF_PI_2M30 = tl.constexpr(reference.HALF_PI_2M30)
SQRT_HALF_BITS = tl.constexpr(reference.SQRT_HALF_BITS)
ONE_BITS = tl.constexpr(reference.ONE_BITS)
LOG = tl.constexpr(reference.LOG)
SIN = tl.constexpr(reference.SIN)
COS = tl.constexpr(reference.COS)


def philox_normal(
    shape: list[int],
    seed: Tensor,
    sample_index: Tensor,
    draw: Tensor,
    stream: int,
    dtype: torch.dtype,
) -> Tensor:
    """As the reference."""
    out = torch.empty(shape, dtype=dtype, device=sample_index.device)
    block = block_of(out)
    if out.numel():
        _philox_normal[grid_of(out, block)](
            out,
            seed,
            sample_index.contiguous(),
            draw.contiguous(),
            stream,
            math.prod(shape[1:]),
            BLOCK=block,
            VECTOR=vector(out),
            enable_fp_fusion=False,
        )
    return out


@triton.jit(do_not_specialize=["stream"])
def _philox_normal(
    out,
    seed,
    sample_index,
    draw,
    stream,
    elements,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
):
    sample, start = tile_of_sample(BLOCK)
    index, drawn = tl.load(sample_index + sample), tl.load(draw + sample)
    z = normal_tile(tl.load(seed), index, drawn, stream, start, BLOCK, VECTOR)
    at = start + tl.arange(0, BLOCK)
    tl.store(out + sample * elements + at, z, mask=at < elements)


@triton.jit
def normal_tile(seed, sample_index, draw, stream, start, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """Float32 normals [BLOCK] of a sample's elements from start on, a multiple of 4."""
    first = (start // 4).to(tl.uint32)
    if VECTOR == 8:  # two groups a thread: no lane moves where eight short elements fill 16 bytes
        group = first + 2 * tl.arange(0, BLOCK // 8).to(tl.uint32)
        a0, a1, a2, a3 = group_normals(seed, sample_index, draw, stream, group)
        b0, b1, b2, b3 = group_normals(seed, sample_index, draw, stream, group + 1)
        z0, z1, z2, z3 = tl.join(a0, b0), tl.join(a1, b1), tl.join(a2, b2), tl.join(a3, b3)
    else:
        group = first + tl.arange(0, BLOCK // 4).to(tl.uint32)
        z0, z1, z2, z3 = group_normals(seed, sample_index, draw, stream, group)
    return tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), [BLOCK])


@triton.jit
def group_normals(seed, sample_index, draw, stream, group):
    """The four normals of each group of four elements; group uint32, the rest scalars."""
    high = (stream | ((sample_index >> 32) & 0xFFFF) << 16).to(tl.uint32)
    w0, w1, w2, w3 = philox(seed, group, sample_index.to(tl.uint32), draw.to(tl.uint32), high)
    z0, z1 = box_muller(w0, w1)
    z2, z3 = box_muller(w2, w3)
    return z0, z1, z2, z3


@triton.jit
def philox(seed, c0, c1, c2, c3):
    """Philox4x32-10; tl.philox takes two instructions for a product where one gives both halves."""
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(ROUNDS):
        p0, p1 = c0.to(tl.uint64) * MULTIPLIER_0, c2.to(tl.uint64) * MULTIPLIER_1
        c0, c1 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, p1.to(tl.uint32)
        c2, c3 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1, p0.to(tl.uint32)
        k0, k1 = k0 + KEY_STEP_0, k1 + KEY_STEP_1
    return c0, c1, c2, c3


@triton.jit
def box_muller(radius_word, angle_word):
    u = radius_word.to(tl.float32) * 2.0**-32 + 2.0**-33
    radius = tl.sqrt_rn(log(u) * -2.0)
    cos, sin = cos_sin_of_turn(angle_word)
    return radius * cos, radius * sin


@triton.jit
def log(u):
    shifted = u.to(tl.int32, bitcast=True) + (ONE_BITS - SQRT_HALF_BITS)
    exponent = ((shifted >> 23) - 127).to(tl.float32)
    f = ((shifted & 0x7FFFFF) + SQRT_HALF_BITS).to(tl.float32, bitcast=True) - 1.0
    return exponent * LN2 + (f * f * horner(LOG, f) + f)


@triton.jit
def cos_sin_of_turn(word):
    x = ((word & 0x3FFFFFFF).to(tl.int32) - 0x20000000).to(tl.float32) * HALF_PI_2M30
    y = x * x
    sin = x * y * horner(SIN, y) + x
    cos = y * horner(COS, y) + 1.0
    # Quadrants 1 and 3 swap the two; the cosine is negative in 1 and 2, the sine in 2 and 3.
    odd = (word & 0x40000000) != 0
    a, b = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    return signed(a, word + 0x40000000), signed(b, word)


@triton.jit
def signed(value, word):
    """The value negated where the word's highest bit is set."""
    bits = value.to(tl.uint32, bitcast=True) ^ (word & 0x80000000)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def horner(coefficients: tl.constexpr, x):
    total = coefficients.value[-1]
    for i in tl.static_range(2, len(coefficients.value) + 1):
        total = x * total + coefficients.value[-i]
    return total
