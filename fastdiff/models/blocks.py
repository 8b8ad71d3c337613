"""The parts of a UNet: residual block, attention block, resampling, and one resolution's worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastdiff.models.config import UNetConfig
from fastdiff.models.joined import Joined, join, lay_out
from fastdiff.ops import attention_block, group_norm_silu, trained_conv3x3

KINDS = ("weight", "bias")


class Norm(nn.GroupNorm):
    """GroupNorm with, in the same pass, the sum before it and the modulation and SiLU after it."""

    def forward(
        self,
        x: Tensor,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        silu: bool = True,
        residual: Tensor | None = None,
    ) -> Tensor:
        """x [N, C, H, W]; scale, shift and residual [N, C] -> [N, C, H, W]."""
        return group_norm_silu(
            x, self.num_groups, self.weight, self.bias, self.eps,
            scale=scale, shift=shift, silu=silu, residual=residual,
        )  # fmt: skip


class Conv3x3(nn.Conv2d):
    """3x3, stride 1, a pixel of zeros around, of x or of x doubled by nearest neighbour."""

    def __init__(self, in_channels: int, out_channels: int, *, upsample: bool = False) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, O, H, W], or [N, O, 2H, 2W]."""
        return trained_conv3x3(x, self.weight, self.bias, upsample=self.upsample)


class ResidualBlock(nn.Module):
    """x + conv2(norm2(conv1(resample(norm1(x)))), time), as in Ho et al. 2020 and ADM.

    `resample` "up" or "down" makes it the BigGAN block of Dhariwal and Nichol 2021, section 3:
    both branches change resolution, by nearest neighbour or by the mean of 2x2.
    """

    def __init__(
        self,
        config: UNetConfig,
        in_channels: int,
        out_channels: int,
        *,
        residual_scale: float,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = config.resnet_time_scale_shift == "scale_shift"
        self.residual_scale = residual_scale
        self.resample = resample
        groups, eps = config.norm_num_groups, config.norm_eps
        self.norm1 = Norm(groups, in_channels, eps)
        self.conv1 = Conv3x3(in_channels, out_channels)
        time_channels = 2 * out_channels if self.scale_shift else out_channels
        self.time_emb_proj = nn.Linear(config.time_embed_dim, time_channels)
        self.norm2 = Norm(groups, out_channels, eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = Conv3x3(out_channels, out_channels)
        self.conv_shortcut = (
            nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [N, C, H, W], time [N, time_embed_dim] after its SiLU -> [N, out_channels, H', W']."""
        h = self.conv1(self._resampled(self.norm1(x)))
        time = self.time_emb_proj(time)
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm2(h, scale=scale, shift=shift)
        else:
            h = self.norm2(h, residual=time)
        h = self.conv2(self.dropout(h))
        x = self._resampled(x)
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return residual_sum(x, h, self.residual_scale)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return x


class Attention(nn.Module):
    """Self-attention among the positions of a feature map, added to it (Ho et al. 2020).

    The weights of `to_q`, `to_k` and `to_v` lie one behind the other in one tensor, and their
    biases in another, so that inference joins them without a copy.
    """

    def __init__(
        self, config: UNetConfig, channels: int, groups: int | None, *, residual_scale: float
    ) -> None:
        super().__init__()
        self.heads = config.heads(channels)
        self.residual_scale = residual_scale
        self.group_norm = None if groups is None else Norm(groups, channels, config.norm_eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        self._joined: dict[str, Joined] = {}
        self._lay_out()
        self.register_load_state_dict_post_hook(Attention._lay_out)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, C, H, W]."""
        norm = self.group_norm
        weight, bias, groups, eps = (
            (None, None, None, 0.0)
            if norm is None
            else (norm.weight, norm.bias, norm.num_groups, norm.eps)
        )
        qkv_weight, qkv_bias = (join(self._qkv(kind), self._joined[kind]) for kind in KINDS)
        proj_weight, proj_bias = (getattr(self.to_out[0], kind) for kind in KINDS)
        return attention_block(
            x, weight, bias, qkv_weight, qkv_bias, proj_weight, proj_bias,
            groups=groups, group_norm_eps=eps, heads=self.heads, residual_scale=self.residual_scale,
        )  # fmt: skip

    def _qkv(self, kind: str) -> list[nn.Parameter]:
        return [getattr(layer, kind) for layer in (self.to_q, self.to_k, self.to_v)]

    def _lay_out(self, *_: Any) -> None:
        for kind in KINDS:
            self._joined[kind] = lay_out(self._qkv(kind), self._joined.get(kind))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Attention:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._lay_out()  # .to() and its like have given each parameter a tensor of its own
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lay_out()  # so have copy.deepcopy and pickle


class Downsample(nn.Module):
    """Halve the resolution by a strided 3x3 convolution."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, C, H/2, W/2]."""
        # TensorFlow's "same" padding, which Ho's weights were trained with: right and below only.
        x = F.pad(x, (0, 1, 0, 1)) if self.conv.padding == (0, 0) else x
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """Double the resolution by nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels, upsample=True)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, C, 2H, 2W]."""
        out: Tensor = self.conv(x)
        return out


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention or not."""

    def __init__(self, resnets: Iterable[nn.Module], attentions: Iterable[nn.Module]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.checkpointing = False

    def block(self, i: int, x: Tensor, time: Tensor) -> Tensor:
        """Run the i-th residual block and the attention that follows it, if one does."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            out: Tensor = checkpoint(self._block, i, x, time, use_reentrant=False)
            return out
        return self._block(i, x, time)

    def _block(self, i: int, x: Tensor, time: Tensor) -> Tensor:
        x = self.resnets[i](x, time)
        if i < len(self.attentions):
            x = self.attentions[i](x)
        return x


class DownLevel(Level):
    """A level on the way down, which ends in halving the resolution, except the last."""

    def __init__(
        self,
        resnets: Iterable[nn.Module],
        attentions: Iterable[nn.Module],
        downsampler: nn.Module | None,
    ) -> None:
        super().__init__(resnets, attentions)
        self.downsamplers = nn.ModuleList([] if downsampler is None else [downsampler])

    def forward(self, x: Tensor, time: Tensor) -> list[Tensor]:
        """Return every feature map on the way; the last one goes on to the next level."""
        states = []
        for i in range(len(self.resnets)):
            x = self.block(i, x, time)
            states.append(x)
        for sampler in self.downsamplers:
            states.append(_resampled(sampler, x, time))
        return states


class MiddleLevel(Level):
    """The blocks at the lowest resolution, between the way down and the way up."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, C, H, W]."""
        for i in range(len(self.resnets)):
            x = self.block(i, x, time)
        return x


class UpLevel(Level):
    """A level on the way up, which ends in doubling the resolution, except the last."""

    def __init__(
        self,
        resnets: Iterable[nn.Module],
        attentions: Iterable[nn.Module],
        upsampler: nn.Module | None,
    ) -> None:
        super().__init__(resnets, attentions)
        self.upsamplers = nn.ModuleList([] if upsampler is None else [upsampler])

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor) -> Tensor:
        """Take one map off the end of `skips` for each residual block, and join it to x."""
        for i in range(len(self.resnets)):
            x = self.block(i, torch.cat((x, skips.pop()), dim=1), time)
        for sampler in self.upsamplers:
            x = _resampled(sampler, x, time)
        return x


def residual_sum(x: Tensor, h: Tensor, scale: float) -> Tensor:
    """(x + h) * scale."""
    x = x + h
    return x if scale == 1.0 else x * scale


def _resampled(sampler: nn.Module, x: Tensor, time: Tensor) -> Tensor:
    out: Tensor = sampler(x, time) if isinstance(sampler, ResidualBlock) else sampler(x)
    return out
