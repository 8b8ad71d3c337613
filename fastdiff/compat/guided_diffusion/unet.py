"""guided_diffusion.unet: its models by its state dicts' keys, fastdiff's networks inside."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff.checkpoints.guided_diffusion import GROUPS, from_dialect, to_dialect
from fastdiff.compat.guided_diffusion.nn import checkpoint
from fastdiff.models.classifier import NoisyClassifier
from fastdiff.models.unet import UNet

__all__ = ["EncoderUNetModel", "SuperResModel", "UNetModel"]


class _Dialect(nn.Module):
    """A network whose state dict goes by guided-diffusion's names and shapes."""

    def __init__(self, network: UNet | NoisyClassifier, use_new_attention_order: bool) -> None:
        super().__init__()
        self.network = network
        self.use_new_attention_order = use_new_attention_order
        self.dtype = torch.float32
        self.register_state_dict_post_hook(_Dialect._renamed)  # type: ignore[no-untyped-call]
        hook = _Dialect._named_as_ours
        self.register_load_state_dict_pre_hook(hook)  # type: ignore[no-untyped-call]

    def convert_to_fp16(self) -> None:
        """Weights to float16; input and output stay what they are."""
        self.network.half()
        self.dtype = torch.float16

    def convert_to_fp32(self) -> None:
        """Weights back to float32."""
        self.network.float()
        self.dtype = torch.float32

    def _renamed(self, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        inside = f"{prefix}network."
        ours = {n.removeprefix(inside): state.pop(n) for n in [*state] if n.startswith(inside)}
        theirs = to_dialect(ours, self.network.config, self.use_new_attention_order)
        state.update({prefix + name: tensor for name, tensor in theirs.items()})

    def _named_as_ours(self, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        ours = self.network.state_dict()
        expected = to_dialect(ours, self.network.config, self.use_new_attention_order)
        given = {name: state.get(prefix + name) for name in expected}
        missing = [name for name, tensor in given.items() if tensor is None]
        misshapen = [
            name
            for name, tensor in given.items()
            if tensor is not None and tensor.shape != expected[name].shape
        ]
        if missing or misshapen:
            raise RuntimeError(
                f"the state dict does not fit this {type(self).__name__}: "
                f"missing {', '.join(missing[:3]) or 'nothing'}; "
                f"of another shape {', '.join(misshapen[:3]) or 'nothing'}."
            )
        converted = from_dialect(
            {name: state.pop(prefix + name) for name in expected},
            self.network,
            self.use_new_attention_order,
        )
        state.update({f"{prefix}network.{name}": tensor for name, tensor in converted.items()})


class UNetModel(_Dialect):
    """ADM's UNet (Dhariwal and Nichol 2021), a fastdiff.models.UNet inside; its own arguments.

    Raises ValueError for what that UNet is not: dims other than 2, conv_resample False, other heads
    on the way up than down.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Collection[int],
        dropout: float = 0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
    ) -> None:
        _refuse(conv_resample, dims, num_heads, num_head_channels, num_heads_upsample)
        config = _config(
            image_size, in_channels, model_channels, out_channels, num_res_blocks,
            attention_resolutions, dropout, channel_mult, num_heads, num_head_channels,
            use_scale_shift_norm, resblock_updown,
        )  # fmt: skip
        super().__init__(UNet(**config, num_class_embeds=num_classes), use_new_attention_order)
        self.image_size = image_size
        self.in_channels = in_channels
        self.model_channels = model_channels
        self.out_channels = out_channels
        self.num_classes = num_classes
        self.use_checkpoint = use_checkpoint
        if use_fp16:
            self.dtype = torch.float16

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """x [N, in_channels, H, W], timesteps [N], y [N] labels -> [N, out_channels, H, W]."""
        flag = self.use_checkpoint and torch.is_grad_enabled()
        out: Tensor = checkpoint(self.network, (x, timesteps, y), self.parameters(), flag)
        return out.to(x.dtype)


class SuperResModel(UNetModel):
    """A UNetModel that is shown a smaller image beside x."""

    def __init__(self, image_size: int, in_channels: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(image_size, in_channels * 2, *args, **kwargs)

    def forward(  # type: ignore[override]
        self, x: Tensor, timesteps: Tensor, low_res: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """low_res [N, C, h, w] is enlarged to x's size, linearly."""
        if low_res is None:
            raise ValueError("a super-resolution model needs low_res, the smaller images.")
        enlarged = F.interpolate(low_res, x.shape[2:], mode="bilinear")
        return super().forward(torch.cat([x, enlarged], 1), timesteps, **kwargs)


class EncoderUNetModel(_Dialect):
    """The classifier of noisy images: the way down of a UNet, and a head that pools it.

    Its own arguments; a fastdiff.models.classifier.NoisyClassifier inside.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Collection[int],
        dropout: float = 0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        pool: str = "adaptive",
    ) -> None:
        _refuse(conv_resample, dims, num_heads, num_head_channels, num_heads_upsample)
        config = _config(
            image_size, in_channels, model_channels, out_channels, num_res_blocks,
            attention_resolutions, dropout, channel_mult, num_heads, num_head_channels,
            use_scale_shift_norm, resblock_updown,
        )  # fmt: skip
        super().__init__(NoisyClassifier(pool=pool, **config), use_new_attention_order)
        self.image_size = image_size
        self.in_channels = in_channels
        self.model_channels = model_channels
        self.out_channels = out_channels
        self.use_checkpoint = use_checkpoint
        self.pool = pool
        if use_fp16:
            self.dtype = torch.float16

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """x [N, in_channels, H, W], timesteps [N] -> logits [N, out_channels]."""
        flag = self.use_checkpoint and torch.is_grad_enabled()
        out: Tensor = checkpoint(self.network, (x, timesteps), self.parameters(), flag)
        return out.to(x.dtype)


def _refuse(
    conv_resample: bool,
    dims: int,
    num_heads: int,
    num_head_channels: int,
    num_heads_upsample: int,
) -> None:
    if dims != 2:
        raise ValueError(f"fastdiff's networks have 2 dimensions, not {dims}.")
    if not conv_resample:
        raise ValueError("fastdiff's UNet resamples by convolutions: conv_resample must be True.")
    if num_head_channels == -1 and num_heads_upsample not in (-1, num_heads):
        raise ValueError(
            f"fastdiff's UNet has as many heads on the way up as down: num_heads_upsample is "
            f"{num_heads_upsample}, num_heads {num_heads}."
        )


def _config(
    image_size: int,
    in_channels: int,
    model_channels: int,
    out_channels: int,
    num_res_blocks: int,
    attention_resolutions: Collection[int],
    dropout: float,
    channel_mult: Sequence[float],
    num_heads: int,
    num_head_channels: int,
    use_scale_shift_norm: bool,
    resblock_updown: bool,
) -> dict[str, Any]:
    """The keys of UNetConfig."""
    widths = tuple(int(m * model_channels) for m in channel_mult)
    attends = [2**level in attention_resolutions for level in range(len(widths))]
    down, up = ("ResnetDownsample", "ResnetUpsample") if resblock_updown else ("Down", "Up")
    kind, same = "resnet" if resblock_updown else "conv", widths[0] == model_channels
    heads = {"attention_head_dim": None if num_head_channels == -1 else num_head_channels}
    return {
        **heads,
        "num_attention_heads": num_heads if num_head_channels == -1 and num_heads > 1 else None,
        "sample_size": image_size,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "block_out_channels": widths,
        "down_block_types": tuple("AttnDownBlock2D" if a else f"{down}Block2D" for a in attends),
        "up_block_types": tuple("AttnUpBlock2D" if a else f"{up}Block2D" for a in attends[::-1]),
        "layers_per_block": num_res_blocks,
        "dropout": float(dropout),
        "downsample_type": kind,
        "upsample_type": kind,
        "resnet_time_scale_shift": "scale_shift" if use_scale_shift_norm else "default",
        "norm_num_groups": GROUPS,
        "attn_norm_num_groups": GROUPS,
        "time_embedding_dim": None if same else 4 * model_channels,
        "time_feature_channels": None if same else model_channels,
    }
