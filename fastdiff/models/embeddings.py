"""What a UNet makes of the time step and of the class label."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff.models.config import UNetConfig


class SinusoidalTime(nn.Module):
    """Sines and cosines of t at geometric frequencies (Ho et al. 2020, appendix B)."""

    def __init__(
        self, channels: int, *, cos_first: bool, freq_shift: int, max_period: float = 10000.0
    ) -> None:
        super().__init__()
        self.channels = channels
        self.cos_first = cos_first
        self.freq_shift = freq_shift
        self.max_period = max_period

    def forward(self, t: Tensor) -> Tensor:
        """t [N], any dtype -> [N, channels] float32."""
        half = self.channels // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        frequencies = torch.exp(steps * -math.log(self.max_period) / (half - self.freq_shift))
        angles = t.float()[:, None] * frequencies
        waves = (angles.cos(), angles.sin()) if self.cos_first else (angles.sin(), angles.cos())
        return F.pad(torch.cat(waves, dim=1), (0, self.channels % 2))


class FourierTime(nn.Module):
    """Random Fourier features of log t, for noise levels in place of steps (Song et al. 2021)."""

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels) * scale, requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        """t [N] above 0 -> [N, 2 * channels], float32 or what the weights have beyond it."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        angles = t.to(weight.dtype).log()[:, None] * weight * (2 * math.pi)
        return torch.cat((angles.sin(), angles.cos()), dim=1)


class EmbeddingMLP(nn.Module):
    """Linear, SiLU, linear: [N, in_channels] -> [N, out_channels]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, features: Tensor) -> Tensor:
        features = features.to(self.linear_1.weight.dtype)
        out: Tensor = self.linear_2(F.silu(self.linear_1(features)))
        return out


def time_features(config: UNetConfig) -> tuple[nn.Module, int]:
    """Return the module that turns t [N] into features [N, F], and F."""
    channels = config.time_channels
    if config.time_embedding_type == "fourier":
        return FourierTime(channels), 2 * channels
    if config.time_embedding_type == "learned":
        assert config.num_train_timesteps is not None  # UNetConfig has checked it
        return nn.Embedding(config.num_train_timesteps, channels), channels
    positional = SinusoidalTime(
        channels, cos_first=config.flip_sin_to_cos, freq_shift=config.freq_shift
    )
    return positional, channels


def class_embedding(config: UNetConfig, time_channels: int) -> nn.Module | None:
    """Return the module that turns class labels into [N, time_embed_dim], or None without one."""
    if config.class_embed_type == "timestep":
        return EmbeddingMLP(time_channels, config.time_embed_dim)
    if config.class_embed_type == "identity":
        return nn.Identity()
    if config.num_class_embeds is not None:
        return nn.Embedding(config.num_class_embeds, config.time_embed_dim)
    return None
