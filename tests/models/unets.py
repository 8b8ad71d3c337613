"""UNets with nothing zero in them, and how far two tensors lie apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.models import UNet
from fastdiff.models.config import OWN_KEYS

# config.json of google/ddpm-cifar10-32, word for word but for its list of blocks.
CIFAR10: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
SMALL: dict[str, Any] = {
    "sample_size": 12,
    "block_out_channels": (16, 24),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
ADM: dict[str, Any] = SMALL | {
    "block_out_channels": (16, 32, 48),
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "layers_per_block": 2,
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "attention_head_dim": 8,
    "attn_norm_num_groups": 8,
    "num_class_embeds": 5,
}


def randomised(unet: UNet, seed: int = 0) -> UNet:
    """Give every bias, norm and zero weight values that matter, and put the UNet in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
            elif not parameter.any():
                spread = parameter[0].numel() ** -0.5
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return unet.eval()


def peer(unet: UNet) -> nn.Module:
    """diffusers' UNet2DModel of the same config, as far as diffusers goes, and the same weights."""
    from diffusers import UNet2DModel

    model = UNet2DModel(**{k: v for k, v in unet.config.to_dict().items() if k not in OWN_KEYS})
    model.load_state_dict(unet.state_dict())
    return model.to(unet.dtype).eval()


def distance(found: Tensor, expected: Tensor) -> float:
    """Greatest difference over greatest magnitude."""
    return float((found.double() - expected).abs().max() / expected.abs().max())


def rms(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference."""
    return float((found.double() - expected.double()).square().mean().sqrt())
