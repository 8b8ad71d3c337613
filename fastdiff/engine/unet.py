"""A UNet's forward as a list of steps over packed weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastdiff.engine import blocks
from fastdiff.engine.convolution import convolution, downsampling
from fastdiff.engine.graphs import Graphs
from fastdiff.engine.precision import float32_products
from fastdiff.engine.programs import Programs, hooks_of
from fastdiff.engine.steps import Steps
from fastdiff.engine.time import Ahead, TimeProjections
from fastdiff.models import UNet
from fastdiff.models import blocks as plain
from fastdiff.models.inputs import check_inputs, steps_by_sample
from fastdiff.ops._library import transformed
from fastdiff.ops.join_channels import join_channels


class AcceleratedUNet(nn.Module):
    """What `accelerate` makes of a UNet: called as it is, without gradients."""

    def __init__(self, unet: UNet, *, tf32: bool = False, timestep_scale: float = 1.0) -> None:
        super().__init__()
        self.config, self.dtype, self.device = unet.config, unet.dtype, unet.device
        self.plan = Plan(unet)
        self.tf32, self.timestep_scale = tf32, timestep_scale
        self.graphs = graphs_on(self.device)
        self.programs = Programs()
        self.requires_grad_(False).eval()

    def ahead(self, timesteps: Tensor) -> Ahead:
        """What the steps t [S] of a run need, to be handed to each call."""
        with torch.autocast(self.device.type, enabled=False):
            return self.plan.time.ahead(self._scaled(timesteps))

    @torch.no_grad()
    def forward(
        self,
        x: Tensor,
        t: Tensor | int,
        class_labels: Tensor | None = None,
        *,
        ahead: Ahead | None = None,
    ) -> Tensor:
        """As the UNet's forward; raises RuntimeError where a gradient is asked for.

        With `ahead` t is a row [1] of it, for all samples, which the host does not read.
        """
        time, row = self.plan.time, None
        if ahead is not None:
            row = cast(Tensor, t)
            t = ahead.timesteps.index_select(0, row)
        check_inputs(self.config, x, t, class_labels)
        t = steps_by_sample(x, t)
        t = t if ahead is not None else self._scaled(t)
        off = torch.autocast(self.device.type, enabled=False)
        with float32_products(self.tf32, self.device), off:
            if ahead is None or row is None:
                projections = time(t, class_labels)
            else:
                projections = time.of_row(ahead, row, class_labels)
            return self._answer(x, t, projections)

    def _scaled(self, t: Tensor) -> Tensor:
        return t if self.timestep_scale == 1 else t * self.timestep_scale

    @property
    def hooked(self) -> bool:
        """Whether a hook waits for the calls of a part."""
        return hooked(self)

    def _answer(self, x: Tensor, t: Tensor, projections: Tensor) -> Tensor:
        if x.requires_grad or transformed():
            raise RuntimeError(
                "an accelerated UNet gives no gradient and takes no transform of torch.func: "
                "detach x, or call the UNet it was made of."
            )
        x = x.to(self.dtype)
        if self.config.center_input_sample:
            x = 2 * x + -1  # a program can add
        with torch._C._AutoDispatchBelowAutograd():
            out = self.programs.run(self.plan, x, projections)
        if self.config.time_embedding_type == "fourier":
            out = out / t.to(out.dtype)[:, None, None, None]
        return out

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AcceleratedUNet:
        raise RuntimeError(
            "an accelerated UNet stays on its device and in its dtype: move or convert the UNet "
            "it was made of, and accelerate that."
        )


def graphs_on(device: torch.device) -> Graphs:
    """Where whole steps of runs are kept."""
    return (Graphs if device.type == "cuda" else Steps)(device)


def _joined(h: Tensor, kept: Tensor) -> Tensor:
    return join_channels(h, kept) if h.is_cpu else torch.cat((h, kept), dim=1)


def hooked(model: nn.Module) -> bool:
    """Whether a hook waits for the calls of the model or a part of it."""
    return any(hooks_of(model))


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
                add(blocks.attention(block), *roles)
            elif isinstance(block, plain.Downsample):
                add(downsampling(block.conv), *roles)
            elif isinstance(block, plain.Upsample):
                add(convolution(block.conv, upsample=True), *roles)

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
        parts = (part for part in self.parts if isinstance(part, blocks.Residual))
        self.time = TimeProjections(unet, residuals, [part.take_time_shift() for part in parts])

    def forward(self, x: Tensor, of_time: Tensor) -> Tensor:
        """x [N, C, H, W] in the plan's dtype and the projections that `time` gives
        -> [N, C', H, W], channels-last."""
        projections = self.time.by_block(of_time, len(x))
        h, maps = x.contiguous(memory_format=torch.channels_last), list[Tensor]()
        for part, roles in zip(self.parts, self.roles, strict=True):
            if "join" in roles:
                h = _joined(h, maps.pop())
            h = part(h, *next(projections)) if "time" in roles else part(h)
            if "keep" in roles:
                maps.append(h)
        return h
