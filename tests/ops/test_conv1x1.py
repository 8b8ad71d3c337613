"""conv1x1 by products in float32, and of tiles as in test_conv3x3_matrix_unit.py."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from fastdiff.ops import _library, conv1x1, pack_conv1x1
from fastdiff.ops.conv1x1 import reference
from fastdiff.ops.conv1x1.packing import in_panels
from fastdiff.ops.matrix_unit import for_matrix_unit
from tests.judge import assert_close_by_law4
from tests.threads import on_threads

from . import convolutions
from .convolutions import Case, bad_inputs, cases, kernel_calls, randn

BF16 = torch.bfloat16
NATIVE = _library.native_path() is not None
Pack = Callable[[Tensor], Tensor]
by_packing = pytest.mark.parametrize("pack", [in_panels, for_matrix_unit])


def weights(out_channels: int, channels: int, dtype: torch.dtype = BF16) -> tuple[Tensor, Tensor]:
    return convolutions.weights(out_channels, channels, dtype, kernel=1)


def judge(
    pack: Pack,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    scale: float = 1.0,
) -> None:
    calls = kernel_calls("conv1x1")
    y = conv1x1(x, weight, bias, packed=pack(weight), residual=residual, scale=scale)
    by_unit = pack is for_matrix_unit
    assert kernel_calls("conv1x1") == (calls[0] + NATIVE, calls[1] + (NATIVE and by_unit))
    assert_close_by_law4(y, reference.conv1x1, x, weight, bias, None, residual, scale)


def test_packing_keeps_every_weight() -> None:
    weight, _ = weights(40, 24, torch.float32)
    packed = in_panels(weight)
    assert packed.shape == (2, 24, 32)
    assert torch.equal(packed.transpose(1, 2).flatten(0, 1)[:40], weight[:, :, 0, 0])
    assert not packed[1, :, 8:].any()
    expected = for_matrix_unit if _library.has_matrix_unit() else in_panels
    assert torch.equal(pack_conv1x1(weight.to(BF16)), expected(weight.to(BF16)))
    assert torch.equal(pack_conv1x1(weight), packed)


def test_reference_is_the_formula() -> None:
    x, (weight, bias) = randn(2, 5, 3, 4).double(), weights(7, 5, torch.float64)
    residual = randn(2, 7, 3, 4, seed=3).double()
    y = reference.conv1x1(x, weight, bias, None, residual, 0.7)
    expected = torch.einsum("nchw,oc->nohw", x, weight[..., 0, 0]) + bias[:, None, None]
    torch.testing.assert_close(y, (expected + residual) * 0.7, rtol=1e-12, atol=1e-12)


@settings(max_examples=150, deadline=None)
@given(case=cases([BF16], kernel=1))
def test_any_shape_by_law4_on_tiles(case: Case) -> None:
    with on_threads(case.threads):
        judge(for_matrix_unit, case.x, case.weight, case.bias, case.residual, case.scale)


@settings(max_examples=150, deadline=None)
@given(case=cases([torch.float32, torch.float16, BF16], kernel=1))
def test_any_shape_by_law4(case: Case) -> None:
    with on_threads(case.threads):
        judge(in_panels, case.x, case.weight, case.bias, case.residual, case.scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16])
@pytest.mark.parametrize(("channels", "out_channels", "side"), [(512, 256, 16), (768, 40, 4)])
def test_sizes_of_unets_by_law4(
    channels: int, out_channels: int, side: int, dtype: torch.dtype
) -> None:
    x = randn(2, channels, side, side, dtype=dtype)
    judge(in_panels, x, *weights(out_channels, channels, dtype))


@by_packing
@pytest.mark.parametrize("view", ["some of the channels", "cropped", "every other sample"])
def test_strided_input(view: str, pack: Pack) -> None:
    def image(*shape: int) -> Tensor:
        return randn(*shape, dtype=BF16)

    x, residual = {
        "some of the channels": (image(2, 96, 8, 8)[:, 16:80], image(2, 96, 8, 8)[:, 32:64]),
        "cropped": (image(2, 64, 9, 9)[:, :, 1:9, 1:9], image(2, 32, 10, 10)[:, :, 1:9, 2:10]),
        "every other sample": (image(4, 64, 8, 8)[::2], image(4, 32, 8, 8)[1::2]),
    }[view]
    judge(pack, x, *weights(32, 64), residual)


@by_packing
def test_bits_depend_on_neither_threads_nor_batch(pack: Pack) -> None:
    x, (weight, bias) = randn(5, 96, 10, 10, dtype=BF16), weights(80, 96)
    packed = pack(weight)
    whole = conv1x1(x, weight, bias, packed=packed)
    for threads in (1, 3, 8):
        with on_threads(threads):
            alone = conv1x1(x[3:4], weight, bias, packed=packed)
        assert torch.equal(alone, whole[3:4]) or not NATIVE


@by_packing
def test_nan_stays_in_its_pixel(pack: Pack) -> None:
    x, (weight, bias) = randn(2, 64, 8, 8, dtype=BF16), weights(32, 64)
    x[1, 3, 5, 5] = float("nan")
    y = conv1x1(x, weight, bias, packed=pack(weight))
    assert y[1, :, 5, 5].isnan().all() and y.isnan().sum() == 32


def test_what_the_kernels_do_not_cover_goes_to_the_reference() -> None:
    x, (weight, bias) = randn(2, 8, 4, 4, dtype=BF16), weights(6, 8)
    calls = kernel_calls("conv1x1")
    for pack in (in_panels, for_matrix_unit):
        conv1x1(x.contiguous(), weight, bias, packed=pack(weight))
    conv1x1(x.double(), weight.double(), bias.double(), packed=in_panels(weight))
    conv1x1(x, weight, bias)
    assert kernel_calls("conv1x1") == calls
    for pack in (in_panels, for_matrix_unit):
        assert conv1x1(x[:0], weight, bias, packed=pack(weight)).shape == (0, 6, 4, 4)


@by_packing
def test_opcheck_and_no_gradient(pack: Pack) -> None:
    x, (weight, bias) = randn(1, 8, 6, 6, dtype=BF16), weights(8, 8)
    args = (x, weight, bias, pack(weight), None, 1.0)
    torch.library.opcheck(torch.ops.fastdiff.conv1x1.default, args)
    with pytest.raises(RuntimeError, match="conv1x1 has no gradient"):
        conv1x1(x.requires_grad_(), weight, bias).sum().backward()


@pytest.mark.parametrize(("change", "error", "message"), bad_inputs(1, "pack_conv1x1"))
def test_bad_input(change: dict[str, Tensor], error: type[Exception], message: str) -> None:
    weight, bias = weights(8, 8, torch.float32)
    arguments = {"x": randn(2, 8, 5, 5), "weight": weight, "bias": bias, **change}
    with pytest.raises(error, match=re.escape(message)):
        conv1x1(**arguments)
