"""The one sampling loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from fastdiff.diffusion import Clip, clip_bound
from fastdiff.engine import AcceleratedUNet, planned
from fastdiff.models.inputs import check_range
from fastdiff.ops.philox_normal import checked_seed, philox_normal
from fastdiff.samplers.plan import Plan
from fastdiff.samplers.progress import progress_bar
from fastdiff.samplers.step import Model, State, Step, device_and_dtype

Noise = Tensor | Callable[[int, Tensor], Tensor]
Progress = bool | Callable[[int, int], object]


@dataclass(frozen=True)
class SampleStep:
    """One step: the model saw x_t at t, took x_0 to be pred_x_start, and the step led to x_prev.

    Tensors are [N, C, ...]; step counts from 0 to num_steps - 1.
    """

    step: int
    num_steps: int
    t: int
    x_t: Tensor
    pred_x_start: Tensor
    x_prev: Tensor


class Run:
    """A walk of a plan from x_T to its end; arguments as for sample, checked here.

    learned tells that the plan needs the second half of a model output [N, 2C, ...].
    """

    def __init__(
        self,
        model: Model,
        shape: Sequence[int],
        plan: Plan,
        *,
        clip: Clip,
        learned: bool = False,
        seed: int = 0,
        sample_index: int | Tensor = 0,
        noise: Noise | None = None,
        class_labels: Tensor | None = None,
        uncond_labels: Tensor | None = None,
        guidance_scale: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        size = _checked_shape(shape)
        elsewhere = noise.device if isinstance(noise, Tensor) else "cpu"
        device, dtype = device_and_dtype(model, device, dtype, elsewhere)
        if isinstance(sample_index, int):
            sample_index = torch.arange(sample_index, sample_index + size[0])
        self._plan, self._dtype = plan, dtype
        self._index = sample_index.to(device)
        self._noise, self._seed = noise, checked_seed(seed, self._index.device)
        self._labels = _labels(size, class_labels, uncond_labels, guidance_scale, device)
        self._size = size
        self.step = Step(
            planned(model), learned, clip, guidance_scale, plan.stochastic, plan.multistep
        )
        clip_bound(clip)  # raises for one that does not fit
        if isinstance(self.step.model, AcceleratedUNet) and self._labels is not None:
            check_range(self.step.model.config, self._labels)  # which a replayed step does not
        x_T = _checked(noise, size, "noise") if isinstance(noise, Tensor) else self._drawn(0)
        if x_T is None:
            x_T = philox_normal(size, self._seed, sample_index=self._index)
        self._x_T = x_T.to(device, torch.promote_types(dtype, torch.float32))

    def history(self) -> Iterator[SampleStep]:
        """Every step as it is done."""
        return self._walk(keep_pred=True)

    @torch.no_grad()
    def result(
        self,
        *,
        progress: Progress = False,
        callback: Callable[[SampleStep], object] | None = None,
    ) -> Tensor:
        """The last x_prev."""
        given = nullcontext(progress) if callable(progress) else nullcontext()
        with progress_bar() if progress is True else given as show:
            if callback is None and self._may_replay():
                return self._replayed(show)
            return self._walked(show, callback)

    def _walked(
        self,
        show: Callable[[int, int], object] | None,
        callback: Callable[[SampleStep], object] | None,
    ) -> Tensor:
        for done in self._walk(keep_pred=callback is not None):
            if show:
                show(done.step + 1, done.num_steps)
            if callback:
                callback(done)
        return done.x_prev

    def _may_replay(self) -> bool:
        """Whether nobody looks at single steps, so that they can be replayed whole."""
        model = self.step.model
        if not isinstance(model, AcceleratedUNet) or model.hooked or callable(self._noise):
            return False
        return self._size[0] > 0 and model.graphs.usable()

    def _replayed(self, show: Callable[[int, int], object] | None) -> Tensor:
        """By one step that was captured for this run or an earlier one."""
        step, steps = self.step, len(self._plan.table)
        model = cast(AcceleratedUNet, step.model)
        with model.graphs.at(step.key, step.advance, self.start()) as graph:
            if graph is not None:
                tell = None if show is None else lambda done: show(done, steps)
                return graph.run(steps, tell).x.clone()
        return self._walked(show, None)

    @torch.no_grad()
    def _walk(self, *, keep_pred: bool) -> Iterator[SampleStep]:
        """Step by step; keep_pred False leaves pred_x_start out."""
        state, plan, N = self.start(), self._plan, self._size[0]
        timesteps = torch.from_numpy(plan.timesteps).to(state.x.device)
        rows = torch.arange(len(timesteps), device=state.x.device)
        for row, t in enumerate(plan.timesteps.tolist()):
            state = replace(state, row=rows[row].expand(N), t=timesteps[row].expand(N))
            noise = self._drawn(row + 1) if plan.stochastic else None
            done = self.step(state, noise=noise, keep_pred=keep_pred)
            pred = cast(Tensor, done.pred_x_start)
            yield SampleStep(row, len(rows), t, state.x, pred, done.x_prev)
            before = pred if plan.multistep else None
            state = replace(state, x=done.x_prev, model_input=done.model_input, before=before)

    def start(self) -> State:
        """Where a walk begins, for `step`."""
        x, model = self._x_T, self.step.model
        timesteps = torch.from_numpy(self._plan.timesteps).to(x.device)
        return State(
            x=x,
            model_input=None if self._dtype == x.dtype else x.to(self._dtype),
            before=torch.zeros_like(x) if self._plan.multistep else None,  # weighed by 0
            row=self._index.new_zeros(len(x)),
            t=self._index.new_zeros(len(x)),
            table=torch.from_numpy(self._plan.table).to(x.device),
            seed=self._seed,
            sample_index=self._index,
            class_labels=self._labels,
            ahead=model.ahead(timesteps) if isinstance(model, AcceleratedUNet) else None,
        )

    def _drawn(self, draw: int) -> Tensor | None:
        """What the caller's noise function gives, or None without one."""
        if not callable(self._noise):
            return None
        return _checked(self._noise(draw, self._index), self._size, "noise(draw)")


def _labels(
    size: list[int],
    class_labels: Tensor | None,
    uncond_labels: Tensor | None,
    guidance_scale: float,
    device: torch.device | str,
) -> Tensor | None:
    """What the model is told beside x_t and t; guided, the half without a class comes second."""
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale must be finite, got {guidance_scale}.")
    if guidance_scale != 1 and (class_labels is None or uncond_labels is None):
        raise ValueError(
            f"guidance_scale {guidance_scale} needs class_labels, and uncond_labels that tell the "
            "model of no class."
        )
    labels = [class_labels, uncond_labels] if guidance_scale != 1 else [class_labels]
    names = ("class_labels", "uncond_labels")
    given = [
        _checked(tensor, size[:1], name).to(device)
        for name, tensor in zip(names, labels, strict=False)
        if tensor is not None
    ]
    return torch.cat(given) if given else None


def _checked_shape(shape: Sequence[int]) -> list[int]:
    size = [int(n) for n in shape]
    if len(size) < 2 or min(size) < 0:
        raise ValueError(f"shape must be (N, C, ...) of sizes from 0 up, got {tuple(shape)}.")
    return size


def _checked(tensor: Tensor, size: list[int], name: str) -> Tensor:
    if list(tensor.shape) != size:
        raise ValueError(f"{name} must have shape {size}, got {list(tensor.shape)}.")
    return tensor
