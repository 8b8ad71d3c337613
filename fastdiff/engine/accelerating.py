"""From a UNet to its plan, or why there is none."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fastdiff.engine.unet import AcceleratedUNet, hooked
from fastdiff.models import UNet, blocks, embeddings
from fastdiff.ops import _library

_PARTS = {
    UNet, blocks.Attention, blocks.Conv3x3, blocks.DownLevel, blocks.Downsample, blocks.MiddleLevel,
    blocks.Norm, blocks.ResidualBlock, blocks.UpLevel, blocks.Upsample, embeddings.EmbeddingMLP,
    embeddings.FourierTime, embeddings.SinusoidalTime, nn.Conv2d, nn.Dropout, nn.Embedding,
    nn.Identity, nn.Linear, nn.ModuleList,
}  # fmt: skip
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_plans: WeakKeyDictionary[UNet, tuple[Any, AcceleratedUNet]] = WeakKeyDictionary()


def accelerate(unet: UNet, *, tf32: bool = False, timestep_scale: float = 1.0) -> AcceleratedUNet:
    """Plan a UNet for fast inference on the CPU or an NVIDIA GPU.

    Weights are packed as they are now; the UNet itself is left as it was, and may change or go
    without the plan noticing. Dropout is off, whatever the UNet's mode. The result is called as the
    UNet is and answers within its rounding: on the CPU float32 by Winograd's convolutions, which
    take 2.25 times fewer products, and attention of one head folded (`ops.fold_single_head`),
    bfloat16 by products on Intel's AMX, else by oneDNN's where the processor multiplies it; on a
    GPU by cuDNN's, with biases and sums in the passes that follow.
    Asked for a gradient or within a transform of `torch.func` it raises RuntimeError.

    Args:
        unet: float32, bfloat16 or float16, on the CPU or a GPU.
        tf32: whether a GPU multiplies float32 with 10 bits of mantissa; PyTorch's own default is
            that for convolutions.
        timestep_scale: the UNet is told t times it, as one trained with rescaled timesteps wants.

    Raises:
        TypeError: what is given is no UNet of fastdiff, or has a part of another's making.
        ValueError: it is on another device, or in another dtype.
    """
    if not isinstance(unet, UNet):
        raise TypeError(f"got a {type(unet).__name__}; give a fastdiff.UNet.")
    if (part := _unknown_part(unet)) is not None:
        raise TypeError(f"{part} is no part of a fastdiff.UNet as it is built; call it as it is.")
    if (reason := _obstacle(unet)) is not None:
        raise ValueError(f"{reason}; call the UNet as it is.")
    return AcceleratedUNet(unet, tf32=tf32, timestep_scale=timestep_scale)


def planned(model: Any, *, tf32: bool = False, timestep_scale: float = 1.0) -> Any:
    """The model, or where it is a UNet that `accelerate` takes, its plan, kept while it is valid.

    A plan is valid until a parameter changes, which a sum of all their bits tells. Hooks, training
    mode, autocast, `use_reference` and `torch.func` keep the UNet as it is.
    """
    if type(model) is not UNet or model.training or torch.is_autocast_enabled(model.device.type):
        return model
    if _library.reference_asked() or _library.transformed() or hooked(model):
        return model
    if _obstacle(model) or _unknown_part(model):
        return model
    state = tf32, timestep_scale, _state(model)
    kept = _plans.get(model)
    if kept is None or kept[0] != state:
        plan = AcceleratedUNet(model, tf32=tf32, timestep_scale=timestep_scale)
        kept = _plans[model] = state, plan
    return kept[1]


def _obstacle(unet: UNet) -> str | None:
    parameters = [*unet.parameters()]
    if len(devices := {p.device for p in parameters}) > 1:
        return f"the UNet is on {' and '.join(sorted(map(str, devices)))}, a plan on one device"
    if (device := devices.pop()).type not in ("cpu", "cuda"):
        return f"the UNet is on {device}, and plans are for the CPU and NVIDIA GPUs"
    if dtype := next((p.dtype for p in parameters if p.dtype not in _DTYPES), None):
        return f"the UNet is {dtype}, and plans are for float32, bfloat16 and float16"
    if len({p.dtype for p in parameters}) > 1:
        return "the UNet's parameters are of several dtypes"
    return None


def _unknown_part(unet: UNet) -> str | None:
    for name, module in unet.named_modules():
        if type(module) not in _PARTS or "forward" in vars(module):
            return f"{name} ({type(module).__name__})"
    return None


def _state(unet: UNet) -> tuple[list[int], list[int]]:
    """What differs once a parameter has been replaced or written to, by whatever way."""
    parameters = [p.detach() for p in unet.parameters()]
    sums = torch.stack([_bits(p).sum() for p in parameters])  # one wait for a GPU
    return [p.data_ptr() for p in parameters], sums.tolist()


def _bits(parameter: Tensor) -> Tensor:
    """Its memory as integers, of 8 bytes if they divide it: their sum takes a tenth of others'."""
    channels_last = parameter.dim() > 1 and not parameter.is_contiguous()
    flat = (parameter.movedim(1, -1) if channels_last else parameter).reshape(-1).contiguous()
    fits = flat.nbytes % 8 == 0 and flat.storage_offset() * flat.itemsize % 8 == 0
    return flat.view(torch.int64 if fits else {4: torch.int32, 2: torch.int16}[flat.itemsize])
