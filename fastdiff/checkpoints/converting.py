"""`fastdiff convert`: a model from one dialect to another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdiff._files import write_whole, write_whole_folder
from fastdiff.checkpoints import diffusers, guided_diffusion
from fastdiff.checkpoints._reading import CheckpointError
from fastdiff.checkpoints.loading import load
from fastdiff.checkpoints.pretrained import Pretrained

DIALECTS = ("diffusers", "guided-diffusion")
_MEANS = {"epsilon": False, "x_start": True}  # guided-diffusion's predict_xstart


def convert(
    source: str | os.PathLike[str] | None,
    target: str | os.PathLike[str],
    to: str,
    *,
    use_new_attention_order: bool = False,
    **told: Any,
) -> dict[str, Any]:
    """Write the model that `source` holds as `target`, whole or not at all.

    Args:
        source: as for fastdiff.load, with what has to be `told` of a file of weights.
        target: a new folder for "diffusers", a .pt file for "guided-diffusion".
        to: "diffusers" or "guided-diffusion".
        use_new_attention_order: of the guided-diffusion side, be it source or target.

    Returns:
        What guided-diffusion's create_model_and_diffusion must be told, which its format leaves
        out; empty for diffusers.

    Raises CheckpointError, with the reason, where the dialect cannot hold the model.
    """
    if to not in DIALECTS:
        raise ValueError(f"unknown dialect {to!r}: choose one of {', '.join(DIALECTS)}.")
    if use_new_attention_order and to == "diffusers":
        told["use_new_attention_order"] = True
    pretrained = load(source, **told)
    if to == "diffusers":
        diffusers.check_expressible(pretrained)
        with write_whole_folder(target) as folder:
            diffusers.save(folder, pretrained)
        return {}
    flags = _process_flags(pretrained)
    weights = guided_diffusion.state_dict_of(
        pretrained.unet, use_new_attention_order=use_new_attention_order
    )
    with write_whole(_file(target)) as path:
        torch.save({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    order = use_new_attention_order
    return guided_diffusion.flags_of(pretrained.unet, use_new_attention_order=order) | flags


def _process_flags(pretrained: Pretrained) -> dict[str, Any]:
    if pretrained.prediction_type not in _MEANS:
        raise CheckpointError(
            f"guided-diffusion cannot hold this model: it predicts {pretrained.prediction_type!r}, "
            f"there models predict {' or '.join(_MEANS)}."
        )
    betas, T = pretrained.schedule.betas, pretrained.schedule.num_timesteps
    for name in guided_diffusion.SCHEDULES:
        if np.allclose(guided_diffusion.schedule_of(name, T).betas, betas, rtol=1e-10, atol=0):
            break
    else:
        raise CheckpointError(
            "guided-diffusion cannot hold this model: its noise schedule is neither of "
            f"{' and '.join(guided_diffusion.SCHEDULES)}, as they are there."
        )
    return {
        "diffusion_steps": T,
        "noise_schedule": name,
        "predict_xstart": _MEANS[pretrained.prediction_type],
        "rescale_timesteps": pretrained.timestep_scale != 1,
    }


def _file(target: str | os.PathLike[str]) -> Path:
    path = Path(target)
    if path.suffix not in (".pt", ".pth"):
        raise ValueError(f"{path}: the name of a guided-diffusion file must end in .pt or .pth.")
    return path
