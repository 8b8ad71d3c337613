"""conv3x3_gradient: of weight and bias, by Winograd's F(3x3, 2x2) or by tiles of bfloat16."""

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


WAYS = [*((dtype, False) for dtype in DTYPES), (torch.bfloat16, True)]


def calls() -> list[int]:
    """Of both kernels, and of that by tiles."""
    kernels = ("conv3x3_gradient", "conv3x3_direct_gradient")
    return [_library.native_calls(kernel, "CPU") for kernel in kernels]


def judge(x: Tensor, grad: Tensor, upsample: bool = False, by_tiles: bool = False) -> None:
    """Both outputs by law 4, and that the kernel served wherever the gradient fills a tile."""
    before = calls()
    outputs = op(x, grad, upsample, by_tiles)
    served = NATIVE and (by_tiles or min(grad.shape[2:]) > 1)
    assert calls() == [before[0] + served, before[1] + (served and by_tiles)]
    for i, output in enumerate(outputs):

        def plain(*args: Tensor, i: int = i) -> Tensor:
            return reference.conv3x3_gradient(*args, upsample)[i]

        assert_close_by_law4(output, plain, x, grad)


@pytest.mark.parametrize(("dtype", "by_tiles"), WAYS)
@pytest.mark.parametrize(
    ("channels", "out_channels", "size"),
    [(128, 128, (16, 16)), (264, 72, (4, 4)), (40, 24, (8, 6)), (16, 16, (2, 2)), (99, 33, (4, 6))],
)
@pytest.mark.parametrize("upsample", [False, True])
def test_kernel_by_law4(
    channels: int,
    out_channels: int,
    size: tuple[int, int],
    upsample: bool,
    dtype: torch.dtype,
    by_tiles: bool,
) -> None:
    H, W = size
    x = randn(3, channels, H // (1 + upsample), W // (1 + upsample), dtype=dtype)
    judge(x, randn(3, out_channels, H, W, dtype=dtype, seed=1), upsample, by_tiles)


@settings(max_examples=100, deadline=None)
@given(
    batch=st.integers(0, 4),
    channels=st.integers(NARROW, 150),
    out_channels=st.integers(NARROW, 80),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    way=st.sampled_from(WAYS),
    upsample=st.booleans(),
    threads=st.sampled_from([1, 2, 3, 7, 40]),
)
def test_any_shape_by_law4(
    batch: int,
    channels: int,
    out_channels: int,
    size: tuple[int, int],
    way: tuple[torch.dtype, bool],
    upsample: bool,
    threads: int,
) -> None:
    dtype, by_tiles = way
    H, W = (n * (1 + upsample) for n in size)
    with on_threads(threads):
        judge(
            randn(batch, channels, *size, dtype=dtype),
            randn(batch, out_channels, H, W, dtype=dtype, seed=1),
            upsample,
            by_tiles,
        )


@pytest.mark.parametrize("channels", [1, 3, 7])
@pytest.mark.parametrize("out_channels", [1, 2, 9])
def test_few_channels(channels: int, out_channels: int) -> None:
    """Of so few values law 4's largest error is luck: trained_conv3x3 leaves them to PyTorch."""
    x, grad = randn(3, channels, 5, 7), randn(3, out_channels, 5, 7, seed=1)
    truth = reference.conv3x3_gradient(x.double(), grad.double(), False)
    for found, wanted in zip(op(x, grad, False, False), truth, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("dtype", "by_tiles"), WAYS)
@pytest.mark.parametrize("upsample", [False, True])
def test_strided_input(upsample: bool, dtype: torch.dtype, by_tiles: bool) -> None:
    """With an odd number of elements from pixel to pixel."""
    if upsample:
        x = randn(4, 49, 3, 4, dtype=dtype)[::2, 8:41, :, 1:]
    else:
        x = randn(2, 49, 9, 9, dtype=dtype)[:, 8:41, 2:8, 1:7]
    grad = randn(2, 97, 8, 8, dtype=dtype, seed=1)[:, 32:63, 1:7, 2:8]
    assert not x.is_contiguous(memory_format=torch.channels_last) and x.stride(3) == 49
    judge(x, grad, upsample, by_tiles)


def test_contiguous_input_is_served_by_the_reference() -> None:
    x, grad = randn(2, 8, 6, 6).contiguous(), randn(2, 8, 6, 6, seed=1)
    for found, wanted in zip(
        op(x, grad, False, False), reference.conv3x3_gradient(x, grad, False), strict=True
    ):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(("dtype", "by_tiles"), [WAYS[0], WAYS[-1]])
def test_bits_do_not_depend_on_the_threads(dtype: torch.dtype, by_tiles: bool) -> None:
    x, grad = randn(5, 96, 10, 10, dtype=dtype), randn(5, 80, 10, 10, dtype=dtype, seed=1)
    wanted = op(x, grad, False, by_tiles)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3, 8, 64):
            torch.set_num_threads(threads)
            for found, same in zip(op(x, grad, False, by_tiles), wanted, strict=True):
                assert torch.equal(found, same) or not NATIVE
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("dtype", "by_tiles"), [WAYS[0], WAYS[-1]])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_reach_their_own_channels_alone(
    bad: float, dtype: torch.dtype, by_tiles: bool
) -> None:
    x, grad = randn(2, 40, 12, 12, dtype=dtype), randn(2, 24, 12, 12, dtype=dtype, seed=1)
    x[1, 3, 5, 5] = bad
    grad[0, 9, 2, 7] = bad
    weight, bias = op(x, grad, False, by_tiles)
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
        weight, bias = op(x, grad, upsample, False)
        return weight, bias

    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize(("dtype", "by_tiles"), WAYS)
@pytest.mark.parametrize("upsample", [False, True])
def test_opcheck(upsample: bool, dtype: torch.dtype, by_tiles: bool) -> None:
    size = 3 if upsample else 6
    x, grad = randn(1, 8, size, size, dtype=dtype), randn(1, 5, 6, 6, dtype=dtype, seed=1)
    torch.library.opcheck(op, (x, grad, upsample, by_tiles))


def test_tiles_are_of_bfloat16_alone() -> None:
    x, grad = randn(2, 16, 6, 6), randn(2, 16, 6, 6, seed=1)
    before = calls()
    for found, wanted in zip(op(x, grad, False, True), op(x, grad, False, False), strict=True):
        assert torch.equal(found, wanted)
    assert calls() == [before[0] + 2 * NATIVE, before[1]]
