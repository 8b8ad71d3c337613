"""guided_diffusion.nn: small parts of networks and training loops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import checkpoint as torch_checkpoint

from fastdiff.models.embeddings import SinusoidalTime

SiLU = nn.SiLU
Module = TypeVar("Module", bound=nn.Module)


class GroupNorm32(nn.GroupNorm):
    """Group normalisation computed in float32 at least, in the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, ...] -> the same."""
        return super().forward(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)


def conv_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """A convolution of 1, 2 or 3 dimensions."""
    return _of_dimension(dims, (nn.Conv1d, nn.Conv2d, nn.Conv3d))(*args, **kwargs)


def avg_pool_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """An average pooling of 1, 2 or 3 dimensions."""
    return _of_dimension(dims, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d))(*args, **kwargs)


def linear(*args: Any, **kwargs: Any) -> nn.Module:
    """torch.nn.Linear."""
    return nn.Linear(*args, **kwargs)


def normalization(channels: int) -> nn.Module:
    """Group normalisation in 32 groups."""
    return GroupNorm32(32, channels)


@torch.no_grad()
def update_ema(
    target_params: Iterable[Tensor], source_params: Iterable[Tensor], rate: float = 0.99
) -> None:
    """target = rate * target + (1 - rate) * source, in place."""
    for target, source in zip(target_params, source_params, strict=True):
        target.mul_(rate).add_(source, alpha=1 - rate)


def zero_module(module: Module) -> Module:
    """The module with all its parameters 0."""
    return scale_module(module, 0.0)


@torch.no_grad()
def scale_module(module: Module, scale: float) -> Module:
    """The module with its parameters multiplied by scale."""
    for parameter in module.parameters():
        parameter.mul_(scale)
    return module


def mean_flat(tensor: Tensor) -> Tensor:
    """The mean [N] over all but the first axis."""
    return tensor.mean(dim=list(range(1, tensor.ndim)))


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000) -> Tensor:
    """[N, dim] float32: cosines, then sines, of timesteps [N] at geometric frequencies."""
    embedding: Tensor = SinusoidalTime(dim, cos_first=True, freq_shift=0, max_period=max_period)(
        timesteps
    )
    return embedding


def checkpoint(
    func: Callable[..., Any], inputs: Sequence[Any], params: Iterable[Tensor], flag: bool
) -> Any:
    """func(*inputs), its activations computed anew in the backward pass if flag."""
    if not flag:
        return func(*inputs)
    return torch_checkpoint.checkpoint(func, *inputs, use_reentrant=False)


def _of_dimension(dims: int, kinds: tuple[type[nn.Module], ...]) -> type[nn.Module]:
    if dims not in (1, 2, 3):
        raise ValueError(f"unsupported dimensions: {dims}; give 1, 2 or 3.")
    return kinds[dims - 1]
