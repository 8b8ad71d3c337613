"""conv3x3 of bfloat16 by products of tiles: the processor's matrix unit, or plain C++ in its place.

FASTDIFF_CPU_LEVEL below v4_amx takes the plain one; test_cpu_levels.py runs both where it can.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from fastdiff.ops import _library, conv3x3, pack_conv3x3
from fastdiff.ops.conv3x3 import reference
from fastdiff.ops.conv3x3.packing import for_winograd
from fastdiff.ops.matrix_unit import for_matrix_unit
from tests.threads import on_threads

from .convolutions import Case, cases, randn, weights
from .test_conv3x3 import NATIVE, judge

BF16 = torch.bfloat16


@contextlib.contextmanager
def tiles_serve() -> Iterator[None]:
    before = _library.native_calls("conv3x3_direct", "CPU")
    yield
    assert _library.native_calls("conv3x3_direct", "CPU") == before + NATIVE


def test_a_processor_with_such_a_unit_is_packed_for() -> None:
    weight, _ = weights(40, 24, BF16)
    asked = os.environ.get("FASTDIFF_CPU_LEVEL", "v4_amx") == "v4_amx"
    by_level = NATIVE and asked and torch.cpu._is_amx_tile_supported()
    assert _library.has_matrix_unit() == by_level == (NATIVE and _library.cpu_level() == "v4_amx")
    expected = for_matrix_unit if by_level else for_winograd
    assert torch.equal(pack_conv3x3(weight), expected(weight))
    assert pack_conv3x3(weight.float()).dtype == torch.float32


def test_packing_keeps_every_weight() -> None:
    weight, _ = weights(40, 24, BF16)
    packed = for_matrix_unit(weight)
    assert packed.shape == (2, 1, 9, 2, 16, 16, 2)
    for o, c, tap in [(0, 0, 0), (39, 23, 8), (17, 5, 4), (33, 12, 2)]:
        place = packed[o // 32, c // 32, tap, o % 32 // 16, c % 32 // 2, o % 16, c % 2]
        assert place == weight[o, c, tap // 3, tap % 3]
    assert packed.float().abs().sum() == weight.float().abs().sum()


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize(
    ("channels", "out_channels", "size"),
    [(128, 128, (16, 16)), (512, 64, (4, 4)), (40, 24, (7, 5)), (1, 1, (1, 1)), (192, 33, (3, 9))],
)
def test_kernel_by_law4(
    channels: int, out_channels: int, size: tuple[int, int], upsample: bool
) -> None:
    x = randn(2, channels, *size, dtype=BF16)
    with tiles_serve():
        judge(x, *weights(out_channels, channels, BF16), upsample=upsample, pack=for_matrix_unit)


@settings(max_examples=100, deadline=None)
@given(case=cases([BF16]))
def test_any_shape_by_law4(case: Case) -> None:
    with on_threads(case.threads), tiles_serve():
        judge(
            case.x, case.weight, case.bias, case.residual, case.scale, case.upsample,
            for_matrix_unit,
        )  # fmt: skip


@pytest.mark.parametrize("view", ["some of the channels", "cropped", "every other sample"])
def test_strided_input(view: str) -> None:
    def image(*shape: int) -> Tensor:
        return randn(*shape, dtype=BF16)

    x, residual = {
        "some of the channels": (image(2, 48, 6, 6)[:, 8:40], image(2, 96, 6, 6)[:, 32:64]),
        "cropped": (image(2, 32, 9, 9)[:, :, 2:8, 1:7], image(2, 32, 8, 8)[:, :, 1:7, 2:8]),
        "every other sample": (image(4, 32, 6, 6)[::2], image(4, 32, 6, 6)[1::2]),
    }[view]
    with tiles_serve():
        judge(x, *weights(32, 32, BF16), residual, pack=for_matrix_unit)


def test_bits_depend_on_neither_threads_nor_batch() -> None:
    x, (weight, bias) = randn(5, 96, 10, 10, dtype=BF16), weights(80, 96, BF16)
    packed = for_matrix_unit(weight)
    whole = conv3x3(x, weight, bias, packed=packed)
    for threads in (1, 3, 8):
        with on_threads(threads):
            alone = conv3x3(x[3:4], weight, bias, packed=packed)
        assert torch.equal(alone, whole[3:4]) or not NATIVE


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_reach_their_neighbours_alone(bad: float) -> None:
    x, (weight, bias) = randn(2, 16, 12, 12, dtype=BF16), weights(16, 16, BF16)
    x[1, 3, 5, 5] = bad
    y = conv3x3(x, weight, bias, packed=for_matrix_unit(weight))
    assert torch.equal(y.isfinite(), reference.conv3x3(x, weight, bias).isfinite())


def test_one_after_the_other_of_other_sizes() -> None:
    """A border is zero again where an image of another size lay in the same memory."""
    for side, channels in [(12, 64), (7, 33), (12, 64), (16, 20)]:
        x = randn(1, channels, side, side, dtype=BF16)
        judge(x * 100, *weights(32, channels, BF16), pack=for_matrix_unit)


def test_weights_packed_for_another_dtype_are_refused() -> None:
    weight, bias = weights(8, 8)
    with pytest.raises(ValueError, match=r"packed has shape .* not of this weight"):
        conv3x3(randn(1, 8, 4, 4), weight, bias, packed=for_matrix_unit(weight.to(BF16)))
