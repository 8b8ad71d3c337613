"""State dicts of the PyTorch conversion of Ho's TensorFlow DDPM (Ho et al. 2020).

Names and shapes as in pesser/pytorch_diffusion, which ermongroup/ddim kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fastdiff.checkpoints._naming import (
    check_fit,
    count,
    filled,
    size,
    translations,
    unbuilt,
)
from fastdiff.models.config import UNetConfig
from fastdiff.models.unet import UNet

_PARTS = {
    "time_emb_proj": "temb_proj",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_CONVOLUTIONS = ("q", "k", "v", "proj_out")


def recognised(names: Collection[str]) -> bool:
    """Whether tensor names are of this dialect."""
    return "temb.dense.0.weight" in names


def load_unet(
    weights: Mapping[str, Tensor],
    *,
    source: str = "the state dict",
    image_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> UNet:
    """The UNet of a converted DDPM's state dict, in eval mode; image_size becomes sample_size.

    Raises CheckpointError for weights that are no UNet of this dialect, naming what is missing or
    unknown.
    """
    what = f"{source} is no DDPM UNet that fastdiff knows"
    unet = unbuilt(_config(weights, what) | {"sample_size": image_size}, source)
    names = translations(unet.state_dict(), dict(_modules(unet.config)), _PARTS)
    expected = {theirs: unet.state_dict()[ours][_axes(theirs)] for ours, theirs in names.items()}
    check_fit(what, expected, weights)
    ours = {
        name: weights[theirs].flatten(1) if len(_axes(theirs)) > 1 else weights[theirs]
        for name, theirs in names.items()
    }
    return filled(unet, ours, dtype)


def _axes(theirs: str) -> tuple[Any, ...]:
    """Attention's matrices are 1x1 convolutions there."""
    convolution = theirs.split(".")[-2] in _CONVOLUTIONS and theirs.endswith(".weight")
    return (..., None, None) if convolution else (...,)


def _modules(config: UNetConfig) -> Iterator[tuple[str, str]]:
    levels, layers = len(config.block_out_channels), config.layers_per_block
    yield "conv_in", "conv_in"
    yield "time_embedding.linear_1", "temb.dense.0"
    yield "time_embedding.linear_2", "temb.dense.1"
    for i in range(levels):
        for j in range(layers):
            yield f"down_blocks.{i}.resnets.{j}", f"down.{i}.block.{j}"
            yield f"down_blocks.{i}.attentions.{j}", f"down.{i}.attn.{j}"
        yield f"down_blocks.{i}.downsamplers.0", f"down.{i}.downsample"
        above = levels - 1 - i  # there the levels of the way up count from the top
        for j in range(layers + 1):
            yield f"up_blocks.{i}.resnets.{j}", f"up.{above}.block.{j}"
            yield f"up_blocks.{i}.attentions.{j}", f"up.{above}.attn.{j}"
        yield f"up_blocks.{i}.upsamplers.0", f"up.{above}.upsample"
    yield "mid_block.resnets.0", "mid.block_1"
    yield "mid_block.attentions.0", "mid.attn_1"
    yield "mid_block.resnets.1", "mid.block_2"
    yield "conv_norm_out", "norm_out"
    yield "conv_out", "conv_out"


def _config(weights: Mapping[str, Tensor], what: str) -> dict[str, Any]:
    def of(name: str, axis: int) -> int:
        return size(weights, name, axis, what)

    levels = range(count(weights, "down."))
    attends = [f"down.{i}.attn.0.q.weight" in weights for i in levels]
    return {
        "in_channels": of("conv_in.weight", 1),
        "out_channels": of("conv_out.weight", 0),
        "block_out_channels": tuple(of(f"down.{i}.block.0.conv1.weight", 0) for i in levels),
        "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
        "layers_per_block": count(weights, "down.0.block."),
        "norm_num_groups": 32,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "attention_head_dim": None,
        "time_embedding_dim": of("temb.dense.0.weight", 0),
    }
