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


def test_a_gradient_of_the_gradient() -> None:
    """As a gradient penalty takes it."""

    def penalty(conv: Callable[..., Tensor]) -> list[Tensor]:
        x, (weight, bias) = randn(4, 32, 16, 16), weights(32, 32)
        x.requires_grad_(), weight.requires_grad_()
        (of_x,) = torch.autograd.grad(conv(x, weight, bias).sin().sum(), x, create_graph=True)
        return [*torch.autograd.grad(of_x.square().sum(), (x, weight))]

    for found, wanted in zip(penalty(trained_conv3x3), penalty(plain), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


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
        packed = PACK(weight)
    assert (calls("conv3x3_pack") - packings).total() == NATIVE
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
)
def test_gradient_of_the_input_by_law4(
    batch: int, channels: int, out_channels: int, size: tuple[int, int], channels_last: bool
) -> None:
    weight, _ = weights(out_channels, channels)
    if not channels_last:
        weight = weight.contiguous()
    grad, before = randn(batch, out_channels, *size), calls("conv3x3_input_gradient")
    of_x = INPUT_GRADIENT(grad, weight)
    served = NATIVE and min(size) > 1
    assert (calls("conv3x3_input_gradient") - before).total() == served
    assert_close_by_law4(of_x, reference.conv3x3_input_gradient, grad, weight)


def test_other_dtypes_go_to_the_reference() -> None:
    grad, (weight, _) = randn(2, 16, 4, 4).double(), weights(16, 8, torch.float64)
    before = calls("conv3x3_input_gradient", "conv3x3_pack")
    x = randn(2, 8, 4, 4).double().requires_grad_()
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, padding=1), x, grad)
    torch.testing.assert_close(INPUT_GRADIENT(grad, weight), expected)
    assert PACK(weight).dtype == torch.float32
    assert calls("conv3x3_input_gradient", "conv3x3_pack") == before


def test_gradients_of_the_gradient_of_the_input() -> None:
    grad, (weight, _) = randn(2, 3, 4, 5).double(), weights(3, 2, torch.float64)
    inputs = (grad.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(INPUT_GRADIENT, inputs)


def test_opcheck() -> None:
    grad, (weight, _) = randn(2, 16, 4, 4), weights(16, 8)
    torch.library.opcheck(INPUT_GRADIENT, (grad, weight))
    torch.library.opcheck(INPUT_GRADIENT, (grad.requires_grad_(), weight.requires_grad_()))
    torch.library.opcheck(PACK, (weight.detach(),))


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
def test_where_it_does_not_pay_it_is_pytorchs(case: str) -> None:
    weight, bias = weights(32, 32)
    arguments = {"x": randn(4, 32, 16, 16), "weight": weight.requires_grad_(), "bias": bias}
    arguments |= CASES[case]
    before = _library.native_calls("conv3x3", "CPU")
    assert torch.equal(trained_conv3x3(**arguments), plain(**arguments))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(trained_conv3x3(**arguments), plain(**arguments))
    assert _library.native_calls("conv3x3", "CPU") == before
