"""conv3x3 with weights that change from call to call: packed at the call, and its gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.ops import _library, trained_conv3x3
from fastdiff.ops.conv3x3 import NARROW, reference
from fastdiff.ops.conv3x3.packing import for_winograd
from fastdiff.ops.matrix_unit import for_matrix_unit
from tests.judge import assert_close_by_law4
from tests.ops.test_conv3x3 import NATIVE, randn, weights
from tests.threads import on_threads

SHAPES = [(4, 32, 48, 16, 16), (2, 128, 64, 32, 24), (16, 40, 33, 9, 11)]


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, upsample: bool = False) -> Tensor:
    if upsample:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.conv2d(x, weight, bias, padding=1)


def gradients(conv: Callable[..., Tensor], *tensors: Tensor, upsample: bool) -> list[Tensor]:
    """Of x, weight and bias, for a gradient that is handed in."""
    *leaves, grad = (t.detach().clone().requires_grad_() for t in tensors)
    out = conv(*leaves, upsample=upsample)
    return [*torch.autograd.grad(out, leaves, grad.detach())]


def calls(*ops: str) -> Counter[str]:
    """Of the kernels, so far."""
    return Counter({op: _library.native_calls(op, "CPU") for op in ops})


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_by_law4(
    shape: tuple[int, int, int, int, int], upsample: bool
) -> None:
    N, C, out_channels, H, W = shape
    x, (weight, bias) = randn(N, C, H, W), weights(out_channels, C)
    grad = randn(N, out_channels, H * (1 + upsample), W * (1 + upsample), seed=5)
    kernels = ("conv3x3", "conv3x3_pack", "conv3x3_gradient", "conv3x3_input_gradient")
    before = calls(*kernels)
    out = trained_conv3x3(x, weight.requires_grad_(), bias, upsample=upsample)
    assert calls(*kernels) - before == Counter(dict.fromkeys(kernels[:2], 1) if NATIVE else {})
    weight = weight.detach()
    assert_close_by_law4(out.detach(), lambda *a: plain(*a, upsample=upsample), x, weight, bias)
    before = calls(*kernels)
    found = gradients(trained_conv3x3, x, weight, bias, grad, upsample=upsample)
    assert calls(*kernels) - before == Counter(dict.fromkeys(kernels, 1) if NATIVE else {})
    for i, gradient in enumerate(found):

        def eager(*tensors: Tensor, i: int = i) -> Tensor:
            return gradients(plain, *tensors, upsample=upsample)[i].contiguous(
                memory_format=torch.channels_last if i < 2 else torch.contiguous_format
            )

        layout = torch.channels_last if i < 2 else torch.contiguous_format
        assert_close_by_law4(
            gradient.contiguous(memory_format=layout), eager, x, weight, bias, grad
        )


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2)])
def test_only_the_gradients_that_are_asked_for(needed: tuple[int, ...]) -> None:
    tensors = [randn(4, 32, 16, 16), *weights(32, 32)]
    asked = [t.requires_grad_(i in needed or i == 1) for i, t in enumerate(tensors)]
    out, wanted = trained_conv3x3(*asked), plain(*asked)
    grad, leaves = randn(*out.shape, seed=6), [asked[i] for i in needed]
    for a, b in zip(
        torch.autograd.grad(out, leaves, grad), torch.autograd.grad(wanted, leaves, grad),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_a_changed_weight_is_seen() -> None:
    x, (weight, bias) = randn(4, 32, 16, 16), weights(32, 32)
    weight.requires_grad_()
    before = trained_conv3x3(x, weight, bias)
    with torch.no_grad():
        weight.mul_(2)
    after = trained_conv3x3(x, weight, bias)
    torch.testing.assert_close(after, plain(x, weight, bias), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_gradient_of_the_gradient(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a gradient penalty takes it."""
    monkeypatch.setattr(_library, "has_matrix_unit", lambda: True)

    def penalty(conv: Callable[..., Tensor], autocast: bool = False) -> list[Tensor]:
        x, (weight, bias) = randn(4, 32, 16, 16), weights(32, 32)
        x.requires_grad_(), weight.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = conv(x, weight, bias).float()
        (of_x,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        return [*torch.autograd.grad(of_x.square().sum(), (x, weight))]

    before = calls("conv3x3_direct_gradient")
    for found, wanted in zip(penalty(trained_conv3x3, autocast), penalty(plain), strict=True):
        of_largest = (found - wanted).abs().max() / wanted.abs().max()
        assert of_largest < (2e-2 if autocast else 1e-5)
    assert bool(calls("conv3x3_direct_gradient") - before) == (autocast and NATIVE)


PACK = torch.ops.fastdiff.conv3x3_pack.default
INPUT_GRADIENT = torch.ops.fastdiff.conv3x3_input_gradient.default


@settings(max_examples=60, deadline=None)
@given(
    out_channels=st.integers(1, 80),
    channels=st.integers(1, 80),
    channels_last=st.booleans(),
    threads=st.sampled_from([1, 2, 5]),
)
def test_weights_are_packed_whatever_their_layout(
    out_channels: int, channels: int, channels_last: bool, threads: int
) -> None:
    weight, _ = weights(out_channels, channels)
    if not channels_last:
        weight = weight.contiguous()
    packings = calls("conv3x3_pack")
    with on_threads(threads):
        packed, tiles = PACK(weight, False), PACK(weight, True)
    assert (calls("conv3x3_pack") - packings).total() == 2 * NATIVE
    assert torch.equal(tiles, for_matrix_unit(weight.bfloat16()))
    exact = for_winograd(weight)
    assert packed.shape == exact.shape
    torch.testing.assert_close(packed, exact, rtol=2e-7, atol=1e-12)  # rounded once
    assert torch.equal(packed == 0, exact == 0)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 4),
    channels=st.integers(1, 80),
    out_channels=st.integers(NARROW, 150),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    channels_last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_gradient_of_the_input_by_law4(
    batch: int,
    channels: int,
    out_channels: int,
    size: tuple[int, int],
    channels_last: bool,
    dtype: torch.dtype,
) -> None:
    weight, _ = weights(out_channels, channels)
    if not channels_last:
        weight = weight.contiguous()
    grad, before = randn(batch, out_channels, *size, dtype=dtype), calls("conv3x3_input_gradient")
    of_x = INPUT_GRADIENT(grad, weight)
    served = NATIVE and (dtype == torch.bfloat16 or min(size) > 1)
    assert (calls("conv3x3_input_gradient") - before).total() == served
    assert_close_by_law4(of_x, reference.conv3x3_input_gradient, grad, weight)


def test_other_dtypes_go_to_the_reference() -> None:
    grad, (weight, _) = randn(2, 16, 4, 4).double(), weights(16, 8, torch.float64)
    before = calls("conv3x3_input_gradient", "conv3x3_pack")
    x = randn(2, 8, 4, 4).double().requires_grad_()
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, padding=1), x, grad)
    torch.testing.assert_close(INPUT_GRADIENT(grad, weight), expected)
    assert PACK(weight, False).dtype == torch.float32
    assert calls("conv3x3_input_gradient", "conv3x3_pack") == before


def test_gradients_of_the_gradient_of_the_input() -> None:
    grad, (weight, _) = randn(2, 3, 4, 5).double(), weights(3, 2, torch.float64)
    inputs = (grad.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(INPUT_GRADIENT, inputs)


def test_opcheck() -> None:
    grad, (weight, _) = randn(2, 16, 4, 4), weights(16, 8)
    torch.library.opcheck(INPUT_GRADIENT, (grad, weight))
    torch.library.opcheck(INPUT_GRADIENT, (grad.requires_grad_(), weight.requires_grad_()))
    torch.library.opcheck(INPUT_GRADIENT, (grad.detach().bfloat16(), weight.detach()))
    for by_tiles in (False, True):
        torch.library.opcheck(PACK, (weight.detach(), by_tiles))


CASES: dict[str, dict[str, Any]] = {
    "no gradient": {"weight": weights(32, 32)[0]},
    "few pixels": {"x": randn(1, 32, 8, 8)},
    "few channels": {"x": randn(4, 3, 16, 16), "weight": weights(32, 3)[0].requires_grad_()},
    "contiguous": {"x": randn(4, 32, 16, 16).contiguous()},
    "float64": {
        "x": randn(4, 32, 16, 16).double(),
        "weight": weights(32, 32)[0].double().requires_grad_(),
        "bias": weights(32, 32)[1].double(),
    },
    "bfloat16": {
        "x": randn(4, 32, 16, 16).bfloat16(),
        "weight": weights(32, 32)[0].bfloat16().requires_grad_(),
        "bias": weights(32, 32)[1].bfloat16(),
    },
}


@pytest.mark.parametrize("case", CASES)
def test_where_it_does_not_pay_it_is_pytorchs(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = weights(32, 32)
    arguments = {"x": randn(4, 32, 16, 16), "weight": weight.requires_grad_(), "bias": bias}
    arguments |= CASES[case]
    before = _library.native_calls("conv3x3", "CPU")
    assert torch.equal(trained_conv3x3(**arguments), plain(**arguments))
    monkeypatch.setattr(_library, "has_matrix_unit", lambda: False)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert torch.equal(trained_conv3x3(**arguments), plain(**arguments))
        monkeypatch.setattr(_library, "has_matrix_unit", lambda: True)
    assert _library.native_calls("conv3x3", "CPU") == before


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("shape", [(2, 64, 48, 16, 16), (3, 40, 33, 5, 7), (1, 96, 16, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_a_matrix_unit_serves(
    shape: tuple[int, int, int, int, int],
    upsample: bool,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of weights in float32: output and gradients by law 4, those of the weights in float32."""
    monkeypatch.setattr(_library, "has_matrix_unit", lambda: True)
    N, C, out_channels, H, W = shape
    x, (weight, bias) = randn(N, C, H, W, dtype=dtype), weights(out_channels, C)
    factor = 1 + upsample
    grad = randn(N, out_channels, factor * H, factor * W, dtype=torch.bfloat16, seed=5)
    kernels = ("conv3x3", "conv3x3_pack", "conv3x3_gradient", "conv3x3_input_gradient")
    kernels += ("conv3x3_direct", "conv3x3_direct_gradient")
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    before = calls(*kernels)
    with torch.autocast("cpu", torch.bfloat16):
        out = trained_conv3x3(*leaves, upsample=upsample)
    found = torch.autograd.grad(out, leaves, grad)
    assert calls(*kernels) - before == Counter(dict.fromkeys(kernels, 1) if NATIVE else {})
    assert [t.dtype for t in (out, *found)] == [torch.bfloat16, dtype, torch.float32, torch.float32]

    def rounded(*tensors: Tensor) -> list[Tensor]:
        """As autocast rounds them; the judge's own in float64 stay as they are."""
        exact = tensors[0].dtype == torch.float64
        return [tensor if exact else tensor.bfloat16() for tensor in tensors]

    def forward(*tensors: Tensor) -> Tensor:
        return plain(*rounded(*tensors), upsample=upsample)

    assert_close_by_law4(out.detach(), forward, x, weight, bias)
    for i, gradient in enumerate(found):
        short = gradient.dtype

        def eager(*tensors: Tensor, i: int = i, short: torch.dtype = short) -> Tensor:
            of_it = gradients(plain, *rounded(*tensors), upsample=upsample)[i]
            layout = torch.channels_last if i < 2 else torch.contiguous_format
            dtype = torch.float64 if of_it.dtype == torch.float64 else short
            return of_it.to(dtype).contiguous(memory_format=layout)

        assert_close_by_law4(gradient, eager, x, weight, bias, grad)
