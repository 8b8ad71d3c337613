"""conv3x3 with weights that change from call to call: packed at the call, and its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops import _library, pack_conv3x3, trained_conv3x3
from fastdiff.ops.conv3x3.packing import pack_transposed
from tests.judge import assert_close_by_law4
from tests.ops.test_conv3x3 import NATIVE, randn, weights

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


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_by_law4(
    shape: tuple[int, int, int, int, int], upsample: bool
) -> None:
    N, C, out_channels, H, W = shape
    x, (weight, bias) = randn(N, C, H, W), weights(out_channels, C)
    grad = randn(N, out_channels, H * (1 + upsample), W * (1 + upsample), seed=5)
    before = _library.native_calls("conv3x3", "CPU")
    out = trained_conv3x3(x, weight.requires_grad_(), bias, upsample=upsample)
    assert _library.native_calls("conv3x3", "CPU") == before + NATIVE
    weight = weight.detach()
    assert_close_by_law4(out.detach(), lambda *a: plain(*a, upsample=upsample), x, weight, bias)
    of_weights = _library.native_calls("conv3x3_gradient", "CPU")
    found = gradients(trained_conv3x3, x, weight, bias, grad, upsample=upsample)
    assert _library.native_calls("conv3x3", "CPU") == before + 3 * NATIVE
    assert _library.native_calls("conv3x3_gradient", "CPU") == of_weights + NATIVE
    for i, gradient in enumerate(found):

        def reference(*tensors: Tensor, i: int = i) -> Tensor:
            return gradients(plain, *tensors, upsample=upsample)[i].contiguous(
                memory_format=torch.channels_last if i < 2 else torch.contiguous_format
            )

        layout = torch.channels_last if i < 2 else torch.contiguous_format
        assert_close_by_law4(
            gradient.contiguous(memory_format=layout), reference, x, weight, bias, grad
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


def test_the_transposed_packing_is_that_of_the_turned_weight() -> None:
    for out_channels, channels in ((33, 40), (64, 32), (1, 1)):
        weight, _ = weights(out_channels, channels)
        turned = weight.flip(2, 3).transpose(0, 1)
        torch.testing.assert_close(pack_transposed(weight), pack_conv3x3(turned))


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
