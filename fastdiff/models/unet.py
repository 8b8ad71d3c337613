"""The UNet of DDPM and ADM, with diffusers' names for its parts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff.models.blocks import (
    Attention,
    DownLevel,
    Downsample,
    Level,
    MiddleLevel,
    Norm,
    ResidualBlock,
    UpLevel,
    Upsample,
)
from fastdiff.models.config import UNetConfig
from fastdiff.models.embeddings import EmbeddingMLP, class_embedding, time_features
from fastdiff.models.inputs import check_inputs, steps_by_sample


class UNet(nn.Module):
    """The noise-prediction network of Ho et al. 2020 (DDPM) and of Dhariwal and Nichol 2021 (ADM).

    `UNet(**config)` takes the keys of `UNetConfig`, which are those of diffusers' UNet2DModel;
    `UNet.ddpm` and `UNet.adm` fill them in as the papers do. Modules and parameters bear diffusers'
    names, so state dicts pass between the two unchanged.

    New weights follow Ho's code: fan-average uniform with zero biases, and zeros in the last layer
    of every residual branch and of the network, so that each branch begins as the identity.

    Raises ValueError, naming the key, for a config that it cannot build.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = UNetConfig.from_dict(config)
        channels = self.config.block_out_channels
        self.conv_in = nn.Conv2d(self.config.in_channels, channels[0], 3, padding=1)
        self.time_proj, time_channels = time_features(self.config)
        self.time_embedding = EmbeddingMLP(time_channels, self.config.time_embed_dim)
        self.class_embedding = class_embedding(self.config, time_channels)
        self.down_blocks = nn.ModuleList(down_levels(self.config))
        self.mid_block = middle_level(self.config)
        self.up_blocks = nn.ModuleList(_up_levels(self.config))
        self.conv_norm_out = Norm(self.config.norm_num_groups, channels[0], self.config.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], self.config.out_channels, 3, padding=1)
        self.reset_parameters()

    @classmethod
    def ddpm(
        cls,
        image_size: int,
        *,
        image_channels: int = 3,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 2,
        attention_resolutions: tuple[int, ...] = (16,),
        num_classes: int | None = None,
        learn_sigma: bool = False,
        dropout: float = 0.1,
        groups: int = 32,
    ) -> UNet:
        """Build Ho's UNet; the defaults are their CIFAR-10 one, 35.7 million parameters.

        `channels` times `multipliers` are the widths from the image's resolution down,
        `attention_resolutions` are the sizes of the feature maps that have attention.
        `learn_sigma` doubles the output channels, for a learned variance.
        """
        return cls(
            **_levels(image_size, channels, multipliers, attention_resolutions),
            in_channels=image_channels,
            out_channels=2 * image_channels if learn_sigma else image_channels,
            layers_per_block=blocks,
            dropout=dropout,
            norm_num_groups=groups,
            num_class_embeds=num_classes,
            norm_eps=1e-6,
            downsample_padding=0,
            freq_shift=1,
            flip_sin_to_cos=False,
            attention_head_dim=None,
        )

    @classmethod
    def adm(
        cls,
        image_size: int,
        *,
        image_channels: int = 3,
        channels: int = 192,
        multipliers: tuple[int, ...] = (1, 2, 3, 4),
        blocks: int = 3,
        attention_resolutions: tuple[int, ...] = (32, 16, 8),
        head_channels: int | None = 64,
        heads: int | None = None,
        num_classes: int | None = None,
        learn_sigma: bool = True,
        dropout: float = 0.1,
        groups: int = 32,
    ) -> UNet:
        """Build the ADM UNet; the defaults are their ImageNet 64x64 one without classes.

        AdaGN, BigGAN up and down blocks, attention heads of `head_channels` channels each, or
        `heads` of them at every resolution. `learn_sigma` doubles the output channels.
        """
        return cls(
            **_levels(image_size, channels, multipliers, attention_resolutions, big_gan=True),
            in_channels=image_channels,
            out_channels=2 * image_channels if learn_sigma else image_channels,
            layers_per_block=blocks,
            dropout=dropout,
            norm_num_groups=groups,
            attn_norm_num_groups=groups,
            num_class_embeds=num_classes,
            downsample_type="resnet",
            upsample_type="resnet",
            resnet_time_scale_shift="scale_shift",
            attention_head_dim=head_channels,
            num_attention_heads=heads,
        )

    @staticmethod
    def from_pretrained(
        folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32
    ) -> UNet:
        """Load a UNet from a diffusers folder: of a UNet, or of a pipeline that holds one.

        Weights are converted to `dtype`, whatever they are stored in. The UNet is in eval mode.
        Raises `fastdiff.checkpoints.CheckpointError`, a ValueError, for what cannot be read.
        """
        from fastdiff.checkpoints.diffusers import load_unet

        return load_unet(folder, dtype=dtype)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and diffusion_pytorch_model.safetensors, as diffusers does."""
        from fastdiff.checkpoints.diffusers import save_unet

        save_unet(folder, self)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, and of the output."""
        return self.conv_in.weight.dtype

    @property
    def num_classes(self) -> int | None:
        """How many class labels there are; None for a UNet without a table of classes."""
        return self.config.num_classes

    def checkpoint_activations(self, on: bool = True) -> None:
        """In training keep each block's input alone, and compute the rest again going backward.

        The same gradients to the bit, dropout included, in less memory and a third more time
        (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").
        """
        for module in self.modules():
            if isinstance(module, Level):
                module.checkpointing = on

    def reset_parameters(self) -> None:
        """Draw new weights, as described for the class."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name, weight in self.named_parameters():
            if name.endswith(("conv2.weight", "to_out.0.weight", "conv_out.weight")):
                nn.init.zeros_(weight)

    def forward(self, x: Tensor, t: Tensor | int, class_labels: Tensor | None = None) -> Tensor:
        """Predict the noise, or whatever the UNet was trained to predict, in x at step t.

        x [N, in_channels, H, W], images in [-1, 1] plus noise, cast to the weights' dtype; t an int
        or a tensor [] or [N], from 0 (least noisy) to T-1; class_labels [N] int64.
        Returns [N, out_channels, H, W] in the weights' dtype (or autocast's).
        Raises ValueError where a shape or a label does not fit.
        """
        check_inputs(self.config, x, t, class_labels)
        t = steps_by_sample(x, t)
        time = F.silu(self._embedding(t, class_labels))
        x = x.to(self.dtype)
        h = self.conv_in(2 * x - 1 if self.config.center_input_sample else x)
        skips = [h]
        for level in self.down_blocks:
            skips += level(skips[-1], time)
        h = skips[-1]
        if self.mid_block is not None:
            h = self.mid_block(h, time)
        for level in self.up_blocks:
            h = level(h, skips, time)
        out: Tensor = self.conv_out(self.conv_norm_out(h))
        if self.config.time_embedding_type == "fourier":
            out = out / t.to(out.dtype)[:, None, None, None]
        return out

    def _embedding(self, t: Tensor, class_labels: Tensor | None) -> Tensor:
        embedding: Tensor = self.time_embedding(self.time_proj(t))
        if self.class_embedding is None or class_labels is None:
            return embedding
        if self.config.class_embed_type == "timestep":
            class_labels = self.time_proj(class_labels)
        of_class: Tensor = self.class_embedding(class_labels)
        return embedding + of_class.to(embedding.dtype)


def down_levels(config: UNetConfig) -> Iterator[DownLevel]:
    """The levels on the way down, the widest resolution first."""
    widths = config.block_out_channels
    for i, block_type in enumerate(config.down_block_types):
        width, entry = widths[i], widths[max(i - 1, 0)]
        inputs = [entry] + [width] * (config.layers_per_block - 1)
        sampler: nn.Module | None = None
        if i < len(widths) - 1:
            if _resamples_by_resnet(block_type, config.downsample_type):
                sampler = _resnet(config, width, width, resample="down")
            else:
                sampler = Downsample(width, config.downsample_padding)
        resnets = [_resnet(config, channels, width) for channels in inputs]
        yield DownLevel(resnets, _attentions(config, block_type, width, len(inputs)), sampler)


def middle_level(config: UNetConfig) -> MiddleLevel | None:
    """The blocks between the way down and the way up."""
    if config.mid_block_type is None:
        return None
    width = config.block_out_channels[-1]
    scale = config.residual_scale / config.mid_block_scale_factor
    attentions = []
    if config.add_attention:
        # As diffusers has it: beside AdaGN the middle attention has no norm unless asked for.
        plain = config.resnet_time_scale_shift == "default"
        groups = config.attn_norm_num_groups or (config.norm_num_groups if plain else None)
        attentions = [Attention(config, width, groups, residual_scale=scale)]
    resnets = [ResidualBlock(config, width, width, residual_scale=scale) for _ in range(2)]
    return MiddleLevel(resnets, attentions)


def _up_levels(config: UNetConfig) -> Iterator[UpLevel]:
    widths = config.block_out_channels[::-1]
    for i, block_type in enumerate(config.up_block_types):
        width, entry = widths[i], widths[max(i - 1, 0)]
        below = widths[min(i + 1, len(widths) - 1)]
        arriving = [entry] + [width] * config.layers_per_block
        skips = [width] * config.layers_per_block + [below]
        inputs = [a + s for a, s in zip(arriving, skips, strict=True)]
        sampler: nn.Module | None = None
        if i < len(widths) - 1:
            if _resamples_by_resnet(block_type, config.upsample_type):
                sampler = _resnet(config, width, width, resample="up")
            else:
                sampler = Upsample(width)
        resnets = [_resnet(config, channels, width) for channels in inputs]
        yield UpLevel(resnets, _attentions(config, block_type, width, len(inputs)), sampler)


def _attentions(config: UNetConfig, block_type: str, width: int, count: int) -> Iterator[Attention]:
    for _ in range(count if block_type.startswith("Attn") else 0):
        yield Attention(config, width, config.norm_num_groups, residual_scale=config.residual_scale)


def _resnet(
    config: UNetConfig, in_channels: int, out_channels: int, resample: str | None = None
) -> ResidualBlock:
    return ResidualBlock(
        config, in_channels, out_channels, residual_scale=config.residual_scale, resample=resample
    )


def _resamples_by_resnet(block_type: str, attention_blocks_do: str) -> bool:
    # diffusers reads downsample_type and upsample_type for its attention blocks alone.
    if block_type.startswith("Attn"):
        return attention_blocks_do == "resnet"
    return block_type.startswith("Resnet")


def _levels(
    image_size: int,
    channels: int,
    multipliers: tuple[int, ...],
    attention_resolutions: tuple[int, ...],
    big_gan: bool = False,
) -> dict[str, Any]:
    sizes = [image_size // 2**i for i in range(len(multipliers))]
    attends = [size in attention_resolutions for size in sizes]
    down, up = ("ResnetDownsample", "ResnetUpsample") if big_gan else ("Down", "Up")
    return {
        "sample_size": image_size,
        "block_out_channels": tuple(channels * m for m in multipliers),
        "down_block_types": tuple("AttnDownBlock2D" if a else f"{down}Block2D" for a in attends),
        "up_block_types": tuple("AttnUpBlock2D" if a else f"{up}Block2D" for a in attends[::-1]),
    }
