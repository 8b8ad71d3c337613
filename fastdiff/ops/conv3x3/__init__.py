"""`conv3x3`: a 3x3 convolution with an optional upsampling before and a residual sum after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _library
from ..convolution_checks import check_convolution, check_packed
from . import reference
from .packing import pack_conv3x3, pack_op, winograd_shape

__all__ = ["NARROW", "conv3x3", "pack_conv3x3", "trained_conv3x3"]

# Below so many pixels of a batch, packing the weights takes longer than Winograd saves.
PIXELS_WORTH_PACKING = 512
NARROW = 16  # channels: below, Winograd's tiles are not filled


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    packed: Tensor | None = None,
    residual: Tensor | None = None,
    scale: float = 1.0,
    upsample: bool = False,
) -> Tensor:
    """`(conv(x) + bias + residual) * scale`, stride 1 and one pixel of zeros around x.

    With packed weights the C++ kernel takes Winograd's F(2x2, 3x3) (Lavin and Gray, "Fast
    Algorithms for Convolutional Neural Networks", 2016, section 4.1) in float32, whatever the
    dtype: 2.25 times fewer products, 4 times fewer after `upsample`. bfloat16 weights that were
    packed for a processor's matrix unit it multiplies there as they are.

    Args:
        x: [N, C, H, W], floating point; the kernel takes x whose channels lie side by side.
        weight: [O, C, 3, 3]; bias: [O] or None; both of x's dtype.
        packed: what pack_conv3x3 makes of the weight; None convolves by PyTorch.
        residual: as the output, or None.
        scale: of the whole sum.
        upsample: whether x is doubled in height and width before, by nearest neighbour.

    Returns:
        [N, O, H, W], or [N, O, 2H, 2W] after `upsample`, of x's dtype, channels-last.

    Raises:
        TypeError: dtypes differ.
        ValueError: a shape or a device does not fit.
    """
    check_convolution("conv3x3", x, weight, bias, residual, kernel=3, factor=2 if upsample else 1)
    check_packed(packed, weight, winograd_shape(weight), "pack_conv3x3")
    out: Tensor = _op(x, weight, bias, packed, residual, scale, upsample)
    return out


def trained_conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, upsample: bool = False
) -> Tensor:
    """conv3x3 in training, where weights change from call to call: packed at the call if it pays.

    That is on the CPU, for channels-last x and where a gradient is recorded. In float32 forward and
    the gradient of x then take 2.25 times fewer products; under autocast to bfloat16 a processor's
    matrix unit makes all products, of float32 weights without a copy in bfloat16. Else, and under
    `torch.compile`, it is PyTorch's convolution. Arguments as for conv3x3.
    """
    if _may_pay(x, weight):
        if not torch.is_autocast_enabled("cpu"):
            pixels = len(x) * x.shape[2] * x.shape[3] * (4 if upsample else 1)
            if x.dtype == torch.float32 and pixels >= PIXELS_WORTH_PACKING:
                return _trained(x, weight, bias, upsample)
        elif torch.get_autocast_dtype("cpu") == torch.bfloat16 and _library.has_matrix_unit():
            return _trained(x.bfloat16(), weight, bias, upsample)
    if upsample:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.conv2d(x, weight, bias, padding=1)


def _may_pay(x: Tensor, weight: Tensor) -> bool:
    if not torch.is_grad_enabled() or not weight.requires_grad or torch.compiler.is_compiling():
        return False
    if _library.transformed():
        return False
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and weight.dtype == torch.float32
        and min(weight.shape[:2]) >= NARROW
        and x.is_contiguous(memory_format=torch.channels_last)
        and _library.native_kernel("conv3x3", "CPU")
    )


def _trained(x: Tensor, weight: Tensor, bias: Tensor | None, upsample: bool) -> Tensor:
    packed = pack_op(weight.detach(), x.dtype == torch.bfloat16)
    out: Tensor = _op(x, weight, bias, packed, None, 1.0, upsample)
    return out


def _fake(
    x: Tensor, weight: Tensor, bias: Any, packed: Any, residual: Any, scale: float, upsample: bool
) -> Tensor:
    N, _, H, W = x.shape
    factor = 2 if upsample else 1
    y = x.new_empty((N, weight.shape[0], factor * H, factor * W))
    return y.contiguous(memory_format=torch.channels_last)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, packed, _, ctx.scale, ctx.upsample = inputs
    ctx.is_packed = packed is not None
    ctx.by_tiles = packed is not None and packed.dtype == torch.bfloat16
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of x is a convolution too; where the forward was by packed weights, so are it
    and that of the weight."""
    x, weight = ctx.saved_tensors
    need_x, need_weight, need_bias, _, need_residual, *_ = ctx.needs_input_grad
    grad = grad.contiguous(memory_format=torch.channels_last)
    if ctx.scale != 1:
        grad = grad * ctx.scale
    of_x = of_weight = of_bias = None
    if ctx.is_packed:
        of_x = _gradient_of_x(grad, weight, ctx.upsample) if need_x else None
        if need_weight or need_bias:
            of_weight, of_bias = _gradient_op(x, grad, ctx.upsample, ctx.by_tiles)
            of_weight = of_weight.to(weight.dtype)
            of_bias = of_bias.to(ctx.bias_dtype) if need_bias else None
    else:
        image = F.interpolate(x, scale_factor=2.0, mode="nearest") if ctx.upsample else x
        of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
            grad, image, weight, [len(weight)], [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
            [need_x, need_weight, need_bias],
        )  # fmt: skip
        of_x = _summed(of_x) if need_x and ctx.upsample else of_x
    of_residual = grad if need_residual else None
    return of_x, of_weight, of_bias if need_bias else None, None, of_residual, None, None


def _gradient_of_x(grad: Tensor, weight: Tensor, upsample: bool) -> Tensor:
    of_x: Tensor = _input_gradient_op(grad, weight)
    return _summed(of_x) if upsample else of_x


def _summed(image: Tensor) -> Tensor:
    """Over the pixels that nearest neighbour made of one."""
    return F.avg_pool2d(image, 2, divisor_override=1)


_op = _library.define(
    "conv3x3(Tensor x, Tensor weight, Tensor? bias, Tensor? packed, Tensor? residual, "
    "float scale, bool upsample) -> Tensor",
    reference=reference.conv3x3,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)


def _fake_gradient(
    x: Tensor, grad: Tensor, upsample: bool, by_tiles: bool
) -> tuple[Tensor, Tensor]:
    out_channels, dtype = grad.shape[1], reference.accumulated(x.dtype)
    weight = x.new_empty((out_channels, x.shape[1], 3, 3), dtype=dtype)
    bias = x.new_empty(out_channels, dtype=dtype)
    return weight.contiguous(memory_format=torch.channels_last), bias


def _setup_gradient_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, grad, ctx.upsample, _ = inputs
    ctx.save_for_backward(x, grad)


def _backward_of_gradient(
    ctx: Any, weight: Tensor, bias: Tensor
) -> tuple[Tensor | None, Tensor | None, None, None]:
    """Of <weight, its gradient> + <bias, its gradient>, which is linear in x and in grad."""
    x, grad = ctx.saved_tensors
    need_x, need_grad, *_ = ctx.needs_input_grad
    of_x = _gradient_of_x(grad, weight, ctx.upsample) if need_x else None
    of_grad = _op(x, weight, bias, None, None, 1.0, ctx.upsample) if need_grad else None
    return of_x, of_grad, None, None


_gradient_op = _library.define(
    "conv3x3_gradient(Tensor x, Tensor grad, bool upsample, bool by_tiles) -> (Tensor, Tensor)",
    reference=reference.conv3x3_gradient,
    fake=_fake_gradient,
    backward=_backward_of_gradient,
    setup_context=_setup_gradient_context,
)


def _fake_input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    N, _, H, W = grad.shape
    of_x = grad.new_empty((N, weight.shape[1], H, W))
    return of_x.contiguous(memory_format=torch.channels_last)


def _setup_input_gradient_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_of_input_gradient(ctx: Any, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Of <x, the gradient of x>, which is <conv(x), grad>."""
    grad, weight = ctx.saved_tensors
    need_grad, need_weight = ctx.needs_input_grad
    x = x.contiguous(memory_format=torch.channels_last)
    of_grad = _op(x, weight, None, None, None, 1.0, False) if need_grad else None
    of_weight = None
    if need_weight:
        by_tiles = x.dtype != weight.dtype
        of_weight = _gradient_op(x, grad, False, by_tiles)[0].to(weight.dtype)
    return of_grad, of_weight


_input_gradient_op = _library.define(
    "conv3x3_input_gradient(Tensor grad, Tensor weight) -> Tensor",
    reference=reference.conv3x3_input_gradient,
    fake=_fake_input_gradient,
    backward=_backward_of_input_gradient,
    setup_context=_setup_input_gradient_context,
)
