"""DPMSolverMultistepScheduler (Lu et al. 2022) as diffusers offers it."""

from __future__ import annotations

from typing import Any, NamedTuple

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from fastdiff import ops
from fastdiff.compat.diffusers._face import (
    Face,
    Generator,
    Timestep,
    constructor,
    promoted,
    table_of,
)
from fastdiff.compat.diffusers._solver_rows import signal_and_deviation, update


class _Rows(NamedTuple):
    table: Tensor  # [S + 1, 9] for denoise_step, a row a step
    before: Tensor  # [S + 1, 2] weights of the predictions one and two steps ago, for third order
    epsilon: Tensor  # [S + 1, 2] epsilon of x_t and x_0, for thresholded solvers of epsilon


class DPMSolverMultistepScheduler(Face, diffusers.DPMSolverMultistepScheduler):
    """diffusers' DPMSolverMultistepScheduler, its step one fused op; see `constructor`.

    Everything it supports is supported; a third order takes one addition more. Timesteps may
    differ by sample: each then walks the same number of steps from its own.
    """

    __init__ = constructor(diffusers.DPMSolverMultistepScheduler)
    sigmas: Tensor
    model_outputs: list[Tensor | None]
    lower_order_nums: int
    _step_index: int | Tensor | None
    _begin_index: int | None

    @property
    def step_index(self) -> int | None:
        """Which step comes next; None before the first."""
        index = self._step_index
        return int(index.max()) if isinstance(index, Tensor) else index

    def step(
        self,
        model_output: Tensor,
        timestep: Timestep,
        sample: Tensor,
        generator: Generator = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        *,
        seed: int | None = None,
        sample_index: int | Tensor = 0,
    ) -> Any:
        """The next step of the solver.

        Args:
            model_output: [N, C, ...], or [N, 2C, ...] of which the first half counts.
            timestep: of the first step, one or [N]; after it steps are counted, as in diffusers.
            sample: x_t [N, C, ...].
            generator: of the sde solvers' noise, or a list of N; None is torch's own.
            variance_noise: that noise itself, as sample.
            seed, sample_index: noise of ops.philox_normal instead, its draw k + 1 in the k-th step.

        Returns:
            SchedulerOutput, or the tuple of prev_sample.

        Raises:
            ValueError: set_timesteps was not called, or the run is over; a shape that does not fit.
        """
        if self.num_inference_steps is None:
            raise ValueError("set_timesteps has to be called before step.")
        if self._step_index is None:
            self._init_step_index(timestep)
        sample = promoted(sample, model_output)
        model_output = model_output[:, : sample.shape[1]]
        order = min(self.lower_order_nums + 1, self.config.solver_order)
        rows: _Rows = self._kept((sample.device, order), lambda: self._rows(order, sample.device))
        step = self._step(sample)
        done = self._denoised(
            sample,
            model_output,
            step,
            rows.table,
            None,
            x_start_before=self._before(order, rows, step, sample),
            **self._noise(sample, generator, variance_noise, seed, sample_index),
        )
        self.model_outputs = [
            *self.model_outputs[1:],
            self._converted(done.pred_x_start, rows, step, sample),
        ]
        self.lower_order_nums = min(self.lower_order_nums + 1, self.config.solver_order)
        assert self._step_index is not None
        self._step_index = self._step_index + 1
        return SchedulerOutput(prev_sample=done.x_prev) if return_dict else (done.x_prev,)

    def index_for_timestep(
        self, timestep: Timestep, schedule_timesteps: Tensor | None = None
    ) -> int | Tensor:
        """The step that `timestep` begins, an int where that is known without a device's memory.

        Of a timestep that stands twice, the second; of an unknown one, the last, as in diffusers.
        """
        known = self._known(timestep)
        if known is not None:
            steps = [i for i, t in enumerate(self._visited()) if t == known]
            return steps[min(1, len(steps) - 1)] if steps else len(self._visited()) - 1
        assert isinstance(timestep, Tensor)
        visited = self.timesteps.to(timestep.device)
        same = timestep.reshape(-1, 1) == visited
        times = same.sum(1)
        first = same.int().argmax(1) + (times > 1)
        return torch.where(times > 0, first, len(visited) - 1)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t [N, ...] at the sigmas of `timesteps`, [N] or [1], as diffusers' add_noise."""
        x = original_samples
        if x.shape != noise.shape or not x.is_floating_point() or x.ndim < 2:
            noised: Tensor = super().add_noise(x, noise, timesteps)  # type: ignore[misc]
            return noised

        def build() -> Tensor:
            pair = signal_and_deviation(self.sigmas.to(x.dtype), self.config.use_flow_sigmas)
            return torch.stack([*pair, *pair], 1).double().to(x.device)

        table = self._kept((x.device, x.dtype, "noise"), build)
        if self._begin_index is None:
            found = [self.index_for_timestep(t) for t in timesteps.reshape(-1)]
            steps = torch.cat([torch.as_tensor(i, device=x.device).reshape(1) for i in found])
        else:
            begun = self._begin_index if self._step_index is None else self._step_index
            steps = torch.as_tensor(begun, device=x.device).reshape(-1)
        return ops.q_sample(x, steps.expand(len(x)).contiguous(), table, noise=noise).x_t

    def _init_step_index(self, timestep: Timestep) -> None:
        self._step_index = (
            self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        )

    def _step(self, sample: Tensor) -> Tensor:
        index = self._step_index
        if isinstance(index, Tensor):
            return index.to(sample.device).expand(len(sample))
        assert index is not None
        if index >= len(self.timesteps):
            raise ValueError(
                f"all {len(self.timesteps)} steps are done; call set_timesteps for a new run."
            )
        return torch.full((len(sample),), index, device=sample.device)

    @property
    def _of_data(self) -> bool:
        """Whether the solver goes by x_0 (++) rather than epsilon."""
        return bool(self.config.algorithm_type.endswith("++"))

    def _noise(
        self,
        sample: Tensor,
        generator: Generator,
        variance_noise: Tensor | None,
        seed: int | None,
        sample_index: int | Tensor,
    ) -> dict[str, Any]:
        if not self.config.algorithm_type.startswith("sde"):
            return {}
        if variance_noise is not None:
            return {"noise": variance_noise.to(sample.device, torch.float32)}
        return self._drawn(sample, generator, seed, sample_index, torch.float32)

    def _before(self, order: int, rows: _Rows, step: Tensor, sample: Tensor) -> Tensor | None:
        """What the row's c_1 multiplies."""
        if order == 1:
            return None
        last = self.model_outputs[-1]
        assert last is not None
        if order == 2:
            return last.to(sample.dtype)
        earlier = self.model_outputs[-2]
        assert earlier is not None
        of_last, of_earlier = _by_sample(rows.before, step, sample)
        return (of_last * last + of_earlier * earlier).to(sample.dtype)

    def _converted(self, pred: Tensor | None, rows: _Rows, step: Tensor, sample: Tensor) -> Tensor:
        """What the solver remembers: x_0, or epsilon."""
        assert pred is not None
        if self._of_data or not self.config.thresholding:
            return pred
        of_x, of_pred = _by_sample(rows.epsilon, step, sample)
        return (of_x * sample + of_pred * pred).to(sample.dtype)

    def _rows(self, order: int, device: torch.device) -> _Rows:
        """The rows of all steps where `order` - 1 predictions are remembered."""
        config = self.config
        if order == 3 and config.algorithm_type == "sde-dpmsolver":
            raise ValueError("algorithm_type 'sde-dpmsolver' has no third order; use 1 or 2.")
        sigmas = self.sigmas.cpu() if self.diffusers_exact else self.sigmas.cpu().double()
        alpha, sigma = signal_and_deviation(sigmas[:-1], config.use_flow_sigmas)
        moved = update(
            sigmas,
            self._orders(order),
            algorithm=config.algorithm_type,
            solver=config.solver_type,
            flow=config.use_flow_sigmas,
        )
        x, m0, m1, m2, noise = (part.double() for part in moved)
        alpha, sigma = alpha.double(), sigma.double()
        through_x_start = self._of_data or config.thresholding
        k_x, k_o = self._prediction(alpha, sigma, sigmas[:-1].double(), through_x_start)
        epsilon = torch.stack([1 / sigma, -alpha / sigma], 1)
        columns = {"k_x": k_x, "k_o": k_o, "c_0": m0, "c_x": x, "c_1": m1, "sigma": noise}
        if not self._of_data and config.thresholding:
            columns |= {"c_0": m0 * epsilon[:, 1], "c_x": x + m0 * epsilon[:, 0]}
        if order == 3:
            columns["c_1"] = torch.ones_like(m1)
        before = torch.stack([m1, m2], 1)
        return _Rows(table_of(columns).to(device), before.to(device), epsilon.to(device))

    def _orders(self, most: int) -> Tensor:
        """[S]: the order of each step, lower at the end as the config asks."""
        config, steps = self.config, len(self.timesteps)
        orders = torch.full((steps,), most)
        few = config.lower_order_final and steps < 15
        if few and steps > 1:
            orders[-2].clamp_(max=2)
        if config.euler_at_final or few or config.final_sigmas_type == "zero":
            orders[-1] = 1
        return orders

    def _prediction(
        self, alpha: Tensor, sigma: Tensor, ratio: Tensor, of_x_start: bool
    ) -> tuple[Tensor, Tensor]:
        """(of_x, of_output): x_0 or epsilon from x_t and the model's output."""
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        pairs = {
            ("epsilon", True): (1 / alpha, -sigma / alpha),
            ("epsilon", False): (zero, one),
            ("sample", True): (zero, one),
            ("sample", False): (1 / sigma, -alpha / sigma),
            ("v_prediction", True): (alpha, -sigma),
            ("v_prediction", False): (sigma, alpha),
            ("flow_prediction", True): (one, -ratio),
        }
        kind = (self.config.prediction_type, of_x_start)
        if kind not in pairs:
            raise ValueError(
                f"prediction_type {kind[0]!r} does not go with algorithm_type "
                f"{self.config.algorithm_type!r}; choose one of epsilon, sample, v_prediction, or "
                "flow_prediction with dpmsolver++."
            )
        return pairs[kind]


def _by_sample(pairs: Tensor, step: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Each sample's two numbers, [N, 1, ...] each, to multiply with."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    chosen = pairs[step].to(dtype).view(-1, 2, *[1] * (like.ndim - 1))
    return chosen[:, 0], chosen[:, 1]
