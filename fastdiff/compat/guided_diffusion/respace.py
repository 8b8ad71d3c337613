"""guided_diffusion.respace: a process on some of the timesteps of another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.compat.guided_diffusion.gaussian_diffusion import GaussianDiffusion
from fastdiff.schedules import NoiseSchedule, timesteps

__all__ = ["SpacedDiffusion", "space_timesteps"]


def space_timesteps(num_timesteps: int, section_counts: str | Sequence[int]) -> set[int]:
    """The timesteps to keep: "ddimN", or a count for each of as many equal sections.

    See fastdiff.schedules.timesteps. Raises ValueError for a count that does not fit.
    """
    if not isinstance(section_counts, str):
        section_counts = ",".join(str(int(count)) for count in section_counts)
    return set(timesteps(num_timesteps, section_counts).tolist())


class SpacedDiffusion(GaussianDiffusion):
    """A process that visits some timesteps of a base process, and tells models those.

    Args:
        use_timesteps: of the base process, in any order.
        kwargs: of the base GaussianDiffusion.
    """

    def __init__(self, use_timesteps: Iterable[int], **kwargs: Any) -> None:
        self.use_timesteps = set(use_timesteps)
        base = NoiseSchedule.from_betas(kwargs["betas"])
        self.original_num_steps = base.num_timesteps
        self.timestep_map = [t for t in range(base.num_timesteps) if t in self.use_timesteps]
        self._maps: dict[torch.device, Tensor] = {}
        kept = base.respace(self.timestep_map[::-1])
        super().__init__(**kwargs | {"betas": kept.betas})

    def _wrap_model(self, model: Callable[..., Any]) -> Callable[..., Any]:
        if isinstance(model, _WrappedModel):
            return model
        return _WrappedModel(model, self._original, self.rescale_timesteps, self.original_num_steps)

    def _original(self, t: Tensor) -> Tensor:
        """The base process's timesteps."""
        if t.device not in self._maps:  # kept, so that a step copies nothing to the device
            with torch.inference_mode(False):
                self._maps[t.device] = torch.tensor(self.timestep_map).to(t.device)
        return self._maps[t.device][t]

    def _scale_timesteps(self, t: Tensor) -> Tensor:
        return t  # the wrapped model does it


class _WrappedModel:
    """A model called with the base process's timesteps."""

    def __init__(
        self,
        model: Callable[..., Any],
        original: Callable[[Tensor], Tensor],
        rescale_timesteps: bool,
        original_num_steps: int,
    ) -> None:
        self.model = model
        self.original = original
        self.rescale_timesteps = rescale_timesteps
        self.original_num_steps = original_num_steps

    def __call__(self, x: Tensor, ts: Tensor, **kwargs: Any) -> Any:
        original = self.original(ts)
        if self.rescale_timesteps:
            original = original.float() * (1000.0 / self.original_num_steps)
        return self.model(x, original, **kwargs)
