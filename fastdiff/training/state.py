"""All that a training run needs to go on: tensors in safetensors, counts in a small JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastdiff.training.ema import EMA

if TYPE_CHECKING:
    from fastdiff.timestep_samplers import TimestepSampler

TENSORS, COUNTS = "state.safetensors", "state.json"


@dataclass(frozen=True)
class State:
    """What changes from step to step, beside the counts; load puts it back in place."""

    model: nn.Module
    schedule: nn.Module | None  # one that is learned
    averages: Sequence[EMA]
    optimizer: torch.optim.Optimizer
    timesteps: TimestepSampler

    def save(self, folder: Path, counts: Mapping[str, int]) -> None:
        """Write both files into a folder.

        Raises ValueError, before anything is written, where a weight is not finite.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = {name: tensor.cpu().contiguous() for name, tensor in self._tensors().items()}
        _check_finite(tensors)
        try:
            save_file(tensors, folder / TENSORS)
        except SafetensorError as error:  # which keeps an OSError to itself
            raise OSError(str(error)) from error
        (folder / COUNTS).write_text(json.dumps(dict(counts)) + "\n")

    def load(self, folder: Path) -> dict[str, int]:
        """Restore what save wrote, and return the counts.

        Raises:
            ValueError: when a file is missing, cut short, or of another model; nothing has been
                changed then.
        """
        from safetensors import SafetensorError, safe_open

        try:
            counts = {name: int(n) for name, n in json.loads((folder / COUNTS).read_text()).items()}
            with safe_open(folder / TENSORS, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder} is no whole checkpoint: {error}") from error
        self._check_fit(folder, tensors)
        self._restore(tensors)
        return counts

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.schedule is not None:
            learned = self.schedule.state_dict().items()
            tensors |= {f"schedule.{name}": tensor for name, tensor in learned}
        for i, ema in enumerate(self.averages):
            tensors |= {f"ema.{i}.{name}": tensor for name, tensor in ema.weights.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": moment for name, moment in moments.items()}
        for name, array in self.timesteps.state().items():
            tensors[f"timesteps.{name}"] = torch.from_numpy(array.copy())
        return tensors

    def _check_fit(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self._tensors().items():
            found = tensors.get(name)
            if found is None and name.startswith("optimizer."):
                continue
            if found is None or found.shape != tensor.shape:
                told = "is missing" if found is None else f"is {list(found.shape)}"
                raise ValueError(
                    f"{folder} is no checkpoint of this run: {name} {told}, which should be "
                    f"{list(tensor.shape)}"
                )

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(_under("model", tensors))
        if self.schedule is not None:
            self.schedule.load_state_dict(_under("schedule", tensors))
        for i, ema in enumerate(self.averages):
            averages = _under(f"ema.{i}", tensors)
            for name, weight in ema.weights.items():
                weight.copy_(averages[name])
        self.optimizer.load_state_dict(
            {
                "state": _moments(
                    _under("optimizer", tensors), self.optimizer.param_groups[0]["params"]
                ),
                "param_groups": self.optimizer.state_dict()["param_groups"],
            }
        )
        self.timesteps.load_state(
            {name: tensor.numpy() for name, tensor in _under("timesteps", tensors).items()}
        )


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(
                f"{name} is no longer finite, so it is not saved; go on from the last checkpoint "
                "with a smaller learning rate"
            )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}


def _moments(
    tensors: Mapping[str, Tensor], weights: Sequence[nn.Parameter]
) -> dict[int, dict[str, Any]]:
    """AdamW's state by parameter, laid out in memory as the parameters are."""
    moments: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, moment = name.split(".")
        if tensor.ndim:
            tensor = torch.empty_like(weights[int(index)]).copy_(tensor)
        moments.setdefault(int(index), {})[moment] = tensor
    return moments
