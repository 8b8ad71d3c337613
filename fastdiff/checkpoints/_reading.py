"""Reading JSON and weights; whatever is wrong with them becomes a CheckpointError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

Kind = TypeVar("Kind", dict, list)  # type: ignore[type-arg]
WEIGHTS = "diffusion_pytorch_model"


class CheckpointError(ValueError):
    """A checkpoint that is missing, malformed, unsafe or at odds with itself."""


def read_json(path: Path, kind: type[Kind]) -> Kind:
    """Return the dict or list that a JSON file holds, whichever `kind` says it should."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; give a folder in diffusers' format.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); fetch it again.") from None
    if not isinstance(content, kind):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a {kind.__name__}; fetch it again."
        )
    return content


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder's weight file, or of the shards that its index lists.

    safetensors come before .bin, and full precision before a variant such as fp16.
    """
    found = _weight_file(folder)
    if found.suffix != ".json":
        return _read_tensors(found)
    weights: dict[str, Tensor] = {}
    for shard in _shards(found):
        weights |= _read_tensors(shard)
    return weights


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file, safetensors or torch.save's, without a common "module."."""
    weights = _read_tensors(path)
    parallel = "module."  # what DataParallel puts before every name
    if not all(name.startswith(parallel) for name in weights):
        return weights
    return {name.removeprefix(parallel): tensor for name, tensor in weights.items()}


def _weight_file(folder: Path) -> Path:
    for suffix in ("safetensors", "bin"):
        for name in (f"{WEIGHTS}.{suffix}", f"{WEIGHTS}.{suffix}.index.json"):
            if (folder / name).is_file():
                return folder / name
        variants = sorted(
            path
            for pattern in (f"{WEIGHTS}.*.{suffix}", f"{WEIGHTS}.{suffix}.index.*.json")
            for path in folder.glob(pattern)
            if "-of-" not in path.name  # a shard, which its index stands for
        )
        if len(variants) > 1:
            names = ", ".join(path.name for path in variants)
            raise CheckpointError(
                f"{folder} holds several variants of its weights ({names}); keep one."
            )
        if variants:
            return variants[0]
    raise CheckpointError(f"{folder} holds no weights: {WEIGHTS}.safetensors or .bin is missing.")


def _shards(index: Path) -> list[Path]:
    names = read_json(index, dict).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor to file; fetch it again.")
    shards = [index.parent / name for name in sorted(set(names.values()))]
    for shard in shards:
        # An index comes from outside: it may not point outside its own folder.
        if shard.parent != index.parent or not shard.is_file():
            raise CheckpointError(f"{index} lists {shard.name}, which is not in its folder.")
    return shards


def _read_tensors(path: Path) -> dict[str, Tensor]:
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}.") from None


def _read_bin(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        raise CheckpointError(
            f"{path} is not a plain state dict: it is damaged, or a pickle that would need to run "
            f"code, which fastdiff refuses; ask its author for safetensors."
        ) from None
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointError(
            f"{path} holds something other than a dict of tensors; save the model's state_dict()."
        )
    return content
