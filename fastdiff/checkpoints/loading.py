"""`fastdiff.load`: any trained model, from a folder, a file or the Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from fastdiff.checkpoints import ddpm, guided_diffusion
from fastdiff.checkpoints._reading import WEIGHTS, CheckpointError, read_state_dict
from fastdiff.checkpoints.diffusers import load_folder
from fastdiff.checkpoints.pretrained import Pretrained
from fastdiff.schedules import NoiseSchedule

BUNDLED = Path(__file__).parents[1] / "assets" / "mnist"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_HUB_FILES = ("*.json", f"{WEIGHTS}*", f"unet/{WEIGHTS}*", "scheduler/*.json", "unet/*.json")


def load(
    source: str | os.PathLike[str] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    schedule: NoiseSchedule | None = None,
    prediction_type: str | None = None,
    variance_type: str | None = None,
    image_size: int | None = None,
    num_heads: int | None = None,
    num_head_channels: int | None = None,
    use_new_attention_order: bool | None = None,
    rescale_timesteps: bool | None = None,
) -> Pretrained:
    """Load a trained model: the UNet, its schedule and how its output is read.

    A folder in diffusers' format tells all of that. A file of weights, of guided-diffusion,
    improved-diffusion or the PyTorch conversion of Ho's DDPM, is recognised by its tensors' names;
    what it does not tell has to be said, and nothing that matters is guessed.

    Args:
        source: a folder, a file, or the id of a model on the Hugging Face Hub; None is the bundled
            class-conditional model of 28x28 handwritten digits.
        dtype: of the weights.

    For a file alone:
        schedule: that the model was trained on; None for Ho's DDPM is the linear one of 1000.
        prediction_type: None is "epsilon".
        variance_type: None is "learned_range" where the model has twice the output channels, else
            "fixed_large" for guided-diffusion and "fixed_small" for Ho's DDPM.
        image_size: of a side, in pixels; the weights fit any size, sampling needs one.
        num_heads, num_head_channels: one of the two, for guided-diffusion.
        use_new_attention_order: for guided-diffusion; None is False, as there.
        rescale_timesteps: for guided-diffusion with other than 1000 timesteps.

    Raises CheckpointError for what cannot be read, does not fit together, or is not told.
    """
    told: dict[str, Any] = {
        "schedule": schedule,
        "prediction_type": prediction_type,
        "variance_type": variance_type,
        "image_size": image_size,
        "num_heads": num_heads,
        "num_head_channels": num_head_channels,
        "use_new_attention_order": use_new_attention_order,
        "rescale_timesteps": rescale_timesteps,
    }
    told = {name: value for name, value in told.items() if value is not None}
    path = Path(BUNDLED if source is None else source)
    if path.is_file():
        return _load_file(path, dtype, told)
    if told:
        raise CheckpointError(
            f"{path} is no file of weights, for which alone {', '.join(told)} can be told; "
            "a folder's own config tells them."
        )
    if not path.exists() and _HUB_ID.fullmatch(str(source)):
        path = _fetched(str(source))
    return load_folder(path, dtype=dtype)


def _load_file(path: Path, dtype: torch.dtype, told: dict[str, Any]) -> Pretrained:
    weights = read_state_dict(path)
    heads = ("num_heads", "num_head_channels", "use_new_attention_order")
    read: dict[str, Any] = {
        "source": str(path),
        "dtype": dtype,
        "image_size": told.get("image_size"),
    }
    if guided_diffusion.recognised(weights):
        unet = guided_diffusion.load_unet(
            weights, **read, **{name: told[name] for name in heads if name in told}
        )
        schedule, scale = _process(path, told)
        variance_type = "fixed_large"
    elif ddpm.recognised(weights):
        _refuse(path, told, *heads, "rescale_timesteps")
        unet = ddpm.load_unet(weights, **read)
        schedule, scale = told.get("schedule") or NoiseSchedule.linear(1000), 1.0
        variance_type = "fixed_small"
    else:
        raise CheckpointError(_unrecognised(path, list(weights)))
    inputs, outputs = unet.config.in_channels, unet.config.out_channels
    if outputs not in (inputs, 2 * inputs) or (inputs == 6 and outputs == 6):
        raise CheckpointError(
            f"{path} takes {inputs} channels and gives {outputs}, as a super-resolution model "
            "does, which needs an image to start from; use "
            "fastdiff.compat.guided_diffusion.unet.SuperResModel."
        )
    return Pretrained(
        unet=unet,
        schedule=schedule,
        prediction_type=told.get("prediction_type", "epsilon"),
        variance_type=told.get(
            "variance_type", "learned_range" if outputs == 2 * inputs else variance_type
        ),
        timestep_scale=scale,
    )


def _process(path: Path, told: dict[str, Any]) -> tuple[NoiseSchedule, float]:
    """The schedule of a guided-diffusion model, and what its timesteps are multiplied by."""
    schedule: NoiseSchedule | None = told.get("schedule")
    if schedule is None:
        raise CheckpointError(
            f"{path} does not tell its noise schedule: give schedule, such as "
            "NoiseSchedule.linear(1000) or NoiseSchedule.cosine(1000), as the model was trained."
        )
    rescaled, T = told.get("rescale_timesteps"), schedule.num_timesteps
    if rescaled is None and T != 1000:
        raise CheckpointError(
            f"{path} does not tell whether its {T} timesteps were rescaled to 1000: give "
            "rescale_timesteps (improved-diffusion's default is True, guided-diffusion's False)."
        )
    return schedule, 1000 / T if rescaled else 1.0


def _refuse(path: Path, told: dict[str, Any], *names: str) -> None:
    given = [name for name in names if name in told]
    if given:
        raise CheckpointError(
            f"{path} is Ho's DDPM, which knows no {', '.join(given)}; leave that out."
        )


def _unrecognised(path: Path, names: list[str]) -> str:
    if "time_embedding.linear_1.weight" in names:
        return (
            f"{path} holds a diffusers UNet's weights, which its config.json belongs to; "
            "give the folder of both."
        )
    shown = ", ".join(names[:3]) or "nothing"
    return (
        f"{path} is of no dialect that fastdiff knows (diffusers, guided-diffusion, Ho's DDPM): "
        f"it holds {shown}{', ...' if len(names) > 3 else ''}."
    )


def _fetched(name: str) -> Path:
    """The folder of a model from the Hub."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"{name} is no folder or file here; to fetch it from the Hub, install "
            "huggingface_hub: pip install huggingface_hub."
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{name} is no folder or file here, and the Hub did not give it: {reason}"
        ) from None
