"""The UNet against ADM (Dhariwal and Nichol 2021), restated here in plain functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.models import UNet

from .unets import distance, randomised


def group_norm32(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Mean and biased variance of each group, written out; epsilon 1e-5."""
    n, c = x.shape[:2]
    groups = x.reshape(n, norm.num_groups, -1)
    centred = groups - groups.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    shape = (1, c, *[1] * (x.ndim - 2))
    return normed.reshape(x.shape) * norm.weight.reshape(shape) + norm.bias.reshape(shape)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def halve(x: Tensor) -> Tensor:
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def double(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def res_block(
    block: nn.Module, x: Tensor, emb: Tensor, resample: Callable[[Tensor], Tensor] = torch.clone
) -> Tensor:
    """ADM's ResBlock with use_scale_shift_norm: emb goes through its own SiLU and linear layer."""
    h = resample(swish(group_norm32(x, block.norm1)))
    x = resample(x)
    h = block.conv1(h)
    scale, shift = block.time_emb_proj(swish(emb))[..., None, None].chunk(2, dim=1)
    h = swish(group_norm32(h, block.norm2) * (1 + scale) + shift)
    skip = x if block.conv_shortcut is None else block.conv_shortcut(x)
    return skip + block.conv2(h)


def attention_block(block: nn.Module, x: Tensor, head_channels: int) -> Tensor:
    """ADM's AttentionBlock with QKVAttentionLegacy: one qkv convolution, packed head by head."""
    n, c, *size = x.shape
    heads = c // head_channels
    packed_weight, packed_bias = (
        torch.cat([
            getattr(getattr(block, name), part).reshape(heads, head_channels, *rest)
            for name in ("to_q", "to_k", "to_v")
        ], dim=1).reshape(3 * c, *rest)
        for part, rest in (("weight", (c,)), ("bias", ()))
    )  # fmt: skip
    flat = x.reshape(n, c, -1)
    qkv = F.conv1d(group_norm32(flat, block.group_norm), packed_weight[..., None], packed_bias)
    q, k, v = qkv.reshape(n * heads, 3 * head_channels, -1).split(head_channels, dim=1)
    scale = 1 / math.sqrt(math.sqrt(head_channels))
    weights = torch.einsum("bct,bcs->bts", q * scale, k * scale).softmax(-1)
    mixed = torch.einsum("bts,bcs->bct", weights, v).reshape(n, c, -1)
    out = F.conv1d(mixed, block.to_out[0].weight[..., None], block.to_out[0].bias)
    return (flat + out).reshape(n, c, *size)


def adm_forward(unet: UNet, x: Tensor, t: Tensor, y: Tensor, head_channels: int) -> Tensor:
    """ADM's UNetModel.forward, its input, middle and output blocks in their order."""

    def level(blocks: nn.Module, i: int, h: Tensor) -> Tensor:
        h = res_block(blocks.resnets[i], h, emb)
        return attention_block(blocks.attentions[i], h, head_channels) if blocks.attentions else h

    half = unet.config.block_out_channels[0] // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angles = t[:, None].float() * frequencies
    emb = torch.cat((angles.cos(), angles.sin()), dim=1).to(x.dtype)
    emb = unet.time_embedding.linear_2(swish(unet.time_embedding.linear_1(emb)))
    emb = emb + unet.class_embedding.weight[y]
    h = unet.conv_in(x)
    kept = [h]
    for blocks in unet.down_blocks:
        for i in range(len(blocks.resnets)):
            h = level(blocks, i, h)
            kept.append(h)
        for sampler in blocks.downsamplers:
            h = res_block(sampler, h, emb, halve)
            kept.append(h)
    h = level(unet.mid_block, 0, h)
    h = res_block(unet.mid_block.resnets[1], h, emb)
    for blocks in unet.up_blocks:
        for i in range(len(blocks.resnets)):
            h = level(blocks, i, torch.cat((h, kept.pop()), dim=1))
        for sampler in blocks.upsamplers:
            h = res_block(sampler, h, emb, double)
    return unet.conv_out(swish(group_norm32(h, unet.conv_norm_out)))


def test_it_is_adm_whole() -> None:
    unet = randomised(
        UNet.adm(16, channels=16, multipliers=(1, 2, 3), blocks=2, attention_resolutions=(8, 4),
                 head_channels=8, num_classes=5, groups=8).double()
    )  # fmt: skip
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    t, y = torch.tensor([0, 999]), torch.tensor([4, 0])
    with torch.no_grad():
        out = unet(x, t, y)
        assert out.shape == (2, 6, 16, 16)
        assert distance(out, adm_forward(unet, x, t, y, head_channels=8)) < 1e-7


def test_each_block_is_adms() -> None:
    unet = randomised(
        UNet.adm(8, channels=16, multipliers=(1, 2), blocks=1, attention_resolutions=(4,),
                 head_channels=8, groups=8).double()
    )  # fmt: skip
    x = torch.randn(3, 16, 8, 8, dtype=torch.float64)
    wide = torch.randn(3, 32, 4, 4, dtype=torch.float64)
    emb = torch.randn(3, 64, dtype=torch.float64)
    down, up = unet.down_blocks[0].downsamplers[0], unet.up_blocks[0].upsamplers[0]
    attention = unet.mid_block.attentions[0]
    with torch.no_grad():
        assert distance(down(x, F.silu(emb)), res_block(down, x, emb, halve)) < 1e-13
        assert distance(up(wide, F.silu(emb)), res_block(up, wide, emb, double)) < 1e-13
        assert distance(attention(wide), attention_block(attention, wide, 8)) < 1e-13


PUBLISHED = [
    (64, (1, 2, 3, 4), {"channels": 192, "blocks": 3}, 296),
    (128, (1, 1, 2, 3, 4), {"channels": 256, "blocks": 2, "heads": 4}, 422),
    (256, (1, 1, 2, 2, 4, 4), {"channels": 256, "blocks": 2}, 554),
]


@pytest.mark.parametrize(("size", "multipliers", "rest", "millions"), PUBLISHED)
def test_published_models_have_their_size(
    size: int, multipliers: tuple[int, ...], rest: dict[str, int], millions: int
) -> None:
    # Dhariwal and Nichol 2021, appendix I, the ImageNet columns of the table of hyperparameters.
    with torch.device("meta"):
        unet = UNet.adm(size, multipliers=multipliers, num_classes=1000, **rest)
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6) == millions


def test_heads_can_be_counted_instead() -> None:
    unet = UNet.adm(16, channels=32, multipliers=(1, 2), attention_resolutions=(16, 8), heads=4)
    assert [level.attentions[0].heads for level in unet.down_blocks] == [4, 4]
