"""DDPMScheduler (Ho et al. 2020, Algorithm 2) as diffusers offers it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from torch import Tensor

from fastdiff.compat.diffusers._face import (
    Generator,
    Timestep,
    TimestepFace,
    constructor,
    prediction,
    promoted,
)

LEARNED = ("learned", "learned_range")


class DDPMScheduler(TimestepFace, diffusers.DDPMScheduler):
    """diffusers' DDPMScheduler, its step one fused op; see `constructor` for the options added."""

    __init__ = constructor(diffusers.DDPMScheduler)
    variance_type: str

    def step(
        self,
        model_output: Tensor,
        timestep: Timestep,
        sample: Tensor,
        generator: Generator = None,
        return_dict: bool = True,
        *,
        seed: int | None = None,
        sample_index: int | Tensor = 0,
    ) -> Any:
        """x_t -> x_{t-1} (Ho et al. 2020, eq. 7).

        Args:
            model_output: [N, C, ...], or [N, 2C, ...] with a learned variance.
            timestep: one, or [N]; a tensor on a device is not read back.
            sample: x_t [N, C, ...].
            generator: of the noise, or a list of N; None is torch's own.
            seed, sample_index: noise of ops.philox_normal instead, its draw k + 1 in the k-th step.

        Returns:
            DDPMSchedulerOutput, or the tuple of prev_sample and pred_original_sample.

        Raises:
            ValueError: a timestep or a shape that does not fit.
        """
        sample = promoted(sample, model_output)
        channels, learned = sample.shape[1], self.variance_type in LEARNED
        if model_output.shape[1] != channels * (1 + learned):
            raise ValueError(
                f"variance_type {self.variance_type!r} takes a model output of "
                f"{channels * (1 + learned)} channels for {channels} of the sample; "
                f"got {model_output.shape[1]}."
            )
        table = self._rows(sample.device, "step", self._columns)
        noise: dict[str, Any] = {}
        known = self._known(timestep)
        if known is None or known > 0:
            like, dtype = model_output[:, :channels], model_output.dtype
            noise = self._drawn(like, generator, seed, sample_index, dtype)
        if self.variance_type == "learned" and self.diffusers_exact:
            # diffusers takes the output for the variance itself, which no row can say.
            model_output, variance = model_output.split(channels, 1)
            if "noise" in noise:
                noise["noise"] = variance**0.5 * noise["noise"]
            elif noise:
                raise ValueError(
                    "variance_type 'learned' with a seed needs diffusers_exact=False, by which "
                    "the model's output is the variance's logarithm."
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
        return DDPMSchedulerOutput(prev_sample=done.x_prev, pred_original_sample=done.pred_x_start)

    def _get_variance(
        self, t: int, predicted_variance: Tensor | None = None, variance_type: str | None = None
    ) -> Tensor:
        """diffusers' variance; of fixed_large_log that of fixed_large if not diffusers_exact."""
        kind = variance_type or self.config.variance_type
        if kind == "fixed_large_log" and not self.diffusers_exact:
            kind = "fixed_large"
        variance: Tensor = super()._get_variance(t, predicted_variance, kind)  # type: ignore[misc]
        return variance

    def _columns(self, levels: Tensor, t: Tensor, before: Tensor) -> dict[str, Tensor]:
        a, one = levels[t], levels.new_ones(())
        a_prev = torch.where(before >= 0, levels[before], one)
        alpha = a / a_prev
        beta = 1 - alpha
        k_x, k_o = prediction(a, self.config.prediction_type, "x_start")
        noisy = (t > 0).double()
        variance = ((1 - a_prev) / (1 - a) * beta).clamp(min=1e-20)
        columns = {
            "k_x": k_x,
            "k_o": k_o,
            "c_0": (a_prev**0.5 * beta / (1 - a)).double(),
            "c_x": (alpha**0.5 * (1 - a_prev) / (1 - a)).double(),
        }
        if self.variance_type == "learned_range":
            low, high = variance.log().double(), beta.log().double()
            return columns | {
                "sigma": noisy, "l_0": noisy * (high + low) / 2, "l_v": noisy * (high - low) / 2
            }  # fmt: skip
        if self.variance_type == "learned":
            raw_is_logarithm = 0.0 if self.diffusers_exact else 1.0
            return columns | {"sigma": noisy, "l_v": noisy * raw_is_logarithm}
        deviation = self._deviation(variance, beta).double()
        return columns | {"sigma": torch.where(noisy > 0, deviation, 0.0)}

    def _deviation(self, variance: Tensor, beta: Tensor) -> Tensor:
        kinds: dict[str, Callable[[], Tensor]] = {
            "fixed_small_log": lambda: (0.5 * variance.log()).exp(),
            "fixed_large": lambda: beta**0.5,
            # The root of a logarithm: NaN, as there.
            "fixed_large_log": lambda: beta.log() ** 0.5 if self.diffusers_exact else beta**0.5,
        }
        return kinds.get(self.variance_type, lambda: variance**0.5)()
