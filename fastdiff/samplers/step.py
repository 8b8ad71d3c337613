"""One step of a walk, as a function of tensors on the model's device: no value is read by the host.

So a GPU may capture it and replay it for every step of every run of the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fastdiff.diffusion import Clip, DynamicThresholding, clip_bound
from fastdiff.engine import Ahead
from fastdiff.ops.denoise_step import DenoiseStep, denoise_step, predict_x_start

Model = Callable[..., Tensor]


@dataclass(frozen=True)
class State:
    """Where a walk stands and what it goes by, on the model's device."""

    x: Tensor  # [N, C, ...] float32 or float64
    model_input: Tensor | None  # x in the model's dtype, where that is another
    before: Tensor | None  # the last step's pred_x_start, for samplers that ask for it
    row: Tensor  # [N] int64, the same for all
    t: Tensor  # [N] int64, what a model is told; a planned one goes by row and ahead instead
    table: Tensor  # [S, columns] float64
    seed: Tensor  # [] int64
    sample_index: Tensor  # [N] int64
    class_labels: Tensor | None  # [N], guided [2N] with those of no class last
    ahead: Ahead | None  # for a planned UNet


@dataclass(frozen=True)
class Step:
    """What all steps of a walk have in common."""

    model: Model
    learned: bool
    clip: Clip
    guidance_scale: float
    stochastic: bool
    multistep: bool

    def __call__(
        self,
        state: State,
        *,
        noise: Tensor | None = None,
        keep_pred: bool = False,
        in_place: bool = False,
    ) -> DenoiseStep:
        """A call of the model and of one op; noise None draws it where it is needed."""
        x, table = state.x, state.table
        out, uncond = self._predict(state)
        threshold = None
        if isinstance(self.clip, DynamicThresholding):
            threshold = self.clip.bound(
                predict_x_start(x, out, state.row, table, uncond, self.guidance_scale)
            )
        drawn: dict[str, Any] = {}
        if self.stochastic:
            drawn = {"noise": noise, "seed": state.seed, "sample_index": state.sample_index}
        short = state.model_input
        return denoise_step(
            x,
            out,
            state.row,
            table,
            uncond_output=uncond,
            guidance_scale=self.guidance_scale,
            clip=clip_bound(self.clip),
            threshold=threshold,
            x_start_before=state.before,
            return_pred_x_start=keep_pred or self.multistep,
            model_dtype=None if short is None else short.dtype,
            in_place=in_place,
            **drawn,
        )

    def advance(self, state: State) -> None:
        """Take a step and leave its result in the state's own tensors."""
        done = self(state, in_place=True)
        if state.model_input is not None:
            state.model_input.copy_(cast(Tensor, done.model_input))
        if state.before is not None:
            state.before.copy_(cast(Tensor, done.pred_x_start))
        state.row.bitwise_not_().neg_()  # row + 1; the calls of a recorded step take no numbers

    @property
    def key(self) -> tuple[Any, ...]:
        """All that a captured step keeps beside its tensors and its model."""
        return self.learned, self.clip, self.guidance_scale, self.stochastic, self.multistep

    def _predict(self, state: State) -> tuple[Tensor, Tensor | None]:
        """The model's output, and its output without the condition where that guides."""
        x = state.x if state.model_input is None else state.model_input
        if self.guidance_scale == 1:
            return self._checked(self._call(x, state), x), None
        twice = torch.cat([x, x])
        out, uncond = self._checked(self._call(twice, state), twice).chunk(2)
        return out, uncond

    def _call(self, x: Tensor, state: State) -> object:
        labels = state.class_labels
        if state.ahead is not None:
            return self.model(x, state.row[:1], labels, ahead=state.ahead)
        t = state.t if len(state.t) == len(x) else torch.cat([state.t, state.t])
        return self.model(x, t) if labels is None else self.model(x, t, class_labels=labels)

    def _checked(self, out: object, x: Tensor) -> Tensor:
        if not isinstance(out, Tensor):
            raise TypeError(
                f"the model returned {type(out).__name__}; fastdiff takes a model that returns the "
                "output tensor: wrap it in a function that does."
            )
        N, C, *rest = x.shape
        allowed = [[N, 2 * C, *rest]] if self.learned else [[N, C, *rest], [N, 2 * C, *rest]]
        if list(out.shape) not in allowed:
            wanted = " or ".join(map(str, allowed))
            raise ValueError(
                f"the model returned {list(out.shape)}; expected {wanted}"
                f"{' for a learned variance' if self.learned else ''}."
            )
        return out


def device_and_dtype(
    model: object,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    elsewhere: torch.device | str = "cpu",
) -> tuple[torch.device, torch.dtype]:
    """What is asked for, else where and in what the model's parameters are, else elsewhere and
    float32."""
    parameters = getattr(model, "parameters", None)
    floating = (p for p in parameters() if p.is_floating_point()) if callable(parameters) else ()
    parameter = next(iter(floating), None)
    if device is None:
        device = elsewhere if parameter is None else parameter.device
    if dtype is None:
        dtype = torch.float32 if parameter is None else parameter.dtype
    return torch.device(device), dtype
