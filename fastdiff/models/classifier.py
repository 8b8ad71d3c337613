"""The classifier of noisy images that guides ADM (Dhariwal and Nichol 2021, section 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff.models.blocks import Norm
from fastdiff.models.config import UNetConfig
from fastdiff.models.embeddings import EmbeddingMLP, time_features
from fastdiff.models.unet import down_levels, middle_level

POOLS = ("adaptive", "attention", "spatial", "spatial_v2")
HIDDEN = 2048


class NoisyClassifier(nn.Module):
    """A UNet's way down and middle, and a head on top that gives out_channels logits.

    Args:
        pool: "adaptive" the mean of the last map, "attention" a token that attends to it, "spatial"
            or "spatial_v2" the means of all maps and two linear layers.
        config: keys of UNetConfig; sample_size is needed for "attention".

    Raises ValueError, naming the key, for a config that it cannot build.
    """

    def __init__(self, *, pool: str = "attention", **config: Any) -> None:
        super().__init__()
        self.config = config_ = UNetConfig.from_dict(config)
        self.pool = pool
        self.conv_in = nn.Conv2d(config_.in_channels, config_.block_out_channels[0], 3, padding=1)
        self.time_proj, channels = time_features(config_)
        self.time_embedding = EmbeddingMLP(channels, config_.time_embed_dim)
        self.down_blocks = nn.ModuleList(down_levels(config_))
        self.mid_block = middle_level(config_)
        self.head = _head(config_, pool)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [N, in_channels, H, W] and t [N] -> logits [N, out_channels], in the weights' dtype."""
        time = F.silu(self.time_embedding(self.time_proj(t)))
        maps = [self.conv_in(x.to(self.conv_in.weight.dtype))]
        for level in self.down_blocks:
            maps += level(maps[-1], time)
        assert self.mid_block is not None
        maps.append(self.mid_block(maps[-1], time))
        if self.pool.startswith("spatial"):
            features = torch.cat([feature_map.mean(dim=(2, 3)) for feature_map in maps], 1)
            out: Tensor = self.head(features)
            return out
        out = self.head(maps[-1])
        return out


class AttentionPool(nn.Module):
    """One token, the mean of all positions, attends to itself and them (Radford et al. 2021)."""

    def __init__(self, positions: int, channels: int, head_channels: int, outputs: int) -> None:
        super().__init__()
        spread = channels**-0.5
        self.positional_embedding = nn.Parameter(spread * torch.randn(channels, positions + 1))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, outputs, 1)
        self.heads = channels // head_channels

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, outputs]."""
        x = x.flatten(2)
        x = torch.cat([x.mean(2, keepdim=True), x], 2) + self.positional_embedding
        q, k, v = (
            part.unflatten(1, (self.heads, -1)).transpose(2, 3)
            for part in self.qkv_proj(x).chunk(3, 1)
        )
        token = F.scaled_dot_product_attention(q[:, :, :1], k, v)
        out: Tensor = self.c_proj(token.transpose(2, 3).flatten(1, 2))
        return out[:, :, 0]


def _head(config: UNetConfig, pool: str) -> nn.Sequential:
    # Layers stand where the original's do, by whose places weights are named: Norm is SiLU too.
    width, outputs = config.block_out_channels[-1], config.out_channels
    norm = Norm(config.norm_num_groups, width, config.norm_eps)
    if pool == "adaptive":
        last = nn.Conv2d(width, outputs, 1)
        return nn.Sequential(norm, nn.Identity(), nn.AdaptiveAvgPool2d(1), last, nn.Flatten())
    if pool == "attention":
        return nn.Sequential(norm, nn.Identity(), _attention_pool(config, width, outputs))
    features = _feature_count(config)
    if pool == "spatial":
        return nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))
    if pool == "spatial_v2":
        between = nn.GroupNorm(config.norm_num_groups, HIDDEN, config.norm_eps)
        return nn.Sequential(
            nn.Linear(features, HIDDEN), between, nn.SiLU(), nn.Linear(HIDDEN, outputs)
        )
    raise ValueError(f"unknown pool {pool!r}: choose one of {', '.join(POOLS)}.")


def _attention_pool(config: UNetConfig, width: int, outputs: int) -> AttentionPool:
    if config.attention_head_dim is None or not isinstance(config.sample_size, int):
        raise ValueError(
            "pool 'attention' needs attention_head_dim (num_head_channels) and a sample_size."
        )
    edge = config.sample_size // config.down_factor
    return AttentionPool(edge * edge, width, config.attention_head_dim, outputs)


def _feature_count(config: UNetConfig) -> int:
    """The channels of all maps: the first, the levels' and their halved ones, the middle's."""
    widths, layers = config.block_out_channels, config.layers_per_block
    return widths[0] + layers * sum(widths) + sum(widths[:-1]) + widths[-1]
