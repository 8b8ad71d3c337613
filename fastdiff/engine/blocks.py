"""The blocks of a UNet over packed weights: the same sums as fastdiff.models.blocks', fused."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff.engine.convolution import Cudnn, convolution, kept
from fastdiff.models import blocks
from fastdiff.ops import attention_block, fold_single_head
from fastdiff.ops.attention_block.composite import attend_folded_in_image, attend_in_image


class Normalisation(nn.Module):
    """GroupNorm, and SiLU if asked for."""

    def __init__(self, norm: nn.GroupNorm, *, silu: bool = True) -> None:
        super().__init__()
        self.groups, self.eps, self.silu = norm.num_groups, norm.eps, silu
        self.weight, self.bias = kept(norm.weight), kept(norm.bias)

    def forward(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        out: Tensor = torch.ops.fastdiff.group_norm_silu.default(
            x, self.groups, self.weight, self.bias, self.eps, scale, shift, self.silu, residual
        )[0]
        return out


class Residual(nn.Module):
    """A ResidualBlock; its sum is the second convolution's."""

    def __init__(self, block: blocks.ResidualBlock) -> None:
        super().__init__()
        self.norm1, self.norm2 = Normalisation(block.norm1), Normalisation(block.norm2)
        self.conv1, self.conv2 = (
            convolution(block.conv1, upsample=block.resample == "up"),
            convolution(block.conv2),
        )
        shortcut = block.conv_shortcut
        self.shortcut = None if shortcut is None else convolution(shortcut)
        self.scale, self.scale_shift = block.residual_scale, block.scale_shift
        self.resample = block.resample
        self.bias1: Tensor | None = None
        if isinstance(self.conv1, Cudnn) and isinstance(self.conv2, Cudnn):
            # The norm and the sum that follow read biases for nothing; cuDNN's call takes a pass.
            self.bias1 = self.conv1.take_bias()
            if isinstance(self.shortcut, Cudnn):
                self.conv2.add_bias(self.shortcut.take_bias())

    def take_time_shift(self) -> Tensor | None:
        """A bias [channels] that the projections of time are to bring."""
        if self.scale_shift:
            return None
        bias, self.bias1 = self.bias1, None
        return bias

    def forward(self, x: Tensor, *time: Tensor) -> Tensor:
        """x [N, C, H, W], time [N, channels], or with AdaGN its scale and shift
        -> [N, C', H', W'].
        """
        h = self.norm1(x)
        if self.resample == "down":
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
        h = self.conv1(h)
        if self.scale_shift:
            scale, shift = time
            bias = None if self.bias1 is None else self.bias1.expand(len(h), -1)
            h = self.norm2(h, scale=scale, shift=shift, residual=bias)
        else:
            h = self.norm2(h, residual=time[0])
        if self.resample == "up":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if self.shortcut is not None:
            x = self.shortcut(x)
        out: Tensor = self.conv2(h, residual=x, scale=self.scale)
        return out


class Attention(nn.Module):
    """An Attention block on a GPU."""

    def __init__(self, block: blocks.Attention) -> None:
        super().__init__()
        norm = block.group_norm
        self.groups = None if norm is None else norm.num_groups
        self.eps = 0.0 if norm is None else norm.eps
        self.norm_weight = None if norm is None else kept(norm.weight)
        self.norm_bias = None if norm is None else kept(norm.bias)
        layers = [block.to_q, block.to_k, block.to_v]
        self.qkv_weight = torch.cat([layer.weight.detach() for layer in layers])
        self.qkv_bias = torch.cat([layer.bias.detach() for layer in layers])
        self.proj_weight, self.proj_bias = (kept(p) for p in block.to_out[0].parameters())
        self.heads, self.scale = block.heads, block.residual_scale

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, C, H, W]."""
        return attention_block(
            x, self.norm_weight, self.norm_bias, self.qkv_weight, self.qkv_bias,
            self.proj_weight, self.proj_bias, groups=self.groups, group_norm_eps=self.eps,
            heads=self.heads, residual_scale=self.scale,
        )  # fmt: skip


class PackedAttention(nn.Module):
    """An Attention block on the CPU, whose products are 1x1 convolutions of packed weights."""

    def __init__(self, block: blocks.Attention) -> None:
        super().__init__()
        norm = block.group_norm
        self.norm = None if norm is None else Normalisation(norm, silu=False)
        self.qkv = convolution(pointwise(block.to_q, block.to_k, block.to_v))
        self.proj = convolution(pointwise(cast(nn.Linear, block.to_out[0])))
        self.heads, self.scale = block.heads, block.residual_scale

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, C, H, W]."""
        qkv = self.qkv(x if self.norm is None else self.norm(x))
        mixed = attend_in_image(qkv, self.heads)
        out: Tensor = self.proj(mixed, residual=x, scale=self.scale)
        return out


class FoldedAttention(nn.Module):
    """The same of one head in float32, by two products for four: what `fold_single_head` says."""

    def __init__(self, block: blocks.Attention) -> None:
        super().__init__()
        norm = block.group_norm
        self.norm = None if norm is None else Normalisation(norm, silu=False)
        qkv, out = pointwise(block.to_q, block.to_k, block.to_v), cast(nn.Linear, block.to_out[0])
        folded = fold_single_head(qkv.weight[:, :, 0, 0], qkv.bias, out.weight, out.bias)
        self.queries = convolution(_pointwise(folded.score_weight, folded.score_bias))
        self.proj = convolution(_pointwise(folded.out_weight, folded.out_bias))
        self.scale = block.residual_scale

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, C, H, W]."""
        n = x if self.norm is None else self.norm(x)
        mixed = attend_folded_in_image(self.queries(n), n)
        out: Tensor = self.proj(mixed, residual=x, scale=self.scale)
        return out


def attention(block: blocks.Attention) -> nn.Module:
    """What `block` computes."""
    weight = block.to_q.weight
    if not weight.is_cpu:
        return Attention(block)
    # In a short dtype scores of rounded products of weights may err more than their own.
    folds = block.heads == 1 and weight.dtype == torch.float32
    return (FoldedAttention if folds else PackedAttention)(block)


def pointwise(*layers: nn.Linear) -> nn.Conv2d:
    """The same products for each pixel, their results one behind the other."""
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    return _pointwise(
        torch.cat([layer.weight.detach() for layer in layers]),
        torch.cat(biases) if biases else None,
    )


def _pointwise(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False, device="meta")
    conv.weight = nn.Parameter(weight.detach()[:, :, None, None], requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return conv
