"""Tensor names and shapes from one dialect to another."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from fastdiff.checkpoints._reading import CheckpointError
from fastdiff.models.unet import UNet


def translations(
    ours: Iterable[str], modules: Mapping[str, str], parts: Mapping[str, str]
) -> dict[str, str]:
    """Our tensor names to another dialect's.

    `modules` renames blocks and single layers by their whole path, `parts` the layers in a block.
    """
    names = {}
    for name in ours:
        path = next(path for path in _paths(name) if path in modules)
        part, _, leaf = name[len(path) + 1 :].rpartition(".")
        names[name] = ".".join(filter(None, (modules[path], parts.get(part, part), leaf)))
    return names


def check_fit(what: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """CheckpointError, beginning with `what`, unless names and shapes agree."""
    wanted = {name: list(tensor.shape) for name, tensor in expected.items()}
    given = {name: list(tensor.shape) for name, tensor in found.items()}
    differing = [name for name in (wanted | given) if wanted.get(name) != given.get(name)]
    if differing:
        shown = "; ".join(
            f"{name} is {given.get(name, 'missing')}, expected {wanted.get(name, 'nothing')}"
            for name in differing[:3]
        )
        raise CheckpointError(f"{what}, {len(differing)} tensors differ: {shown}.")


def unbuilt(config: Mapping[str, object], what: str) -> UNet:
    """A UNet without storage; CheckpointError, beginning with `what`, if it cannot be built."""
    try:
        with torch.device("meta"):
            return UNet(**config)
    except ValueError as error:
        raise CheckpointError(f"{what} describes no UNet of fastdiff's: {error}") from None


def filled(unet: UNet, weights: Mapping[str, Tensor], dtype: torch.dtype) -> UNet:
    """The UNet with copies of `weights`, which fit it, in eval mode."""
    copies = {name: tensor.to(dtype, copy=True) for name, tensor in weights.items()}
    unet.load_state_dict(copies, assign=True)
    return unet.eval()


def size(weights: Mapping[str, Tensor], name: str, axis: int, what: str) -> int:
    """One size of one tensor, or CheckpointError, beginning with `what`, that names the tensor."""
    if name not in weights:
        raise CheckpointError(f"{what}: {name} is missing.")
    shape = list(weights[name].shape)
    if axis >= len(shape):
        raise CheckpointError(f"{what}: {name} has the shape {shape}.")
    return shape[axis]


def count(names: Collection[str], prefix: str) -> int:
    """How many blocks are named `prefix`0, `prefix`1 and so on."""
    numbers = [n.removeprefix(prefix).split(".")[0] for n in names if n.startswith(prefix)]
    return max((int(n) for n in numbers if n.isdecimal()), default=-1) + 1


def _paths(name: str) -> Iterable[str]:
    """The dotted paths that `name` begins with, the longest first."""
    while name:
        name = name.rpartition(".")[0]
        yield name
