"""conv1x1 by products of tiles, as in test_conv3x3_matrix_unit.py."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.ops import _library, conv1x1
from fastdiff.ops.conv1x1 import reference
from fastdiff.ops.matrix_unit import for_matrix_unit
from tests.judge import assert_close_by_law4
from tests.threads import on_threads

from .test_conv3x3 import NATIVE, randn

BF16 = torch.bfloat16


def weights(out_channels: int, channels: int, dtype: torch.dtype = BF16) -> tuple[Tensor, Tensor]:
    weight = randn(out_channels, channels, 1, 1, seed=1) / channels**0.5
    return weight.to(dtype), randn(out_channels, dtype=dtype, seed=2)


def judge(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    scale: float = 1.0,
) -> None:
    before = _library.native_calls("conv1x1", "CPU")
    packed = for_matrix_unit(weight)
    y = conv1x1(x, weight, bias, packed=packed, residual=residual, scale=scale)
    assert _library.native_calls("conv1x1", "CPU") == before + NATIVE
    assert_close_by_law4(y, reference.conv1x1, x, weight, bias, None, residual, scale)


def test_reference_is_the_formula() -> None:
    x, (weight, bias) = randn(2, 5, 3, 4).double(), weights(7, 5, torch.float64)
    residual = randn(2, 7, 3, 4, seed=3).double()
    y = reference.conv1x1(x, weight, bias, None, residual, 0.7)
    expected = torch.einsum("nchw,oc->nohw", x, weight[..., 0, 0]) + bias[:, None, None]
    torch.testing.assert_close(y, (expected + residual) * 0.7, rtol=1e-12, atol=1e-12)


@settings(max_examples=150, deadline=None)
@given(
    batch=st.integers(1, 4),
    channels=st.integers(1, 150) | st.sampled_from([32, 64, 256]),
    out_channels=st.integers(1, 80),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12) | st.sampled_from([16, 32])),
    with_bias=st.booleans(),
    with_residual=st.booleans(),
    scale=st.sampled_from([1.0, 0.5**0.5]),
    threads=st.sampled_from([1, 2, 3, 7]),
)
def test_any_shape_by_law4(
    batch: int,
    channels: int,
    out_channels: int,
    size: tuple[int, int],
    with_bias: bool,
    with_residual: bool,
    scale: float,
    threads: int,
) -> None:
    weight, bias = weights(out_channels, channels)
    x = randn(batch, channels, *size, dtype=BF16)
    residual = randn(batch, out_channels, *size, dtype=BF16, seed=3)
    with on_threads(threads):
        judge(x, weight, bias if with_bias else None, residual if with_residual else None, scale)


@pytest.mark.parametrize("view", ["some of the channels", "cropped", "every other sample"])
def test_strided_input(view: str) -> None:
    x, residual = {
        "some of the channels": (randn(2, 96, 8, 8)[:, 16:80], randn(2, 96, 8, 8)[:, 32:64]),
        "cropped": (randn(2, 64, 9, 9)[:, :, 1:9, 1:9], randn(2, 32, 10, 10)[:, :, 1:9, 2:10]),
        "every other sample": (randn(4, 64, 8, 8)[::2], randn(4, 32, 8, 8)[1::2]),
    }[view]
    judge(x.to(BF16), *weights(32, 64), residual.to(BF16))


def test_bits_depend_on_neither_threads_nor_batch() -> None:
    x, (weight, bias) = randn(5, 96, 10, 10, dtype=BF16), weights(80, 96)
    packed = for_matrix_unit(weight)
    whole = conv1x1(x, weight, bias, packed=packed)
    for threads in (1, 3, 8):
        with on_threads(threads):
            alone = conv1x1(x[3:4], weight, bias, packed=packed)
        assert torch.equal(alone, whole[3:4]) or not NATIVE


def test_nan_stays_in_its_pixel() -> None:
    x, (weight, bias) = randn(2, 64, 8, 8, dtype=BF16), weights(32, 64)
    x[1, 3, 5, 5] = float("nan")
    y = conv1x1(x, weight, bias, packed=for_matrix_unit(weight))
    assert y[1, :, 5, 5].isnan().all() and y.isnan().sum() == 32


def test_what_the_kernel_does_not_cover_goes_to_the_reference() -> None:
    x, (weight, bias) = randn(2, 8, 4, 4), weights(6, 8)
    before = _library.native_calls("conv1x1", "CPU")
    packed = for_matrix_unit(weight)
    conv1x1(x, weight.float(), bias.float(), packed=packed)
    conv1x1(x.to(BF16).contiguous(), weight, bias, packed=packed)
    conv1x1(x.to(BF16), weight, bias)
    assert _library.native_calls("conv1x1", "CPU") == before
    assert conv1x1(x[:0].to(BF16), weight, bias, packed=packed).shape == (0, 6, 4, 4)


def test_opcheck_and_no_gradient() -> None:
    x, (weight, bias) = randn(1, 8, 6, 6, dtype=BF16), weights(8, 8)
    args = (x, weight, bias, for_matrix_unit(weight), None, 1.0)
    torch.library.opcheck(torch.ops.fastdiff.conv1x1.default, args)
    with pytest.raises(RuntimeError, match="conv1x1 has no gradient"):
        conv1x1(x.requires_grad_(), weight, bias).sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(2, 8, 5)}, ValueError, "x is torch.float32 [2, 8, 5]"),
        ({"weight": torch.ones(8, 7, 1, 1)}, ValueError, "weight has shape [8, 7, 1, 1]"),
        ({"bias": torch.ones(7)}, ValueError, "bias has shape [7]"),
        ({"bias": torch.ones(8).half()}, TypeError, "bias is torch.float16"),
        ({"residual": torch.ones(2, 8, 6, 6)}, ValueError, "give [2, 8, 5, 5]"),
        ({"packed": torch.ones(2, 16, 8, 32)}, ValueError, "give for_matrix_unit(weight)"),
    ],
)
def test_bad_input(change: dict[str, Tensor], error: type[Exception], message: str) -> None:
    weight, bias = weights(8, 8, torch.float32)
    arguments = {"x": randn(2, 8, 5, 5), "weight": weight, "bias": bias, **change}
    with pytest.raises(error, match=re.escape(message)):
        conv1x1(**arguments)
