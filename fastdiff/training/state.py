"""All that a training run needs to go on, in one safetensors file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fastdiff._files import write_whole
from fastdiff.training.ema import EMA


def save_state(
    path: Path, step: int, model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer
) -> None:
    """Write the state of ``step`` finished steps, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in ema.weights.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": moment for name, moment in moments.items()}
    with write_whole(path) as unfinished:
        contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, unfinished, metadata={"step": str(step)})


def load_state(path: Path, model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer) -> int:
    """Restore what ``save_state`` wrote; returns the number of finished steps.

    Raises:
        ValueError: when the file is missing, cut short, or of another model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            step = int(file.metadata()["step"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        model.load_state_dict(_under("model", tensors))
        averages = _under("ema", tensors)
        for name, weight in ema.weights.items():
            weight.copy_(averages[name])
        moments = _moments(_under("optimizer", tensors), list(model.parameters()))
    except (OSError, SafetensorError, LookupError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is no state of this run: {error}") from error
    optimizer.load_state_dict(
        {"state": moments, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return step


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}


def _moments(
    tensors: dict[str, Tensor], weights: list[nn.Parameter]
) -> dict[int, dict[str, Tensor]]:
    """Adam's state by parameter, laid out in memory as the parameters are."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, moment = name.split(".")
        if tensor.ndim:
            tensor = torch.empty_like(weights[int(index)]).copy_(tensor)
        moments.setdefault(int(index), {})[moment] = tensor
    return moments
