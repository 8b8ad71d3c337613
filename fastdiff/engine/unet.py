"""A UNet's forward as a list of steps over packed weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastdiff.engine import blocks
from fastdiff.engine.convolution import convolution
from fastdiff.engine.time import TimeProjections
from fastdiff.models import UNet
from fastdiff.models import blocks as plain
from fastdiff.models.inputs import check_inputs, steps_by_sample


class AcceleratedUNet(nn.Module):
    """What `accelerate` makes of a UNet: called as it is, without gradients."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.config, self.dtype = unet.config, unet.dtype
        self.plan = Plan(unet)
        self.requires_grad_(False).eval()

    def prepare(self, timesteps: Tensor) -> None:
        """Compute ahead what the steps t [S] of a run need; calls at other t stay right."""
        self.plan.time.prepare(timesteps)

    @torch.no_grad()
    def forward(self, x: Tensor, t: Tensor | int, class_labels: Tensor | None = None) -> Tensor:
        """As the UNet's forward; raises RuntimeError where a gradient is asked for."""
        check_inputs(self.config, x, t, class_labels)
        if x.requires_grad:
            raise RuntimeError(
                "an accelerated UNet gives no gradient: detach x, or call the UNet it was made of."
            )
        t, x = steps_by_sample(x, t), x.to(self.dtype)
        if self.config.center_input_sample:
            x = 2 * x - 1
        with torch._C._AutoDispatchBelowAutograd(), torch.autocast("cpu", enabled=False):
            out: Tensor = self.plan(x, t, class_labels)
        if self.config.time_embedding_type == "fourier":
            out = out / t.to(out.dtype)[:, None, None, None]
        return out

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AcceleratedUNet:
        raise RuntimeError(
            "an accelerated UNet stays on its device and in its dtype: move or convert the UNet "
            "it was made of, and accelerate that."
        )


class Plan(nn.Module):
    """A UNet's forward as parts that run one after the other, with its weights as they are now.

    A part is said to "join" the map that was kept last before it runs, to "keep" its own map for
    the way up, and to read its "time" projection.
    """

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self.roles: list[frozenset[str]] = []
        residuals: list[plain.ResidualBlock] = []

        def add(part: nn.Module, *roles: str) -> None:
            self.parts.append(part)
            self.roles.append(frozenset(roles))

        def add_block(block: nn.Module, *roles: str) -> None:
            if isinstance(block, plain.ResidualBlock):
                residuals.append(block)
                add(blocks.Residual(block), "time", *roles)
            elif isinstance(block, plain.Attention):
                add(blocks.Attention(block), *roles)
            elif isinstance(block, plain.Downsample):
                add(blocks.Downsample(block), *roles)
            elif isinstance(block, plain.Upsample):
                add(blocks.Upsample(block), *roles)

        def add_level(level: Any, first: tuple[str, ...] = (), last: tuple[str, ...] = ()) -> None:
            """`first` and `last` are roles of a residual block and of the attention after it."""
            for i, resnet in enumerate(level.resnets):
                attention = [*level.attentions[i : i + 1]]
                add_block(resnet, *first, *(() if attention else last))
                for block in attention:
                    add_block(block, *last)

        add(convolution(unet.conv_in), "keep")
        for level in unet.down_blocks:
            add_level(level, last=("keep",))
            for sampler in cast(plain.DownLevel, level).downsamplers:
                add_block(sampler, "keep")
        if unet.mid_block is not None:
            add_level(unet.mid_block)
        for level in unet.up_blocks:
            add_level(level, first=("join",))
            for sampler in cast(plain.UpLevel, level).upsamplers:
                add_block(sampler)
        add(blocks.Normalisation(unet.conv_norm_out))
        add(convolution(unet.conv_out))
        self.time = TimeProjections(unet, residuals)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None) -> Tensor:
        """x [N, C, H, W] in the plan's dtype, t [N] -> [N, C', H, W], channels-last."""
        projections = iter(self.time(t, class_labels))
        h, maps = x.contiguous(memory_format=torch.channels_last), list[Tensor]()
        for part, roles in zip(self.parts, self.roles, strict=True):
            if "join" in roles:
                h = torch.cat((h, maps.pop()), dim=1)
            h = part(h, next(projections)) if "time" in roles else part(h)
            if "keep" in roles:
                maps.append(h)
        return h
