"""From noise to images: the loops over all timesteps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from fastdiff.samplers.progress import progress_bar

Function = Callable[..., Any]


class SamplingLoops:
    """What calls p_sample or ddim_sample at every timestep, the noisiest first."""

    num_timesteps: int
    p_sample: Function
    ddim_sample: Function

    def p_sample_loop(
        self,
        model: Function,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        cond_fn: Function | None = None,
        model_kwargs: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
    ) -> Tensor:
        """The last "sample" of p_sample_loop_progressive."""
        *_, final = self.p_sample_loop_progressive(
            model, shape, noise, clip_denoised, denoised_fn, cond_fn, model_kwargs, device,
            progress,
        )  # fmt: skip
        return final["sample"]

    def p_sample_loop_progressive(
        self,
        model: Function,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        cond_fn: Function | None = None,
        model_kwargs: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
    ) -> Iterator[dict[str, Tensor]]:
        """What p_sample gives at each timestep, from noise [N, C, ...] (torch's own) down."""
        return self._walk(
            self.p_sample, model, shape, noise, device, progress,
            clip_denoised=clip_denoised, denoised_fn=denoised_fn, cond_fn=cond_fn,
            model_kwargs=model_kwargs,
        )  # fmt: skip

    def ddim_sample_loop(
        self,
        model: Function,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        cond_fn: Function | None = None,
        model_kwargs: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        eta: float = 0.0,
    ) -> Tensor:
        """The last "sample" of ddim_sample_loop_progressive."""
        *_, final = self.ddim_sample_loop_progressive(
            model, shape, noise, clip_denoised, denoised_fn, cond_fn, model_kwargs, device,
            progress, eta,
        )  # fmt: skip
        return final["sample"]

    def ddim_sample_loop_progressive(
        self,
        model: Function,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        cond_fn: Function | None = None,
        model_kwargs: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        eta: float = 0.0,
    ) -> Iterator[dict[str, Tensor]]:
        """As p_sample_loop_progressive, by ddim_sample."""
        return self._walk(
            self.ddim_sample, model, shape, noise, device, progress,
            clip_denoised=clip_denoised, denoised_fn=denoised_fn, cond_fn=cond_fn,
            model_kwargs=model_kwargs, eta=eta,
        )  # fmt: skip

    def _walk(
        self,
        step: Function,
        model: Function,
        shape: Sequence[int],
        noise: Tensor | None,
        device: torch.device | str | None,
        progress: bool,
        **options: Any,
    ) -> Iterator[dict[str, Tensor]]:
        if device is None:
            device = next(model.parameters()).device  # type: ignore[attr-defined]
        x = torch.randn(*shape, device=device) if noise is None else noise
        with progress_bar() if progress else nullcontext() as show:
            for i in reversed(range(self.num_timesteps)):
                t = torch.full((shape[0],), i, device=device)
                with torch.no_grad():
                    out = step(model, x, t, **options)
                if show:
                    show(self.num_timesteps - i, self.num_timesteps)
                yield out
                x = out["sample"]
