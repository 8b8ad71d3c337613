"""State dicts of OpenAI's improved-diffusion and guided-diffusion (Dhariwal and Nichol 2021)."""

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
from fastdiff.checkpoints._reading import CheckpointError
from fastdiff.models.classifier import NoisyClassifier
from fastdiff.models.config import UNetConfig
from fastdiff.models.unet import UNet
from fastdiff.schedules import NoiseSchedule

GROUPS = 32
SCHEDULES = ("linear", "cosine")
_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "group_norm": "norm",
    "to_out.0": "proj_out",
}
_QKV = ("to_q", "to_k", "to_v")


def recognised(names: Collection[str]) -> bool:
    """Whether tensor names are of this dialect."""
    return "time_embed.0.weight" in names and any(n.startswith("input_blocks.0.") for n in names)


def load_unet(
    weights: Mapping[str, Tensor],
    *,
    source: str = "the state dict",
    num_heads: int | None = None,
    num_head_channels: int | None = None,
    use_new_attention_order: bool = False,
    image_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> UNet:
    """The UNet of a guided-diffusion state dict, in eval mode.

    Args:
        weights: tensors by their names there.
        source: what to call them in an error.
        num_heads, num_head_channels: one of the two, as the model was made with: the weights do
            not tell it.
        use_new_attention_order: as the model was made with; it has no part in shapes either, and
            is False in all published models.
        image_size: goes into the config as sample_size.

    Raises CheckpointError for weights that are no UNet of this dialect, naming what is missing or
    unknown, and where the heads are not told.
    """
    what = f"{source} is no guided-diffusion UNet that fastdiff knows"
    if not any(name.startswith("output_blocks.") for name in weights):
        raise CheckpointError(
            f"{source} is a guided-diffusion classifier, which makes no images; load it into "
            "fastdiff.compat.guided_diffusion.unet.EncoderUNetModel."
        )
    config = _config(weights, what) | {"sample_size": image_size}
    heads = _head_config(config, num_heads, num_head_channels, source)
    unet = unbuilt(config | heads, source)
    check_fit(what, to_dialect(unet.state_dict(), unet.config, use_new_attention_order), weights)
    ours = from_dialect(weights, unet, use_new_attention_order)
    return filled(unet, ours, dtype)


def state_dict_of(unet: UNet, *, use_new_attention_order: bool = False) -> dict[str, Tensor]:
    """The UNet's weights by the names and in the shapes of guided-diffusion's UNetModel.

    Raises CheckpointError, with the reason, for a UNet that UNetModel cannot be.
    """
    check_expressible(unet.config)
    return to_dialect(unet.state_dict(), unet.config, use_new_attention_order)


def check_expressible(config: UNetConfig) -> None:
    """CheckpointError, naming the key, for a config that guided-diffusion's UNetModel cannot be."""
    attends = [block.startswith("Attn") for block in config.down_block_types]
    resamples = {_big_gan(config, name) for name in _resampling_blocks(config)}
    plain = config.resnet_time_scale_shift == "default"
    middle = config.attn_norm_num_groups or (config.norm_num_groups if plain else None)
    for fits, key, needs in (
        (config.time_embedding_type == "positional", "time_embedding_type", "'positional'"),
        (config.flip_sin_to_cos, "flip_sin_to_cos", "True"),
        (config.freq_shift == 0, "freq_shift", "0"),
        (config.norm_eps == 1e-5, "norm_eps", "1e-05"),
        (config.norm_num_groups == GROUPS, "norm_num_groups", f"{GROUPS}"),
        (middle == GROUPS, "attn_norm_num_groups", f"{GROUPS}"),
        (config.time_embed_dim == 4 * config.time_channels, "time_embedding_dim",
         f"{4 * config.time_channels}"),
        (not config.center_input_sample, "center_input_sample", "False"),
        (config.mid_block_type is not None, "mid_block_type", "'UNetMidBlock2D'"),
        (config.add_attention, "add_attention", "True"),
        (config.mid_block_scale_factor == 1, "mid_block_scale_factor", "1"),
        (config.residual_scale == 1, "residual_scale", "1"),
        (config.class_embed_type is None, "class_embed_type", "None"),
        (attends == [b.startswith("Attn") for b in config.up_block_types[::-1]], "up_block_types",
         "attention where down_block_types has it"),
        (len(resamples) < 2, "up_block_types", "one way of resampling throughout"),
        (resamples != {False} or config.downsample_padding == 1, "downsample_padding", "1"),
    ):  # fmt: skip
        if not fits:
            raise CheckpointError(
                f"guided-diffusion cannot hold this UNet: its {key} is {getattr(config, key)!r}, "
                f"there it is {needs}."
            )


def flags_of(unet: UNet, *, use_new_attention_order: bool = False) -> dict[str, Any]:
    """What guided-diffusion's create_model must be told to build this UNet."""
    config = unet.config
    base, size = config.time_channels, config.sample_size
    multipliers = [width / base for width in config.block_out_channels]
    attends = [block.startswith("Attn") for block in config.down_block_types]
    edge = size if isinstance(size, int) else None
    heads: dict[str, Any] = {"num_head_channels": config.attention_head_dim}
    if config.num_attention_heads or config.attention_head_dim is None:
        heads = {"num_heads": config.num_attention_heads or 1}
    return {
        "image_size": edge,
        "num_channels": base,
        "num_res_blocks": config.layers_per_block,
        "channel_mult": ",".join(f"{m:g}" for m in multipliers),
        "attention_resolutions": ",".join(
            str(edge // 2**level) for level, a in enumerate(attends) if a and edge
        ),
        **heads,
        "learn_sigma": config.out_channels == 2 * config.in_channels,
        "class_cond": config.num_class_embeds is not None,
        "use_scale_shift_norm": config.resnet_time_scale_shift == "scale_shift",
        "resblock_updown": any(_big_gan(config, name) for name in _resampling_blocks(config)),
        "use_new_attention_order": use_new_attention_order,
    }


def schedule_of(name: str, steps: int) -> NoiseSchedule:
    """guided-diffusion's named schedules; its linear one ends at 20 / steps (Nichol and Dhariwal
    2021 compare schedules of any length)."""
    if name == "cosine":
        return NoiseSchedule.cosine(steps)
    if name != "linear":
        raise ValueError(f"unknown noise schedule {name!r}: choose one of {', '.join(SCHEDULES)}.")
    scale = 1000 / steps
    return NoiseSchedule.linear(steps, scale * 0.0001, scale * 0.02)


def from_dialect(
    weights: Mapping[str, Tensor],
    network: UNet | NoisyClassifier,
    use_new_attention_order: bool = False,
) -> dict[str, Tensor]:
    """Weights that fit the network, under our names."""
    ours = {}
    for name, theirs in _names(network.config, network.state_dict()).items():
        stem, part, leaf = _split(theirs)
        if part in _QKV:
            qkv = weights[f"{stem}.qkv.{leaf}"]
            heads = network.config.heads(len(qkv) // 3)
            ours[name] = _unpacked(qkv, heads, use_new_attention_order)[_QKV.index(part)]
        else:
            tensor = weights[theirs]
            ours[name] = tensor.flatten(1) if part == "proj_out" and leaf == "weight" else tensor
    return ours


def to_dialect(
    weights: Mapping[str, Tensor], config: UNetConfig, use_new_attention_order: bool
) -> dict[str, Tensor]:
    """The weights of a UNet or NoisyClassifier of `config` under guided-diffusion's names."""
    converted = {}
    for name, theirs in _names(config, weights).items():
        stem, part, leaf = _split(theirs)
        tensor = weights[name]
        if part in _QKV[1:]:
            continue
        if part == "to_q":
            three = [weights[name.replace("to_q", other)] for other in _QKV]
            heads = config.heads(len(tensor))
            theirs, tensor = f"{stem}.qkv.{leaf}", _packed(three, heads, use_new_attention_order)
        if part in ("to_q", "proj_out") and leaf == "weight":
            tensor = tensor[..., None]  # a convolution over the positions
        converted[theirs] = tensor
    return converted


def _packed(three: list[Tensor], heads: int, new_order: bool) -> Tensor:
    by_head = [part.unflatten(0, (heads, -1)) for part in three]
    return torch.stack(by_head, dim=0 if new_order else 1).flatten(0, 2)


def _unpacked(qkv: Tensor, heads: int, new_order: bool) -> tuple[Tensor, ...]:
    """q, k and v of a qkv packed head by head, or q for all heads first in the new order."""
    split = qkv.unflatten(0, (3, heads, -1) if new_order else (heads, 3, -1))
    rows = len(qkv) // 3
    return tuple(
        part.reshape(rows, *qkv.shape[1:2]) for part in split.unbind(0 if new_order else 1)
    )


def _split(name: str) -> tuple[str, str, str]:
    """A tensor's block, its layer there, and weight or bias."""
    path, leaf = name.rsplit(".", 1)
    stem, _, part = path.rpartition(".")
    return stem, part, leaf


def _names(config: UNetConfig, ours: Collection[str]) -> dict[str, str]:
    return translations(ours, dict(_modules(config)), _PARTS)


def _modules(config: UNetConfig) -> Iterator[tuple[str, str]]:
    yield "conv_in", "input_blocks.0.0"
    yield "time_embedding.linear_1", "time_embed.0"
    yield "time_embedding.linear_2", "time_embed.2"
    yield "class_embedding", "label_emb"
    levels, layers, n = len(config.block_out_channels), config.layers_per_block, 1
    for i in range(levels):
        for j in range(layers):
            yield f"down_blocks.{i}.resnets.{j}", f"input_blocks.{n}.0"
            yield f"down_blocks.{i}.attentions.{j}", f"input_blocks.{n}.1"
            n += 1
        yield f"down_blocks.{i}.downsamplers.0", f"input_blocks.{n}.0"
        yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{n}.0.op"
        n += 1
    yield "mid_block.resnets.0", "middle_block.0"
    yield "mid_block.attentions.0", "middle_block.1"
    yield "mid_block.resnets.1", "middle_block.2"
    for i, block in enumerate(config.up_block_types):
        for j in range(layers + 1):
            n = i * (layers + 1) + j
            yield f"up_blocks.{i}.resnets.{j}", f"output_blocks.{n}.0"
            yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{n}.1"
        place = 2 if block.startswith("Attn") else 1
        yield f"up_blocks.{i}.upsamplers.0", f"output_blocks.{n}.{place}"
    yield "conv_norm_out", "out.0"
    yield "conv_out", "out.2"
    yield "head", "out"  # of a classifier


def _config(weights: Mapping[str, Tensor], what: str) -> dict[str, Any]:
    """All that names and shapes tell: everything but heads, image size and dropout."""

    def of(name: str, axis: int) -> int:
        return size(weights, name, axis, what)

    base = of("time_embed.0.weight", 1)
    levels, layers, ups = _levels(weights, what)
    firsts = [1 + i * (layers + 1) for i in range(levels)]
    widths = tuple(of(f"input_blocks.{n}.0.in_layers.2.weight", 0) for n in firsts)
    attends = [f"input_blocks.{n}.1.qkv.weight" in weights for n in firsts]
    big_gan = any(f"{up}.in_layers.0.weight" in weights for up in ups)
    down, up = ("ResnetDownsample", "ResnetUpsample") if big_gan else ("Down", "Up")
    kind = "resnet" if big_gan else "conv"
    modulation = of("input_blocks.1.0.emb_layers.1.weight", 0)
    labels = weights.get("label_emb.weight")
    return {
        "in_channels": of("input_blocks.0.0.weight", 1),
        "out_channels": of("out.2.weight", 0),
        "block_out_channels": widths,
        "down_block_types": tuple("AttnDownBlock2D" if a else f"{down}Block2D" for a in attends),
        "up_block_types": tuple("AttnUpBlock2D" if a else f"{up}Block2D" for a in attends[::-1]),
        "layers_per_block": layers,
        "downsample_type": kind,
        "upsample_type": kind,
        "resnet_time_scale_shift": "scale_shift" if modulation == 2 * widths[0] else "default",
        "norm_num_groups": GROUPS,
        "attn_norm_num_groups": GROUPS,
        "num_class_embeds": None if labels is None else len(labels),
        "time_embedding_dim": None if base == widths[0] else 4 * base,
        "time_feature_channels": None if base == widths[0] else base,
    }


def _levels(weights: Mapping[str, Tensor], what: str) -> tuple[int, int, list[str]]:
    """How many levels, how many blocks on each, and the names of the upsamplers between them."""
    inputs, outputs = (count(weights, f"{part}_blocks.") for part in ("input", "output"))
    ups = sorted(
        {
            name.rsplit(".", 2 if name.endswith("conv.weight") else 3)[0]
            for name in weights
            if name.startswith("output_blocks.")
            and name.split(".")[2] != "0"
            and name.endswith((".conv.weight", ".in_layers.0.weight"))
        }
    )
    levels = len(ups) + 1
    layers = outputs // levels - 1
    present = {name.split(".")[1] for name in weights if name.startswith("input_blocks.")}
    pooled = any(str(n) not in present for n in range(inputs))
    if pooled or outputs % levels or layers < 1 or inputs != levels * (layers + 1):
        raise CheckpointError(
            f"{what}: {inputs} input blocks and {outputs} output blocks with {len(ups)} "
            "upsamplers do not make levels of equal length; a model made with conv_resample=False "
            "is not known."
        )
    return levels, layers, ups


def _head_config(
    config: Mapping[str, Any], num_heads: int | None, num_head_channels: int | None, source: str
) -> dict[str, Any]:
    if (num_heads is None) == (num_head_channels is None):
        raise CheckpointError(
            f"{source} does not tell the heads of its attention: give num_heads or "
            "num_head_channels, one of them, as the model was made with; and "
            "use_new_attention_order=True if it was made with that."
        )
    if num_heads is None:
        return {"attention_head_dim": num_head_channels}
    blocks = zip(config["block_out_channels"], config["down_block_types"], strict=True)
    widths = {width for width, block in blocks if block.startswith("Attn")}
    widths |= {config["block_out_channels"][-1]}  # the middle block always attends
    if num_heads == 1:
        return {"attention_head_dim": None}
    if len(widths) == 1 and max(widths) % num_heads == 0:  # diffusers can say this too
        return {"attention_head_dim": max(widths) // num_heads}
    return {"attention_head_dim": None, "num_attention_heads": num_heads}


def _resampling_blocks(config: UNetConfig) -> list[str]:
    return [*config.down_block_types[:-1], *config.up_block_types[:-1]]


def _big_gan(config: UNetConfig, block: str) -> bool:
    if block.startswith("Attn"):
        kinds = {"AttnDownBlock2D": config.downsample_type, "AttnUpBlock2D": config.upsample_type}
        return kinds[block] == "resnet"
    return block.startswith("Resnet")
