"""DDIMScheduler (Song et al. 2021) as diffusers offers it."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

from fastdiff.compat.diffusers._face import (
    Generator,
    Timestep,
    TimestepFace,
    constructor,
    prediction,
    promoted,
)


class DDIMScheduler(TimestepFace, diffusers.DDIMScheduler):
    """diffusers' DDIMScheduler, its step one fused op; see `constructor` for the options added."""

    __init__ = constructor(diffusers.DDIMScheduler)
    final_alpha_cumprod: Tensor

    def step(
        self,
        model_output: Tensor,
        timestep: Timestep,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generator = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        *,
        seed: int | None = None,
        sample_index: int | Tensor = 0,
    ) -> Any:
        """x_t -> x_{t-1} (Song et al. 2021, eq. 12 and 16).

        Args:
            model_output, sample: [N, C, ...].
            timestep: one, or [N]; a tensor on a device is not read back.
            eta: share of fresh noise.
            use_clipped_model_output: whether epsilon is taken anew from the clipped x_0.
            generator: of the noise, or a list of N; None is torch's own.
            variance_noise: the noise itself, as sample.
            seed, sample_index: noise of ops.philox_normal instead, its draw k + 1 in the k-th step.

        Returns:
            DDIMSchedulerOutput, or the tuple of prev_sample and pred_original_sample.

        Raises:
            ValueError: set_timesteps was not called; a timestep or a shape that does not fit; noise
                from two sources.
        """
        if self.num_inference_steps is None:
            raise ValueError("set_timesteps has to be called before step.")
        sample = promoted(sample, model_output)
        noise: dict[str, Any] = {}
        if eta > 0 and variance_noise is not None:
            if generator is not None or seed is not None:
                raise ValueError("noise comes from variance_noise, a generator or a seed; one.")
            noise = {"noise": variance_noise}
        elif eta > 0:
            noise = self._drawn(model_output, generator, seed, sample_index, model_output.dtype)
        table = self._rows(
            sample.device,
            ("step", float(eta), bool(use_clipped_model_output)),
            lambda *at: self._columns(*at, eta=eta, rederived=use_clipped_model_output),
        )
        done = self._denoised(
            sample,
            model_output,
            self._step(timestep, sample),
            table,
            self.config.clip_sample_range if self.config.clip_sample else None,
            **noise,
        )
        if not return_dict:
            return done.x_prev, done.pred_x_start
        return DDIMSchedulerOutput(prev_sample=done.x_prev, pred_original_sample=done.pred_x_start)

    def _order(self) -> list[int]:
        visited = self._visited()
        if not self.diffusers_exact:
            return visited
        # There a step can be taken from any timestep, visited or not.
        others = set(range(self.config.num_train_timesteps)) - set(visited)
        return visited + sorted(others)

    def _leads_to(self, t: Tensor) -> Tensor:
        if not self.diffusers_exact:
            return super()._leads_to(t)
        # diffusers' own: not the timestep visited next, where the spacing is uneven.
        assert self.num_inference_steps is not None
        return t - self.config.num_train_timesteps // self.num_inference_steps

    def _columns(
        self, levels: Tensor, t: Tensor, before: Tensor, *, eta: float, rederived: bool
    ) -> dict[str, Tensor]:
        a = levels[t]
        final = self._outermost(levels, self.final_alpha_cumprod)
        a_prev = torch.where(before >= 0, levels[before.clamp(min=0)], final)
        variance = (1 - a_prev) / (1 - a) * (1 - a / a_prev)
        sigma = eta * variance**0.5
        rest = 1 - a_prev - sigma**2
        direction = (rest if self.diffusers_exact else rest.clamp(min=0)) ** 0.5
        k_x, k_o = prediction(a, self.config.prediction_type, "x_start")
        source = "sample" if rederived else self.config.prediction_type
        of_x, of_source = prediction(a, source, "epsilon")
        along = {"k_x": k_x, "k_o": k_o, "c_0": (a_prev**0.5).double(), "sigma": sigma.double()}
        along["c_x"] = direction.double() * of_x
        if rederived:
            along["c_0"] = along["c_0"] + direction.double() * of_source
        else:
            along["c_o"] = direction.double() * of_source
        return along
