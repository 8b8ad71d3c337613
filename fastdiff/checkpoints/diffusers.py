"""The folder format of diffusers: a UNet2DModel alone, or a DDPMPipeline that holds one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from fastdiff._files import write_whole
from fastdiff.checkpoints._naming import check_fit, filled, unbuilt
from fastdiff.checkpoints._reading import WEIGHTS, CheckpointError, read_json, read_weights
from fastdiff.checkpoints._scheduler import Process, config_of, process_of
from fastdiff.checkpoints.pretrained import Pretrained
from fastdiff.models.config import OWN_KEYS
from fastdiff.models.unet import UNet

# Our own addition to the folder, which diffusers passes over: a JSON list of names.
CLASS_NAMES = "class_names.json"
NO_CLASS = "_no_class_label"  # ours too, in model_index.json
_MODEL_INDEX: dict[str, Any] = {
    "_class_name": "DDPMPipeline",
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}
_LEGACY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_folder(
    folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32
) -> Pretrained:
    """Load a pipeline folder: UNet, noise schedule and how the output is read.

    Raises CheckpointError for what cannot be read, or does not fit together.
    """
    root = _folder(folder)
    scheduler = _part(root, "scheduler", "scheduler_config.json")
    process = process_of(read_json(scheduler, dict), str(scheduler))
    unet = load_unet(root, dtype=dtype)
    _check_outputs(root, unet, process.variance_type)
    no_class_label = _no_class_label(root, unet.num_classes)
    num_classes = unet.num_classes if no_class_label is None else no_class_label
    return Pretrained(
        unet=unet,
        schedule=process.schedule,
        prediction_type=process.prediction_type,
        variance_type=process.variance_type,
        clip=process.clip,
        class_names=_class_names(root, num_classes),
        no_class_label=no_class_label,
    )


def save(
    folder: str | os.PathLike[str], pretrained: Pretrained, *, dtype: torch.dtype | None = None
) -> None:
    """Write a folder that diffusers' DDPMPipeline loads; weights in `dtype`, or as they are.

    Each file is written whole; model_index.json, which makes it a pipeline, comes last.
    """
    root = Path(folder)
    check_timesteps(pretrained)
    process = Process(
        pretrained.schedule, pretrained.prediction_type, pretrained.variance_type, pretrained.clip
    )
    scheduler = config_of(process)
    (root / "scheduler").mkdir(parents=True, exist_ok=True)
    save_unet(root / "unet", pretrained.unet, dtype=dtype)
    _write_json(root / "scheduler" / "scheduler_config.json", scheduler)
    if pretrained.class_names is not None:
        _write_json(root / CLASS_NAMES, list(pretrained.class_names))
    no_class = pretrained.no_class_label
    own = {} if no_class is None else {NO_CLASS: no_class}
    _write_json(root / "model_index.json", _MODEL_INDEX | own)


def check_expressible(pretrained: Pretrained) -> None:
    """CheckpointError, with the reason, for a model that diffusers' own classes cannot hold."""
    config = pretrained.unet.config
    for key, default in OWN_KEYS.items():
        if getattr(config, key) != default:
            raise CheckpointError(
                f"diffusers cannot hold this UNet: its {key} is {getattr(config, key)!r}, "
                "which UNet2DModel knows nothing of."
            )
    check_timesteps(pretrained)


def check_timesteps(pretrained: Pretrained) -> None:
    """CheckpointError for a model that sees other timesteps than the schedule's own."""
    if pretrained.timestep_scale != 1:
        raise CheckpointError(
            "diffusers' format cannot hold this model: it was trained on timesteps rescaled by "
            f"{pretrained.timestep_scale:g}, for which the format has no word."
        )


def load_unet(folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> UNet:
    """Load the UNet of a UNet's or a pipeline's folder, in eval mode; raises CheckpointError."""
    path = _part(_folder(folder), "unet", "config.json")
    config = read_json(path, dict)
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise CheckpointError(f"{path} describes a {kind}; fastdiff reads UNet2DModel.")
    unet = unbuilt(config, str(path))
    weights = {_current_name(name): tensor for name, tensor in read_weights(path.parent).items()}
    check_fit(
        f"The weights in {path.parent} do not fit its config.json", unet.state_dict(), weights
    )
    return filled(unet, weights, dtype)


def save_unet(
    folder: str | os.PathLike[str], unet: UNet, *, dtype: torch.dtype | None = None
) -> None:
    """Write config.json and the weights, in `dtype` or as they are, each file whole."""
    from safetensors.torch import save_file

    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
        for name, tensor in unet.state_dict().items()
    }
    with write_whole(root / f"{WEIGHTS}.safetensors") as path:
        save_file(weights, path, metadata={"format": "pt"})
    _write_json(root / "config.json", {"_class_name": "UNet2DModel", **unet.config.to_dict()})


def _folder(folder: str | os.PathLike[str]) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder; give one in diffusers' format.")
    return path


def _part(root: Path, part: str, file: str) -> Path:
    # The oldest pipelines (google/ddpm-*) keep every file in the root.
    nested = root / part / file
    return nested if (root / part).is_dir() else root / file


def _current_name(name: str) -> str:
    """Turn the attention names of diffusers before 0.15 into today's."""
    *path, part, leaf = ["", "", *name.split(".")]
    if "attentions" in path:
        part = _LEGACY_ATTENTION.get(part, part)
    return ".".join([*path, part, leaf]).lstrip(".")


def _check_outputs(folder: Path, unet: UNet, variance_type: str) -> None:
    channels = unet.config.in_channels
    expected = 2 * channels if variance_type.startswith("learned") else channels
    if unet.config.out_channels != expected:
        raise CheckpointError(
            f"{folder} pairs variance_type {variance_type!r} with a UNet of "
            f"{unet.config.out_channels} output channels; with {channels} channels in, "
            f"it takes {expected}."
        )


def _class_names(folder: Path, num_classes: int | None) -> tuple[str, ...] | None:
    path = folder / CLASS_NAMES
    if num_classes is None or not path.exists():
        return None
    names = read_json(path, list)
    if len(names) != num_classes or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path} has to name each of the {num_classes} classes; it does not.")
    return tuple(names)


def _no_class_label(folder: Path, labels: int | None) -> int | None:
    path = folder / "model_index.json"
    found = read_json(path, dict).get(NO_CLASS) if path.exists() else None
    if found is not None and (labels is None or found != labels - 1):
        raise CheckpointError(
            f"{path} has {NO_CLASS} {found!r}; it has to be the last of the UNet's "
            f"{labels or 0} labels."
        )
    return found


def _write_json(path: Path, content: dict[str, Any] | list[str]) -> None:
    with write_whole(path) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
