"""self_attention by products in float32 and of tiles: a matrix unit's, or plain C++ instead."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.ops import _library, self_attention
from fastdiff.ops.self_attention import reference
from tests.judge import assert_close_by_law4
from tests.threads import on_threads

from .convolutions import randn

BF16 = torch.bfloat16
NATIVE = _library.native_path() is not None
DTYPES = [torch.float32, torch.float16, BF16]
# A dtype, and whether its products are of tiles.
WAYS = [(dtype, False) for dtype in DTYPES] + [(BF16, True)]
by_way = pytest.mark.parametrize(("dtype", "by_tiles"), WAYS)


def judge(qkv: Tensor, heads: int, by_tiles: bool) -> Tensor:
    calls = _calls()
    y = self_attention(qkv, heads, by_tiles=by_tiles)
    assert _calls() == (calls[0] + NATIVE, calls[1] + (NATIVE and by_tiles))
    assert_close_by_law4(y, reference.self_attention, qkv, None, heads)
    return y


def _calls() -> tuple[int, int]:
    """Of the kernels, and of the one on tiles among them."""
    names = ("self_attention", "self_attention_tiles")
    return tuple(_library.native_calls(name, "CPU") for name in names)  # type: ignore[return-value]


def test_reference_is_the_formula() -> None:
    heads, d, qkv = 2, 5, randn(3, 30, 4, 3).double()
    y = reference.self_attention(qkv, None, heads)
    for n in range(3):
        for head in range(heads):
            q, k, v = (
                qkv[n, (part * heads + head) * d :][:d].reshape(d, 12).T for part in range(3)
            )
            weights = torch.exp(q @ k.T / math.sqrt(d))
            expected = weights / weights.sum(1, keepdim=True) @ v
            of_head = y[n, head * d : (head + 1) * d].reshape(d, 12).T
            torch.testing.assert_close(of_head, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(
    way=st.sampled_from(WAYS),
    batch=st.integers(1, 3),
    heads=st.integers(1, 4),
    head_channels=st.integers(1, 80) | st.sampled_from([32, 33, 64, 128]),
    height=st.integers(1, 9) | st.just(16),
    width=st.integers(1, 9) | st.just(16),
    threads=st.sampled_from([1, 2, 3, 7]),
)
def test_any_shape_by_law4(
    way: tuple[torch.dtype, bool],
    batch: int,
    heads: int,
    head_channels: int,
    height: int,
    width: int,
    threads: int,
) -> None:
    dtype, by_tiles = way
    qkv = randn(batch, 3 * heads * head_channels, height, width, dtype=dtype)
    with on_threads(threads):
        judge(qkv, heads, by_tiles)


@by_way
@pytest.mark.parametrize(
    ("channels", "heads", "side"),
    [(256, 1, 16), (512, 8, 8), (192, 3, 32), (512, 1, 4), (33, 1, 8), (105, 3, 7)],
)
def test_sizes_of_unets_and_odd_ones_by_law4(
    channels: int, heads: int, side: int, dtype: torch.dtype, by_tiles: bool
) -> None:
    judge(randn(2, 3 * channels, side, side, dtype=dtype), heads, by_tiles)


@by_way
@pytest.mark.parametrize("view", ["whole", "some of the channels"])
@pytest.mark.parametrize(
    ("batch", "channels", "heads", "side"), [(2, 256, 1, 16), (1, 105, 3, 7), (3, 33, 1, 5)]
)
def test_an_image_that_is_keys_and_values(
    batch: int, channels: int, heads: int, side: int, view: str, dtype: torch.dtype, by_tiles: bool
) -> None:
    q, image = (randn(batch, channels, side, side, dtype=dtype) for _ in range(2))
    if view == "some of the channels":
        image = randn(batch, channels + 7, side, side, dtype=dtype)[:, 7:]
    calls = _calls()
    y = self_attention(q, heads, image=image, by_tiles=by_tiles)
    assert _calls() == (calls[0] + NATIVE, calls[1] + (NATIVE and by_tiles))
    joined = torch.cat((q, image, image), dim=1)
    assert torch.equal(y, self_attention(joined, heads, by_tiles=by_tiles)) or not NATIVE
    assert_close_by_law4(y, reference.self_attention, q, image, heads)


@by_way
@pytest.mark.parametrize("spread", [0.01, 20.0])
def test_flat_and_sharp_weights_by_law4(spread: float, dtype: torch.dtype, by_tiles: bool) -> None:
    qkv = randn(2, 96, 9, 9)
    qkv[:, :64] *= spread
    judge(qkv.to(dtype), 2, by_tiles)


@by_way
@pytest.mark.parametrize(
    "view", ["some of the channels", "of an odd number", "every other sample", "one column"]
)
def test_strided_input(view: str, dtype: torch.dtype, by_tiles: bool) -> None:
    qkv = {
        "some of the channels": randn(2, 128, 8, 8, dtype=dtype)[:, 16:112],
        "of an odd number": randn(2, 129, 8, 8, dtype=dtype)[:, 17:113],
        "every other sample": randn(4, 96, 8, 8, dtype=dtype)[::2],
        "one column": randn(2, 96, 8, 8, dtype=dtype)[..., 3:4],
    }[view]
    judge(qkv, 1, by_tiles)


@by_way
def test_bits_depend_on_neither_threads_nor_batch(dtype: torch.dtype, by_tiles: bool) -> None:
    qkv = randn(5, 144, 10, 10, dtype=dtype)
    whole = self_attention(qkv, 2, by_tiles=by_tiles)
    for threads in (1, 3, 8):
        with on_threads(threads):
            alone = self_attention(qkv[3:4], 2, by_tiles=by_tiles)
        assert torch.equal(alone, whole[3:4]) or not NATIVE


@by_way
def test_nan_and_infinities_spoil_what_they_must(dtype: torch.dtype, by_tiles: bool) -> None:
    def spoiled(channel: int, value: float) -> Tensor:
        qkv = randn(2, 192, 6, 6, dtype=dtype)
        qkv[1, channel, 3, 3] = value
        y = judge(qkv, 2, by_tiles)
        assert not y[0].isnan().any() and not y[1, :32].isnan().any()  # another sample and head
        return y[1, 32:]

    q, k, v = 40, 64 + 40, 128 + 40
    query = spoiled(q, math.nan).isnan()
    assert query[:, 3, 3].all() and query.sum() == 32  # its own row of weights
    assert spoiled(k, math.nan).isnan().all()  # a weight of each row
    assert spoiled(v, math.nan).isnan().sum() == 36  # its channel
    assert spoiled(q, math.inf)[:, 3, 3].isnan().all()
    key = spoiled(k, math.inf).isnan().all(dim=0)  # scores of infinity, or weights of 0
    assert key.any() and not key.all()


def test_what_the_kernels_do_not_cover_goes_to_the_reference() -> None:
    qkv, calls = randn(2, 48, 6, 6), _calls()
    for other in (qkv.contiguous(), qkv.double(), qkv[:, :, :, 1:5]):
        y = self_attention(other, 2)
        torch.testing.assert_close(y, reference.self_attention(other, None, 2), rtol=0, atol=0)
    q, image = randn(2, 16, 6, 6), randn(2, 16, 6, 6)
    y = self_attention(q, 2, image=image.contiguous())
    torch.testing.assert_close(y, reference.self_attention(q, image, 2), rtol=0, atol=0)
    assert _calls() == calls
    assert self_attention(q[:0], 2, image=image[:0]).shape == (0, 16, 6, 6)
    assert self_attention(qkv[:0], 2).shape == (0, 16, 6, 6)


@by_way
def test_opcheck_and_no_gradient(dtype: torch.dtype, by_tiles: bool) -> None:
    qkv = randn(1, 24, 4, 4, dtype=dtype)
    torch.library.opcheck(torch.ops.fastdiff.self_attention.default, (qkv, None, 2, by_tiles))
    q, image = randn(1, 8, 4, 4, dtype=dtype), randn(1, 8, 4, 4, dtype=dtype)
    torch.library.opcheck(torch.ops.fastdiff.self_attention.default, (q, image, 2, by_tiles))
    with pytest.raises(RuntimeError, match="self_attention has no gradient"):
        self_attention(qkv.requires_grad_(), 2).sum().backward()


def test_tiles_are_taken_where_there_is_a_unit_for_them() -> None:
    calls = _calls()
    self_attention(randn(1, 24, 4, 4, dtype=BF16), 2)
    assert _calls()[1] == calls[1] + _library.has_matrix_unit()


@pytest.mark.parametrize(
    ("qkv", "heads", "error", "message"),
    [
        (torch.zeros(1, 24, 4, 4).int(), 2, TypeError, "qkv is torch.int32"),
        (torch.zeros(1, 24, 16), 2, ValueError, "qkv has shape [1, 24, 16]"),
        (torch.zeros(1, 24, 4, 4), 3, ValueError, "for 3 heads"),
        (torch.zeros(1, 24, 4, 4), 0, ValueError, "for 0 heads"),
    ],
)
def test_bad_input(qkv: Tensor, heads: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        self_attention(qkv, heads)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.zeros(1, 24, 4, 5), ValueError, "image has shape [1, 24, 4, 5]"),
        (torch.zeros(1, 24, 4, 4).half(), TypeError, "image is torch.float16"),
    ],
)
def test_an_image_that_does_not_fit(image: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        self_attention(torch.zeros(1, 24, 4, 4), 2, image=image)
