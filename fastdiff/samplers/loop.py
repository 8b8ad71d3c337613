"""The one sampling loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fastdiff.diffusion import Clip, DynamicThresholding, clip_bound
from fastdiff.engine import AcceleratedUNet, planned
from fastdiff.ops.denoise_step import denoise_step, predict_x_start
from fastdiff.ops.philox_normal import checked_seed, philox_normal
from fastdiff.samplers.plan import Plan
from fastdiff.samplers.progress import progress_bar

Model = Callable[..., Tensor]
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
        parameter = next(_float_parameters(model), None)
        if device is None and parameter is not None:
            device = parameter.device
        if device is None:
            device = noise.device if isinstance(noise, Tensor) else "cpu"
        if dtype is None:
            dtype = torch.float32 if parameter is None else parameter.dtype
        if isinstance(sample_index, int):
            sample_index = torch.arange(sample_index, sample_index + size[0])
        self._index = sample_index.to(device)
        self._guidance_scale = guidance_scale
        self._conditions = _conditions(size, class_labels, uncond_labels, guidance_scale, device)
        self._model, self._size, self._learned = planned(model), size, learned
        self._plan, self._clip, self._bound = plan, clip, clip_bound(clip)
        self._noise, self._seed = noise, checked_seed(seed, self._index.device)
        self._dtype = dtype
        x_T = _checked(noise, size, "noise") if isinstance(noise, Tensor) else self._drawn(0)
        if x_T is None:
            x_T = philox_normal(size, self._seed, sample_index=self._index)
        self._x_T = x_T.to(device, torch.promote_types(dtype, torch.float32))

    def history(self) -> Iterator[SampleStep]:
        """Every step as it is done."""
        return self._walk(keep_pred=True)

    def result(
        self,
        *,
        progress: Progress = False,
        callback: Callable[[SampleStep], object] | None = None,
    ) -> Tensor:
        """The last x_prev."""
        given = nullcontext(progress) if callable(progress) else nullcontext()
        with progress_bar() if progress is True else given as show:
            for done in self._walk(keep_pred=callback is not None):
                if show:
                    show(done.step + 1, done.num_steps)
                if callback:
                    callback(done)
        return done.x_prev

    @torch.no_grad()
    def _walk(self, *, keep_pred: bool) -> Iterator[SampleStep]:
        """A call of the model and of one op by step; keep_pred False leaves pred_x_start out."""
        x, plan = self._x_T, self._plan
        table = torch.from_numpy(plan.table).to(x.device)
        timesteps = torch.from_numpy(plan.timesteps).to(x.device)
        rows = torch.arange(len(table), device=x.device)
        if isinstance(self._model, AcceleratedUNet):
            self._model.prepare(timesteps)
        short = None if self._dtype == x.dtype else self._dtype
        model_input, before = x.to(self._dtype), None
        for row, t in enumerate(plan.timesteps.tolist()):
            step = rows[row].expand(len(x))
            out, uncond = self._predict(model_input, timesteps[row])
            threshold = None
            if isinstance(self._clip, DynamicThresholding):
                threshold = self._clip.bound(
                    predict_x_start(x, out, step, table, uncond, self._guidance_scale)
                )
            done = denoise_step(
                x,
                out,
                step,
                table,
                uncond_output=uncond,
                guidance_scale=self._guidance_scale,
                clip=self._bound,
                threshold=threshold,
                x_start_before=before,
                return_pred_x_start=keep_pred or plan.multistep,
                model_dtype=short,
                **self._step_noise(row),
            )
            pred = cast(Tensor, done.pred_x_start)
            yield SampleStep(row, len(table), t, x, pred, done.x_prev)
            x, before = done.x_prev, pred if plan.multistep else None
            model_input = x if done.model_input is None else done.model_input

    def _predict(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """The model's output, and its output without the condition where that guides."""
        if self._guidance_scale == 1:
            out = self._model(x_t, t.expand(len(x_t)), **self._conditions)
            return _checked_output(out, self._size, self._learned), None
        twice = torch.cat([x_t, x_t])
        out = self._model(twice, t.expand(len(twice)), **self._conditions)
        out, uncond = _checked_output(out, [*twice.shape], self._learned).chunk(2)
        return out, uncond

    def _step_noise(self, row: int) -> dict[str, Any]:
        if not self._plan.stochastic:
            return {}
        return {
            "noise": self._drawn(row + 1),
            "seed": self._seed,
            "sample_index": self._index,
        }

    def _drawn(self, draw: int) -> Tensor | None:
        """What the caller's noise function gives, or None without one."""
        if not callable(self._noise):
            return None
        return _checked(self._noise(draw, self._index), self._size, "noise(draw)")


def _conditions(
    size: list[int],
    class_labels: Tensor | None,
    uncond_labels: Tensor | None,
    guidance_scale: float,
    device: torch.device | str,
) -> dict[str, Tensor]:
    """What the model is told beside x_t and t; guided, the half without a class comes second."""
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
    return {"class_labels": torch.cat(given)} if given else {}


def _checked_shape(shape: Sequence[int]) -> list[int]:
    size = [int(n) for n in shape]
    if len(size) < 2 or min(size) < 0:
        raise ValueError(f"shape must be (N, C, ...) of sizes from 0 up, got {tuple(shape)}.")
    return size


def _checked(tensor: Tensor, size: list[int], name: str) -> Tensor:
    if list(tensor.shape) != size:
        raise ValueError(f"{name} must have shape {size}, got {list(tensor.shape)}.")
    return tensor


def _checked_output(out: object, size: list[int], learned: bool) -> Tensor:
    if not isinstance(out, Tensor):
        raise TypeError(
            f"the model returned {type(out).__name__}; fastdiff takes a model that returns the "
            "output tensor: wrap it in a function that does."
        )
    N, C, *rest = size
    allowed = [[N, 2 * C, *rest]] if learned else [[N, C, *rest], [N, 2 * C, *rest]]
    if list(out.shape) not in allowed:
        wanted = " or ".join(map(str, allowed))
        raise ValueError(
            f"the model returned {list(out.shape)}; expected {wanted}"
            f"{' for a learned variance' if learned else ''}."
        )
    return out


def _float_parameters(model: object) -> Iterator[Tensor]:
    parameters = getattr(model, "parameters", None)
    if callable(parameters):
        yield from (p for p in parameters() if p.is_floating_point())
