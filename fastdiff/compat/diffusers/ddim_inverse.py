"""DDIMInverseScheduler (Song et al. 2021, section 4.3) as diffusers offers it."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_ddim_inverse import DDIMSchedulerOutput
from torch import Tensor

from fastdiff.compat.diffusers._face import (
    Timestep,
    TimestepFace,
    constructor,
    prediction,
    promoted,
)


class DDIMInverseScheduler(TimestepFace, diffusers.DDIMInverseScheduler):
    """diffusers' DDIMInverseScheduler, its step one op; see `constructor` for what is added."""

    __init__ = constructor(diffusers.DDIMInverseScheduler)
    initial_alpha_cumprod: Tensor
    _thresholds = False

    def step(
        self,
        model_output: Tensor,
        timestep: Timestep,
        sample: Tensor,
        return_dict: bool = True,
    ) -> Any:
        """x at the level below -> x at `timestep`, one of timesteps, which ascend.

        Args:
            model_output, sample: [N, C, ...].
            timestep: one, or [N]; a tensor on a device is not read back.

        Returns:
            DDIMSchedulerOutput, or the tuple of prev_sample and pred_original_sample.

        Raises:
            ValueError: set_timesteps was not called; a timestep or a shape that does not fit.
        """
        if self.num_inference_steps is None:
            raise ValueError("set_timesteps has to be called before step.")
        sample = promoted(sample, model_output)
        done = self._denoised(
            sample,
            model_output,
            self._step(timestep, sample),
            self._rows(sample.device, "step", self._columns),
            self.config.clip_sample_range if self.config.clip_sample else None,
        )
        if not return_dict:
            return done.x_prev, done.pred_x_start
        return DDIMSchedulerOutput(prev_sample=done.x_prev, pred_original_sample=done.pred_x_start)

    def _order(self) -> list[int]:
        visited = self._visited()
        if not self.diffusers_exact:
            return visited
        others = set(range(self.config.num_train_timesteps)) - set(visited)
        return visited + sorted(others)

    def _leads_to(self, t: Tensor) -> Tensor:
        """Where each step comes from, rather: the level below."""
        if not self.diffusers_exact:
            return torch.cat([t.new_tensor([-1]), t[:-1]])
        assert self.num_inference_steps is not None
        below = t - self.config.num_train_timesteps // self.num_inference_steps
        return below.clamp(max=self.config.num_train_timesteps - 1)

    def _columns(self, levels: Tensor, t: Tensor, below: Tensor) -> dict[str, Tensor]:
        initial = self._outermost(levels, self.initial_alpha_cumprod)
        a = torch.where(below >= 0, levels[below.clamp(min=0)], initial)
        reached = levels[t]
        k_x, k_o = prediction(a, self.config.prediction_type, "x_start")
        of_x, of_output = prediction(a, self.config.prediction_type, "epsilon")
        direction = ((1 - reached) ** 0.5).double()
        return {
            "k_x": k_x,
            "k_o": k_o,
            "c_0": (reached**0.5).double(),
            "c_x": direction * of_x,
            "c_o": direction * of_output,
        }
