"""strided_conv3x3 by products in float32, and of tiles as in test_conv3x3_matrix_unit.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.ops import _library, pack_strided_conv3x3, strided_conv3x3
from fastdiff.ops.conv1x1.packing import in_panels
from fastdiff.ops.matrix_unit import for_matrix_unit
from fastdiff.ops.strided_conv3x3 import reference
from tests.judge import assert_close_by_law4
from tests.threads import on_threads

from .convolutions import Case, bad_inputs, cases, kernel_calls, randn, weights

BF16 = torch.bfloat16
NATIVE = _library.native_path() is not None
Pack = Callable[[Tensor], Tensor]
by_packing = pytest.mark.parametrize("layout", [in_panels, for_matrix_unit])


def packed_by(layout: Pack, weight: Tensor) -> Tensor:
    """Pixels of a patch one after the other, each with its channels."""
    return layout(torch.cat([weight[:, :, i // 3, i % 3] for i in range(9)], 1)[..., None, None])


def judge(
    layout: Pack, x: Tensor, weight: Tensor, bias: Tensor | None, centered: bool = True
) -> None:
    assume(centered or min(x.shape[2:]) > 1)
    calls = kernel_calls("strided_conv3x3")
    y = strided_conv3x3(x, weight, bias, packed=packed_by(layout, weight), centered=centered)
    by_unit = layout is for_matrix_unit
    by_kernel = NATIVE and y.numel() > 0
    assert kernel_calls("strided_conv3x3") == (
        calls[0] + by_kernel,
        calls[1] + (by_kernel and by_unit),
    )
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close_by_law4(y, reference.strided_conv3x3, x, weight, bias, None, centered)


def test_packing_is_of_patches() -> None:
    weight, _ = weights(40, 24)
    assert torch.equal(pack_strided_conv3x3(weight), packed_by(in_panels, weight))
    expected = for_matrix_unit if _library.has_matrix_unit() else in_panels
    short = weight.to(BF16)
    assert torch.equal(pack_strided_conv3x3(short), packed_by(expected, short))


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 3)])
def test_reference_is_the_formula(size: tuple[int, int], centered: bool) -> None:
    x, (weight, bias) = randn(2, 5, *size).double(), weights(7, 5, torch.float64)
    y = reference.strided_conv3x3(x, weight, bias, None, centered)
    before = 1 if centered else 0
    assert y.shape == (2, 7, *((side + before) // 2 for side in size))
    for row, column in ((i, j) for i in range(y.shape[2]) for j in range(y.shape[3])):
        expected = bias.clone().expand(2, -1)
        for dy, dx in ((i, j) for i in range(3) for j in range(3)):
            at = 2 * row + dy - before, 2 * column + dx - before
            if 0 <= at[0] < size[0] and 0 <= at[1] < size[1]:
                expected = expected + x[:, :, at[0], at[1]] @ weight[:, :, dy, dx].T
        torch.testing.assert_close(y[:, :, row, column], expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=150, deadline=None)
@given(case=cases([BF16], kernel=3), centered=st.booleans())
def test_any_shape_by_law4_on_tiles(case: Case, centered: bool) -> None:
    with on_threads(case.threads):
        judge(for_matrix_unit, case.x, case.weight, case.bias, centered)


@settings(max_examples=150, deadline=None)
@given(case=cases([torch.float32, torch.float16, BF16], kernel=3), centered=st.booleans())
def test_any_shape_by_law4(case: Case, centered: bool) -> None:
    with on_threads(case.threads):
        judge(in_panels, case.x, case.weight, case.bias, centered)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16])
@pytest.mark.parametrize(("channels", "side"), [(128, 32), (256, 16), (192, 8)])
def test_sizes_of_unets_by_law4(channels: int, side: int, dtype: torch.dtype) -> None:
    x, (weight, bias) = randn(2, channels, side, side, dtype=dtype), weights(64, channels, dtype)
    judge(in_panels, x, weight, bias)
    if dtype == BF16:
        judge(for_matrix_unit, x, weight, bias, centered=False)


@pytest.mark.parametrize("side", [40, 38])
def test_patches_that_fill_no_cache_by_law4(side: int) -> None:
    """20 rows, which two blocks share, and 19, which are a block each."""
    judge(for_matrix_unit, randn(3, 256, side, side, dtype=BF16), *weights(40, 256, BF16))


@by_packing
@pytest.mark.parametrize("view", ["some of the channels", "cropped", "every other sample"])
def test_strided_input(view: str, layout: Pack) -> None:
    x = {
        "some of the channels": randn(2, 96, 8, 8, dtype=BF16)[:, 16:80],
        "cropped": randn(2, 64, 9, 9, dtype=BF16)[:, :, 1:9, 1:9],
        "every other sample": randn(4, 64, 8, 8, dtype=BF16)[::2],
    }[view]
    judge(layout, x, *weights(32, 64, BF16))


@by_packing
def test_bits_depend_on_neither_threads_nor_batch(layout: Pack) -> None:
    x, (weight, bias) = randn(5, 96, 10, 10, dtype=BF16), weights(80, 96, BF16)
    packed = packed_by(layout, weight)
    whole = strided_conv3x3(x, weight, bias, packed=packed)
    for threads in (1, 3, 8):
        with on_threads(threads):
            alone = strided_conv3x3(x[3:4], weight, bias, packed=packed)
        assert torch.equal(alone, whole[3:4]) or not NATIVE


@by_packing
def test_nan_stays_in_the_patches_that_have_it(layout: Pack) -> None:
    x, (weight, bias) = randn(2, 64, 8, 8, dtype=BF16), weights(32, 64, BF16)
    x[1, 3, 5, 4] = float("nan")
    y = strided_conv3x3(x, weight, bias, packed=packed_by(layout, weight))
    assert y[1, :, 2:4, 2].isnan().all() and y.isnan().sum() == 64


def test_what_the_kernels_do_not_cover_goes_to_the_reference() -> None:
    x, (weight, bias) = randn(2, 8, 4, 4, dtype=BF16), weights(6, 8, BF16)
    calls = kernel_calls("strided_conv3x3")
    for layout in (in_panels, for_matrix_unit):
        strided_conv3x3(x.contiguous(), weight, bias, packed=packed_by(layout, weight))
    wide = (x.double(), weight.double(), bias.double())
    strided_conv3x3(*wide, packed=packed_by(in_panels, weight))
    strided_conv3x3(x, weight, bias)
    assert kernel_calls("strided_conv3x3") == calls
    for layout in (in_panels, for_matrix_unit):
        packed = packed_by(layout, weight)
        assert strided_conv3x3(x[:0], weight, bias, packed=packed).shape == (0, 6, 2, 2)


@by_packing
@pytest.mark.parametrize("centered", [True, False])
def test_opcheck_and_no_gradient(layout: Pack, centered: bool) -> None:
    x, (weight, bias) = randn(1, 8, 6, 7, dtype=BF16), weights(8, 8, BF16)
    args = (x, weight, bias, packed_by(layout, weight), centered)
    torch.library.opcheck(torch.ops.fastdiff.strided_conv3x3.default, args)
    with pytest.raises(RuntimeError, match="strided_conv3x3 has no gradient"):
        strided_conv3x3(x.requires_grad_(), weight, bias).sum().backward()


BAD = [
    *(case for case in bad_inputs(3, "pack_strided_conv3x3") if "residual" not in case[0]),
    ({"x": randn(2, 8, 1, 5), "centered": False}, ValueError, "x is an image of 1x5"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    weight, bias = weights(8, 8)
    arguments = {"x": randn(2, 8, 5, 5), "weight": weight, "bias": bias, **change}
    with pytest.raises(error, match=re.escape(message)):
        strided_conv3x3(**arguments)
