"""The PyTorch conversion of Ho's DDPM UNet, restated in the plainest form, by its key names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


def swish(x):
    return x * torch.sigmoid(x)


def norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class Holder(nn.Module):
    """A name for what is below it."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class Block(nn.Module):
    def __init__(self, channels, out, temb):
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.temb_proj = nn.Linear(temb, out)
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        if channels != out:
            self.nin_shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x, temb):
        h = self.conv1(swish(self.norm1(x))) + self.temb_proj(swish(temb))[..., None, None]
        h = self.conv2(swish(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = norm(channels)
        for name in ("q", "k", "v", "proj_out"):
            setattr(self, name, nn.Conv2d(channels, channels, 1))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        weights = (torch.einsum("ncs,nct->nst", q, k) / math.sqrt(x.shape[1])).softmax(2)
        return x + self.proj_out(torch.einsum("nct,nst->ncs", v, weights).view_as(x))


class Model(nn.Module):
    def __init__(self, ch=32, ch_mult=(1, 2), num_res_blocks=1, attends=(1,), image_channels=3):
        super().__init__()
        self.ch, temb = ch, 4 * ch
        widths = [ch * m for m in ch_mult]
        self.temb = Holder(dense=nn.ModuleList([nn.Linear(ch, temb), nn.Linear(temb, temb)]))
        self.conv_in = nn.Conv2d(image_channels, ch, 3, padding=1)

        def level(i, inputs):
            blocks = [Block(c, widths[i], temb) for c in inputs]
            attention = [Attention(widths[i]) for _ in blocks if i in attends]
            return Holder(block=nn.ModuleList(blocks), attn=nn.ModuleList(attention))

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        last = len(widths) - 1
        entries = [ch, *widths]
        for i, width in enumerate(widths):
            self.down.append(level(i, [entries[i]] + [width] * (num_res_blocks - 1)))
            arriving = [widths[min(i + 1, last)]] + [width] * num_res_blocks
            skips = [width] * num_res_blocks + [entries[i]]
            self.up.append(level(i, [a + s for a, s in zip(arriving, skips, strict=True)]))
            if i < last:
                self.down[i].downsample = Holder(conv=nn.Conv2d(width, width, 3, stride=2))
            if i > 0:
                self.up[i].upsample = Holder(conv=nn.Conv2d(width, width, 3, padding=1))
        bottom = widths[-1]
        self.mid = Holder(
            block_1=Block(bottom, bottom, temb),
            attn_1=Attention(bottom),
            block_2=Block(bottom, bottom, temb),
        )
        self.norm_out = norm(ch)
        self.conv_out = nn.Conv2d(ch, image_channels, 3, padding=1)

    def forward(self, x, t):
        half = self.ch // 2
        waves = t.float()[:, None] * torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
        first, second = self.temb.dense
        features = torch.cat([waves.sin(), waves.cos()], 1).to(x.dtype)
        temb = second(swish(first(features)))
        skips = [self.conv_in(x)]
        for level in self.down:
            for i, block in enumerate(level.block):
                h = block(skips[-1], temb)
                skips.append(level.attn[i](h) if len(level.attn) else h)
            if hasattr(level, "downsample"):
                skips.append(level.downsample.conv(F.pad(skips[-1], (0, 1, 0, 1))))
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(skips[-1], temb)), temb)
        for level in reversed(self.up):
            for i, block in enumerate(level.block):
                h = block(torch.cat([h, skips.pop()], 1), temb)
                h = level.attn[i](h) if len(level.attn) else h
            if hasattr(level, "upsample"):
                h = level.upsample.conv(F.interpolate(h, scale_factor=2.0))
        return self.conv_out(swish(self.norm_out(h)))
