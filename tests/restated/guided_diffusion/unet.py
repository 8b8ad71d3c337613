"""guided-diffusion's UNetModel in the plainest PyTorch, by its documented key names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


def angles(t, channels):
    """Cosines first, then sines, of t at frequencies 10000^(-i / half)."""
    half = channels // 2
    waves = t.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
    return torch.cat([waves.cos(), waves.sin()], 1)


class Rescale(nn.Module):
    """Upsample or Downsample; the layer is `conv` in the one and `op` in the other."""

    def __init__(self, channels, up):
        super().__init__()
        self.up = up
        layer = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=1)
        setattr(self, "conv" if up else "op", layer)

    def forward(self, x):
        return self.conv(twice(x)) if self.up else self.op(x)


def twice(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


class ResBlock(nn.Module):
    def __init__(self, channels, out, emb, scale_shift, resample=None):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * out if scale_shift else out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(out, out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x, emb):
        norm, act, conv = self.in_layers
        change = {None: lambda y: y, "up": twice, "down": lambda y: F.avg_pool2d(y, 2)}
        h = conv(change[self.resample](act(norm(x))))
        x = change[self.resample](x)
        told = self.emb_layers(emb)[:, :, None, None]
        norm, act, _, conv = self.out_layers
        if self.scale_shift:
            scale, shift = told.chunk(2, 1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + told)
        return self.skip_connection(x) + conv(act(h))


class AttentionBlock(nn.Module):
    def __init__(self, channels, heads, head_channels, new_order):
        super().__init__()
        self.heads = heads if head_channels == -1 else channels // head_channels
        self.new_order = new_order
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x):
        n, c, *size = x.shape
        flat, ch = x.reshape(n, c, -1), c // self.heads
        qkv = self.qkv(self.norm(flat))
        # Channels are q k v by turns in every head, or all heads' q before all heads' k.
        if self.new_order:
            q, k, v = qkv.reshape(n, 3, self.heads, ch, -1).unbind(1)
        else:
            q, k, v = qkv.reshape(n, self.heads, 3, ch, -1).unbind(2)
        weights = (q.transpose(2, 3) @ k / math.sqrt(ch)).softmax(-1)
        mixed = (v @ weights.transpose(2, 3)).reshape(n, c, -1)
        return (flat + self.proj_out(mixed)).reshape(n, c, *size)


class Blocks(nn.Sequential):
    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class UNetModel(nn.Module):
    def __init__(
        self, in_channels=3, model_channels=32, out_channels=3, num_res_blocks=1,
        attention_resolutions=(2,), channel_mult=(1, 2), num_classes=None, num_heads=1,
        num_head_channels=-1, use_scale_shift_norm=False, resblock_updown=False,
        use_new_attention_order=False,
    ):  # fmt: skip
        super().__init__()
        self.model_channels, emb = model_channels, 4 * model_channels
        heads = (num_heads, num_head_channels, use_new_attention_order)

        def res(channels, out, resample=None):
            return ResBlock(channels, out, emb, use_scale_shift_norm, resample)

        def blocks(channels, out, ds):
            attention = [AttentionBlock(out, *heads)] if ds in attention_resolutions else []
            return [res(channels, out), *attention]

        def rescale(channels, way):
            return (
                res(channels, channels, way) if resblock_updown else Rescale(channels, way == "up")
            )

        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb), nn.SiLU(), nn.Linear(emb, emb)
        )
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, emb)
        widths = [int(m * model_channels) for m in channel_mult]
        ch, skips = widths[0], [widths[0]]
        self.input_blocks = nn.ModuleList([Blocks(nn.Conv2d(in_channels, ch, 3, padding=1))])
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                self.input_blocks.append(Blocks(*blocks(ch, width, 2**level)))
                ch = width
                skips.append(ch)
            if level < len(widths) - 1:
                self.input_blocks.append(Blocks(rescale(ch, "down")))
                skips.append(ch)
        self.middle_block = Blocks(res(ch, ch), AttentionBlock(ch, *heads), res(ch, ch))
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for i in range(num_res_blocks + 1):
                layers = blocks(ch + skips.pop(), widths[level], 2**level)
                ch = widths[level]
                if level and i == num_res_blocks:
                    layers.append(rescale(ch, "up"))
                self.output_blocks.append(Blocks(*layers))
        self.out = nn.Sequential(
            nn.GroupNorm(32, ch), nn.SiLU(), nn.Conv2d(ch, out_channels, 3, padding=1)
        )

    def forward(self, x, timesteps, y=None):
        dtype = self.time_embed[0].weight.dtype
        emb = self.time_embed(angles(timesteps, self.model_channels).to(dtype))
        if y is not None:
            emb = emb + self.label_emb(y)
        x, skips = x.to(dtype), []
        for block in self.input_blocks:
            x = block(x, emb) if len(skips) else block[0](x)
            skips.append(x)
        x = self.middle_block(x, emb)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], 1), emb)
        return self.out(x)
