"""Parts of diffusers' models that compute by fastdiff's ops what their originals compute.

Each is a subclass that a module turns into by a change of its class: parameters, names, hooks and
state dicts stay, and the class before is the base.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from fastdiff.ops import attention_block, group_norm_silu


class FusedGroupNorm(nn.GroupNorm):
    """GroupNorm in one pass, its statistics in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """x [N, C, ...] -> the same."""
        return _normed(self, input, silu=False)


class FusedGroupNormSiLU(nn.GroupNorm):
    """GroupNorm and the SiLU that follows, which has become Passed."""

    def forward(self, input: Tensor) -> Tensor:
        """x [N, C, ...] -> the same."""
        return _normed(self, input)


class Passed(nn.SiLU):
    """A SiLU that FusedGroupNormSiLU has taken over."""

    def forward(self, input: Tensor) -> Tensor:
        """The input."""
        return input


class FusedResnetBlock2D(ResnetBlock2D):
    """Ho et al.'s residual block: each norm one pass with its SiLU and the time embedding."""

    def forward(self, input_tensor: Tensor, temb: Any, *args: Any, **kwargs: Any) -> Tensor:
        """[N, C, H, W] and temb [N, D], or None -> [N, out_channels, H', W']."""
        if args or kwargs or (temb is None) != (self.time_emb_proj is None):
            return super().forward(input_tensor, temb, *args, **kwargs)
        x, h = input_tensor, _normed(self.norm1, input_tensor)
        resample = self.downsample if self.upsample is None else self.upsample
        if resample is not None:
            x, h = resample(x), resample(h)
        h = _normed(self.norm2, self.conv1(h), **self._time(temb, len(h)))
        h = self.conv2(self.dropout(h))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        h = x + h
        return h if self.output_scale_factor == 1 else h / self.output_scale_factor

    def _time(self, temb: Any, n: int) -> dict[str, Tensor]:
        """What the second norm takes of temb."""
        if temb is None:
            return {}
        projected = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))
        projected = projected.expand(n, -1)
        if self.time_embedding_norm == "default":
            return {"residual": projected}
        scale, shift = projected.chunk(2, dim=1)
        return {"scale": scale, "shift": shift}


class FusedAttention(Attention):
    """Attention among pixels, with its norm and its residual sum one op; the original otherwise."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """[N, C, H, W] -> the same, if neither other states nor a mask are given."""
        alone = encoder_hidden_states is None and attention_mask is None
        autocast = torch.is_autocast_enabled(hidden_states.device.type)  # the op is outside of it
        plain = alone and not autocast and hidden_states.ndim == 4 and not kwargs.keys() - {"temb"}
        if not plain or not attends_plainly(self):
            return super().forward(hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        norm, three = self.group_norm, (self.to_q, self.to_k, self.to_v)
        out: Any = self.to_out[0]
        return attention_block(
            hidden_states,
            norm.weight,
            norm.bias,
            torch.cat([layer.weight for layer in three]),
            None if self.to_q.bias is None else torch.cat([layer.bias for layer in three]),
            out.weight,
            out.bias,
            groups=norm.num_groups,
            group_norm_eps=norm.eps,
            heads=self.heads,
            residual_scale=1 / self.rescale_output_factor,
        )


def attends_plainly(attention: Any) -> bool:
    """Whether it is ops.attention_block: asked at each call, for adapters and processors change."""
    layers = (attention.to_q, attention.to_k, attention.to_v, *(attention.to_out or [None])[:1])
    shapes = {(attention.query_dim, attention.query_dim)}
    return (
        type(attention.processor) is AttnProcessor2_0
        and type(attention.group_norm) in (nn.GroupNorm, FusedGroupNorm)
        and all(type(layer) is nn.Linear for layer in layers)
        and {tuple(layer.weight.shape) for layer in layers} == shapes
        and all(part is None for part in (attention.norm_q, attention.norm_k))
        and attention.spatial_norm is None
        and attention.residual_connection
        and attention.scale_qk
        and not (attention.training and attention.dropout)
    )


def blends_plainly(block: Any) -> bool:
    """Whether a residual block is one of FusedResnetBlock2D's."""
    norms = {type(block.norm1), type(block.norm2)}
    return (
        norms <= {nn.GroupNorm, FusedGroupNorm}
        and type(block.nonlinearity) is nn.SiLU
        and (block.time_emb_proj is None or block.time_embedding_norm in ("default", "scale_shift"))
    )


def _normed(norm: nn.GroupNorm, x: Tensor, **rest: Any) -> Tensor:
    return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps, **rest)
