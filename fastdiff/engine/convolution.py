"""Convolutions whose weights are laid out once, for the library that is fastest on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff.ops import (
    _library,
    biased_sum_,
    pack_conv1x1,
    pack_conv3x3,
    pack_strided_conv3x3,
)
from fastdiff.ops.onednn import onednn_knows


def convolution(conv: nn.Conv2d, *, upsample: bool = False) -> nn.Module:
    """What `conv` computes, with weights as they are now, on channels-last images.

    The result is called as `(x, residual=None, scale=1.0)` and gives
    `(conv(x) + residual) * scale`, with `upsample` of x doubled by nearest neighbour before.
    """
    if conv.weight.device.type != "cpu":
        return Cudnn(conv, upsample)
    return (Own if _suits_own(conv, upsample) else Packed)(conv, upsample)


def downsampling(conv: nn.Conv2d) -> nn.Module:
    """What `conv`, 3x3 with stride 2, computes; called on an image, which gets a row and a column
    of zeros behind it where `conv` has no padding."""
    centered = conv.padding == (1, 1)
    if _suits_own_products(conv.weight):
        return Strided(conv, centered)
    if centered:
        return convolution(conv)
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), convolution(conv))


class Own(nn.Module):
    """With stride 1, by fastdiff::conv3x3 or fastdiff::conv1x1."""

    def __init__(self, conv: nn.Conv2d, upsample: bool = False) -> None:
        super().__init__()
        self.weight, self.bias = kept(conv.weight), kept(conv.bias)
        self.pointwise, self.upsample = conv.kernel_size == (1, 1), upsample
        pack = pack_conv1x1 if self.pointwise else pack_conv3x3
        self.packed = pack(conv.weight)

    def forward(self, x: Tensor, residual: Tensor | None = None, scale: float = 1.0) -> Tensor:
        parameters = (x, self.weight, self.bias, self.packed, residual, scale)
        out: Tensor
        if self.pointwise:
            out = torch.ops.fastdiff.conv1x1.default(*parameters)
        else:
            out = torch.ops.fastdiff.conv3x3.default(*parameters, self.upsample)
        return out


class Strided(nn.Module):
    """With stride 2, by fastdiff::strided_conv3x3."""

    def __init__(self, conv: nn.Conv2d, centered: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.centered = kept(conv.weight), kept(conv.bias), centered
        self.packed = pack_strided_conv3x3(conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.fastdiff.strided_conv3x3.default(
            x, self.weight, self.bias, self.packed, self.centered
        )
        return out


class Packed(nn.Module):
    """Any other convolution, by oneDNN where it knows the dtype, else as torch has it."""

    def __init__(self, conv: nn.Conv2d, upsample: bool) -> None:
        super().__init__()
        self.weight, self.bias = kept(conv.weight), kept(conv.bias)
        self.upsample = upsample
        self.padding, self.stride = list(map(int, conv.padding)), list(conv.stride)
        self.by_onednn = onednn_knows(conv.weight.dtype)
        self.packed: Tensor | None = None

    def forward(self, x: Tensor, residual: Tensor | None = None, scale: float = 1.0) -> Tensor:
        if self.upsample:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if residual is None:
            y = self._convolved(x)
        elif self.by_onednn:
            y = torch.ops.mkldnn._convolution_pointwise.binary(
                x, residual, self._packed_for(x), self.bias, self.padding, self.stride, [1, 1], 1,
                "add", None, None, [], None,
            )  # fmt: skip
        else:
            y = self._convolved(x) + residual
        return y if scale == 1 else y * scale

    def _convolved(self, x: Tensor) -> Tensor:
        y: Tensor
        if not self.by_onednn:  # channels-last, as every kernel of a plan wants its image
            y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
            return y.contiguous(memory_format=torch.channels_last)
        y = torch.ops.mkldnn._convolution_pointwise(
            x, self._packed_for(x), self.bias, self.padding, self.stride, [1, 1], 1, "none", [], ""
        )
        return y

    def _packed_for(self, x: Tensor) -> Tensor:
        """oneDNN chooses the layout of weights by the image that comes first."""
        if self.packed is None:
            self.packed = packed_by_onednn(self.weight, self.padding, self.stride, x.shape)
        return self.packed

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "packed": None}  # which no copy and no file can hold


class Cudnn(nn.Module):
    """Any convolution on a GPU, by cuDNN as torch's settings have it; what follows is one pass."""

    def __init__(self, conv: nn.Conv2d, upsample: bool) -> None:
        super().__init__()
        self.weight = kept(conv.weight).contiguous(memory_format=torch.channels_last)
        self.bias = kept(conv.bias)
        self.upsample = upsample
        self.padding, self.stride = list(map(int, conv.padding)), list(conv.stride)

    def forward(self, x: Tensor, residual: Tensor | None = None, scale: float = 1.0) -> Tensor:
        if self.upsample:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        y = F.conv2d(x, self.weight, None, self.stride, self.padding)
        if self.bias is None and residual is None and scale == 1:
            return y
        return biased_sum_(y, self.bias, residual, scale)

    def take_bias(self) -> Tensor | None:
        """Its bias, which is added by another part from now on."""
        bias, self.bias = self.bias, None
        return bias

    def add_bias(self, bias: Tensor | None) -> None:
        """Add another part's bias beside its own."""
        if self.bias is not None and bias is not None:
            bias = (self.bias.double() + bias.double()).to(self.bias.dtype)
        self.bias = self.bias if bias is None else bias


KINDS = (Own, Strided, Packed, Cudnn)

Parameter = TypeVar("Parameter", Tensor, Tensor | None)


def kept(parameter: Parameter) -> Parameter:
    """As it is now, whatever becomes of it."""
    return None if parameter is None else parameter.detach().clone()


def packed_by_onednn(
    weight: Tensor, padding: Sequence[int], stride: Sequence[int], image: Sequence[int]
) -> Tensor:
    """The weight [O, C, h, w] in the layout that oneDNN takes for images [N, C, H, W]."""
    weight = weight.contiguous(memory_format=torch.channels_last)
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight, padding, stride, [1, 1], 1, image
    )
    return packed


def _suits_own_products(weight: Tensor) -> bool:
    """Whether our products of pixels, or of patches of them, are the fastest with it here."""
    if not weight.is_cpu or not _library.native_kernel("conv1x1", "CPU"):
        return False
    return _known(weight) and (weight.dtype != torch.bfloat16 or _no_match_in_bfloat16())


def _suits_own(conv: nn.Conv2d, upsample: bool) -> bool:
    weight = conv.weight
    if (conv.kernel_size, conv.stride, conv.padding) == ((1, 1), (1, 1), (0, 0)):
        return not upsample and _suits_own_products(weight)
    plain = (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
    if not plain or not _known(weight) or not _library.native_kernel("conv3x3", "CPU"):
        return False
    # oneDNN would double the image in memory; its matrix unit gains more than that takes.
    doubled = upsample and not torch.cpu._is_amx_tile_supported()
    return weight.dtype != torch.bfloat16 or doubled or _no_match_in_bfloat16()


def _known(weight: Tensor) -> bool:
    return weight.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _no_match_in_bfloat16() -> bool:
    """Whether our kernels are faster there than what PyTorch has.

    By the processor's matrix unit they are, and in float32 where it has no products of bfloat16:
    oneDNN takes as long without them as in float32, and PyTorch, where oneDNN refuses, ten times
    that. With such products oneDNN takes half of it, as long as our 4 products a pixel for 9.
    """
    return _library.has_matrix_unit() or not torch.cpu._is_avx512_bf16_supported()
