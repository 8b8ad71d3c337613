"""conv3x3_gradient: of the weight and the bias, by Winograd's F(3x3, 2x2)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.ops import _library
from fastdiff.ops.conv3x3 import NARROW, reference
from tests.judge import assert_close_by_law4
from tests.ops.test_conv3x3 import DTYPES, NATIVE, randn
from tests.threads import on_threads

op = torch.ops.fastdiff.conv3x3_gradient.default


def judge(x: Tensor, grad: Tensor, upsample: bool = False) -> None:
    """Both outputs by law 4, and that the kernel served wherever the gradient fills a tile."""
    before = _library.native_calls("conv3x3_gradient", "CPU")
    outputs = op(x, grad, upsample)
    served = NATIVE and min(grad.shape[2:]) > 1
    assert _library.native_calls("conv3x3_gradient", "CPU") == before + served
    for i, output in enumerate(outputs):

        def plain(*args: Tensor, i: int = i) -> Tensor:
            return reference.conv3x3_gradient(*args, upsample)[i]

        assert_close_by_law4(output, plain, x, grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "out_channels", "size"),
    [(128, 128, (16, 16)), (264, 72, (4, 4)), (40, 24, (8, 6)), (16, 16, (2, 2)), (99, 33, (4, 6))],
)
@pytest.mark.parametrize("upsample", [False, True])
def test_kernel_by_law4(
    channels: int, out_channels: int, size: tuple[int, int], upsample: bool, dtype: torch.dtype
) -> None:
    H, W = size
    x = randn(3, channels, H // (1 + upsample), W // (1 + upsample), dtype=dtype)
    judge(x, randn(3, out_channels, H, W, dtype=dtype, seed=1), upsample)


@settings(max_examples=100, deadline=None)
@given(
    batch=st.integers(0, 4),
    channels=st.integers(NARROW, 150),
    out_channels=st.integers(NARROW, 80),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    dtype=st.sampled_from(DTYPES),
    upsample=st.booleans(),
    threads=st.sampled_from([1, 2, 3, 7, 40]),
)
def test_any_shape_by_law4(
    batch: int,
    channels: int,
    out_channels: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    upsample: bool,
    threads: int,
) -> None:
    H, W = (n * (1 + upsample) for n in size)
    with on_threads(threads):
        judge(
            randn(batch, channels, *size, dtype=dtype),
            randn(batch, out_channels, H, W, dtype=dtype, seed=1),
            upsample,
        )


@pytest.mark.parametrize("channels", [1, 3, 7])
@pytest.mark.parametrize("out_channels", [1, 2, 9])
def test_few_channels(channels: int, out_channels: int) -> None:
    """Of so few values law 4's largest error is luck: trained_conv3x3 leaves them to PyTorch."""
    x, grad = randn(3, channels, 5, 7), randn(3, out_channels, 5, 7, seed=1)
    truth = reference.conv3x3_gradient(x.double(), grad.double(), False)
    for found, wanted in zip(op(x, grad, False), truth, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("upsample", [False, True])
def test_strided_input(upsample: bool) -> None:
    n = 3 if upsample else 6
    x = {6: randn(2, 48, 9, 9)[:, 8:40, 2:8, 1:7], 3: randn(4, 48, 3, 4)[::2, 8:40, :, 1:]}[n]
    judge(x, randn(2, 96, 8, 8, seed=1)[:, 32:64, 1:7, 2:8], upsample)


def test_contiguous_input_is_served_by_the_reference() -> None:
    x, grad = randn(2, 8, 6, 6).contiguous(), randn(2, 8, 6, 6, seed=1)
    for found, wanted in zip(
        op(x, grad, False), reference.conv3x3_gradient(x, grad, False), strict=True
    ):
        assert torch.equal(found, wanted)


def test_bits_do_not_depend_on_the_threads() -> None:
    x, grad = randn(5, 96, 10, 10), randn(5, 80, 10, 10, seed=1)
    wanted = op(x, grad, False)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3, 8, 64):
            torch.set_num_threads(threads)
            for found, same in zip(op(x, grad, False), wanted, strict=True):
                assert torch.equal(found, same) or not NATIVE
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_reach_their_own_channels_alone(bad: float) -> None:
    x, grad = randn(2, 40, 12, 12), randn(2, 24, 12, 12, seed=1)
    x[1, 3, 5, 5] = bad
    grad[0, 9, 2, 7] = bad
    weight, bias = op(x, grad, False)
    touched = torch.zeros(24, 40, dtype=torch.bool)
    touched[:, 3] = touched[9] = True
    assert not weight[touched].isfinite().any()
    assert weight[~touched].isfinite().all()
    assert bias.isfinite().tolist() == [i != 9 for i in range(24)]


@pytest.mark.parametrize("upsample", [False, True])
def test_gradient(upsample: bool) -> None:
    H, W = (8, 10) if upsample else (4, 5)
    inputs = [randn(2, 3, 4, 5).double(), randn(2, 2, H, W, seed=1).double()]

    def run(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = op(x, grad, upsample)
        return weight, bias

    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize("upsample", [False, True])
def test_opcheck(upsample: bool) -> None:
    size = 3 if upsample else 6
    args = (randn(1, 8, size, size), randn(1, 5, 6, 6, seed=1), upsample)
    torch.library.opcheck(op, args)
