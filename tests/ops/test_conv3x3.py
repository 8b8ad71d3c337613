from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from fastdiff.ops import _library, conv3x3, pack_conv3x3
from fastdiff.ops.conv3x3 import reference
from fastdiff.ops.conv3x3.packing import for_winograd
from tests.judge import assert_close_by_law4
from tests.threads import on_threads

from .convolutions import Case, bad_inputs, cases, randn, weights

NATIVE = _library.native_path() is not None
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def judge(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    scale: float = 1.0,
    upsample: bool = False,
    pack: Callable[[Tensor], Tensor] = for_winograd,
) -> None:
    """By law 4, and that the kernel served; a build without one has none.

    An image one pixel high or wide fills no tile of Winograd's, and is the reference's.
    """
    before = _library.native_calls("conv3x3", "CPU")
    packed = pack(weight)
    y = conv3x3(x, weight, bias, packed=packed, residual=residual, scale=scale, upsample=upsample)
    served = NATIVE and (pack is not for_winograd or min(y.shape[2:]) > 1)
    assert _library.native_calls("conv3x3", "CPU") == before + served
    args = (x, weight, bias, None, residual, scale, upsample)
    assert_close_by_law4(y, reference.conv3x3, *args)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "out_channels", "size"),
    [(128, 128, (16, 16)), (512, 64, (4, 4)), (40, 24, (7, 5)), (1, 1, (1, 1)), (192, 33, (3, 9))],
)
@pytest.mark.parametrize("upsample", [False, True])
def test_kernel_by_law4(
    channels: int, out_channels: int, size: tuple[int, int], upsample: bool, dtype: torch.dtype
) -> None:
    x = randn(2, channels, *size, dtype=dtype)
    judge(x, *weights(out_channels, channels, dtype), upsample=upsample)


@settings(max_examples=100, deadline=None)
@given(case=cases(DTYPES))
def test_any_shape_by_law4(case: Case) -> None:
    with on_threads(case.threads):
        judge(case.x, case.weight, case.bias, case.residual, case.scale, case.upsample)


@pytest.mark.parametrize("view", ["some of the channels", "cropped", "every other sample"])
def test_strided_input(view: str) -> None:
    x, residual = {
        "some of the channels": (randn(2, 48, 6, 6)[:, 8:40], randn(2, 96, 6, 6)[:, 32:64]),
        "cropped": (randn(2, 32, 9, 9)[:, :, 2:8, 1:7], randn(2, 32, 8, 8)[:, :, 1:7, 2:8]),
        "every other sample": (randn(4, 32, 6, 6)[::2], randn(4, 32, 6, 6)[1::2]),
    }[view]
    judge(x, *weights(32, 32), residual)


def test_contiguous_input_is_served_by_the_reference() -> None:
    x = randn(2, 8, 6, 6).contiguous()
    weight, bias = weights(8, 8)
    y = conv3x3(x, weight, bias, packed=pack_conv3x3(weight))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, F.conv2d(x, weight, bias, padding=1))


def test_bits_depend_on_neither_threads_nor_batch() -> None:
    x, (weight, bias) = randn(5, 96, 10, 10), weights(80, 96)
    packed = pack_conv3x3(weight)
    whole = conv3x3(x, weight, bias, packed=packed)
    for threads in (1, 3, 8):
        with on_threads(threads):
            alone = conv3x3(x[3:4], weight, bias, packed=packed)
        assert torch.equal(alone, whole[3:4]) or not NATIVE


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_reach_their_neighbours_alone(bad: float) -> None:
    """Winograd's sums share a tile: the pixels of tiles that read the bad one may become NaN."""
    x, (weight, bias) = randn(2, 16, 12, 12), weights(16, 16)
    x[1, 3, 5, 5] = bad
    y = conv3x3(x, weight, bias, packed=pack_conv3x3(weight))
    truth = reference.conv3x3(x, weight, bias)
    spoilt = ~truth.isfinite()
    assert not y[spoilt].isfinite().any()
    assert y[0].isfinite().all() and y[1, :, :4].isfinite().all() and y[1, :, 8:].isfinite().all()


def test_an_image_without_channels_is_pytorchs() -> None:
    x, weight, bias = torch.zeros(2, 0, 6, 6), torch.zeros(8, 0, 3, 3), torch.zeros(8)
    y = conv3x3(x, weight, bias, packed=pack_conv3x3(weight))
    assert y.shape == F.conv2d(x, weight, bias, padding=1).shape


def test_every_input_matters() -> None:
    x, (weight, bias), residual = randn(1, 8, 6, 6), weights(8, 8), randn(1, 8, 6, 6, seed=3)
    y = conv3x3(x, weight, bias, packed=pack_conv3x3(weight), residual=residual)
    for i, tensor in enumerate((x, weight, bias, residual)):
        inputs = [x, weight, bias, residual]
        inputs[i] = tensor + 0.1
        x_, weight_, bias_, residual_ = inputs
        other = conv3x3(x_, weight_, bias_, packed=pack_conv3x3(weight_), residual=residual_)
        assert not torch.allclose(y, other)


@pytest.mark.parametrize("upsample", [False, True])
def test_gradient(upsample: bool) -> None:
    def run(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return conv3x3(x, weight, bias, residual=residual, scale=0.7, upsample=upsample)

    factor = 2 if upsample else 1
    shapes = [(2, 3, 4, 5), (2, 3, 3, 3), (2,), (2, 2, 4 * factor, 5 * factor)]
    inputs = [randn(*shape, seed=i).double().requires_grad_() for i, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(run, inputs)


def test_opcheck() -> None:
    x, (weight, bias) = randn(1, 8, 6, 6), weights(8, 8)
    args = (x, weight, bias, pack_conv3x3(weight), None, 1.0, True)
    torch.library.opcheck(torch.ops.fastdiff.conv3x3.default, args)


@pytest.mark.parametrize(("change", "error", "message"), bad_inputs(3, "pack_conv3x3"))
def test_bad_input(change: dict[str, Tensor], error: type[Exception], message: str) -> None:
    weight, bias = weights(8, 8)
    arguments = {"x": randn(2, 8, 5, 5), "weight": weight, "bias": bias, **change}
    with pytest.raises(error, match=re.escape(message)):
        conv3x3(**arguments)
