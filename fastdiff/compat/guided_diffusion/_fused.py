"""A reverse step of the whole process as one op."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff import ops
from fastdiff.samplers.ddim import ddim_columns, ddim_reverse_columns
from fastdiff.samplers.ddpm import ddpm_columns
from fastdiff.samplers.plan import Columns, Plan
from fastdiff.schedules import NoiseSchedule


class FusedSteps:
    """Tables of coefficients of every timestep, and steps by them."""

    def __init__(self, schedule: NoiseSchedule, prediction_type: str, variance_type: str) -> None:
        self.schedule = schedule
        self.prediction_type = prediction_type
        self.variance_type = variance_type
        self._tables: dict[Any, Tensor] = {}

    def of_output(
        self, x: Tensor, out: Tensor, t: Tensor, kind: Any, clip: bool, noise: Tensor | None
    ) -> dict[str, Tensor]:
        """From a model's output: kind "ddpm", ("ddim", eta) or "reverse"."""
        channels = x.shape[1] * (1 + self.variance_type.startswith("learned"))
        if out.shape[1] != channels:
            raise ValueError(
                f"the model returned {list(out.shape)}; a variance of type {self.variance_type} "
                f"takes {channels} channels for x of {x.shape[1]}."
            )
        return self._step(x, out, t, kind, self.prediction_type, clip, noise)

    def of_x_start(
        self, x: Tensor, x_start: Tensor, t: Tensor, kind: Any, noise: Tensor | None
    ) -> dict[str, Tensor]:
        """From an x_0 that somebody has had a hand in."""
        return self._step(x, x_start, t, kind, "x_start", False, noise)

    def _step(
        self,
        x: Tensor,
        out: Tensor,
        t: Tensor,
        kind: Any,
        prediction_type: str,
        clip: bool,
        noise: Tensor | None,
    ) -> dict[str, Tensor]:
        table = self._table(kind, prediction_type, x.device)
        graded = torch.is_grad_enabled() and (x.requires_grad or out.requires_grad)
        with ops.use_reference("denoise_step") if graded else nullcontext():
            done = ops.denoise_step(
                x,
                out,
                len(table) - 1 - t,
                table,
                clip=1.0 if clip else None,
                noise=noise,
                return_pred_x_start=True,
            )
        assert done.pred_x_start is not None
        return {"sample": done.x_prev, "pred_xstart": done.pred_x_start}

    def _table(self, kind: Any, prediction_type: str, device: torch.device) -> Tensor:
        """The noisiest timestep's row first."""
        key = (kind, prediction_type, device)
        if key not in self._tables:
            visited = np.arange(self.schedule.num_timesteps - 1, -1, -1)
            columns = self._columns(kind, visited, prediction_type)
            with torch.inference_mode(False):
                self._tables[key] = torch.from_numpy(Plan.of(visited, columns).table).to(device)
        return self._tables[key]

    def _columns(self, kind: Any, visited: NDArray[np.int64], prediction_type: str) -> Columns:
        schedule = self.schedule
        if kind == "reverse":
            return ddim_reverse_columns(schedule, prediction_type)
        if kind != "ddpm":
            _, eta = kind
            return ddim_columns(schedule, visited, prediction_type, eta=eta, rederive_eps=True)
        columns = ddpm_columns(schedule, visited, prediction_type, variance_type=self.variance_type)
        if prediction_type == "posterior_mean":  # the mean is the model's, whatever is clipped
            one = np.ones(schedule.num_timesteps)
            columns |= {"c_0": 0 * one, "c_x": 0 * one, "c_o": one}
        return columns
