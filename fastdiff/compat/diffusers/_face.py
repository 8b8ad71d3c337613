"""What the schedulers share: two options beside diffusers' own, and a step by one op."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.diffusion import magnitude_quantile
from fastdiff.ops.denoise_step import COLUMNS, DenoiseStep, predict_x_start
from fastdiff.schedules import NoiseSchedule

Timestep = int | float | Tensor
Generator = torch.Generator | list[torch.Generator] | None


def constructor(theirs: type) -> Callable[..., None]:
    """`theirs.__init__` with two keywords more, in its signature too, which diffusers reads.

    diffusers_exact: True gives diffusers' numbers, its mistakes included; False the right ones.
    seed: noise of fastdiff.ops.philox_normal in place of a generator's.
    Either goes into the config only where it is not at its default.
    """
    signature = inspect.signature(theirs.__init__)  # type: ignore[misc]
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    rest = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    own = [
        inspect.Parameter("diffusers_exact", inspect.Parameter.KEYWORD_ONLY, default=True),
        inspect.Parameter("seed", inspect.Parameter.KEYWORD_ONLY, default=None),
    ]

    def __init__(
        self: Any, *args: Any, diffusers_exact: bool = True, seed: int | None = None, **kwargs: Any
    ) -> None:
        theirs.__init__(self, *args, **kwargs)  # type: ignore[misc]
        if not diffusers_exact:
            self.register_to_config(diffusers_exact=False)
        if seed is not None:
            self.register_to_config(seed=seed)
        self.diffusers_exact, self.seed = diffusers_exact, seed
        # A pipeline asks the object, not its class: saved, it names diffusers and opens anywhere.
        self.__module__ = theirs.__module__

    __init__.__signature__ = signature.replace(parameters=[*named, *own, *rest])  # type: ignore[attr-defined]
    return __init__


class Face:
    """Comes before diffusers' class among the bases."""

    diffusers_exact: bool = True
    seed: int | None = None
    config: Any
    timesteps: Tensor
    alphas_cumprod: Tensor
    num_inference_steps: int | None
    _thresholds = True  # whether diffusers' class knows thresholding

    @classmethod
    def adopt(cls, scheduler: Any) -> None:
        """Turn a scheduler of the class that this one stands in for into this one, in place."""
        theirs = type(scheduler)
        scheduler.__dict__.update(_adopted=theirs, __module__=theirs.__module__)
        scheduler.__class__ = cls

    def release(self) -> None:
        """Undo `adopt`, if that is where this scheduler comes from."""
        if "_adopted" in self.__dict__:
            theirs = self.__dict__["_adopted"]
            for name in ("_adopted", "__module__", "_read", "_rested_on", "_tables"):
                self.__dict__.pop(name, None)
            self.__class__ = theirs

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As diffusers' set_timesteps; without its t = -1 if not diffusers_exact."""
        super().set_timesteps(num_inference_steps, None, *args, **kwargs)  # type: ignore[misc]
        here = self.timesteps if self.diffusers_exact else self.timesteps[self.timesteps >= 0]
        self.timesteps = here.to(device)
        self.__dict__["_read"] = (self.timesteps, here.long().tolist())

    def _levels(self) -> Tensor:
        """alphas_cumprod [T] on the CPU: diffusers' own, or in float64 from the config."""
        if self.diffusers_exact:
            return self.alphas_cumprod.cpu()
        return torch.tensor(_schedule(self.config).alphas_cumprod)

    def _outermost(self, levels: Tensor, theirs: Tensor) -> Tensor:
        """alphas_cumprod beyond t = 0, which diffusers keeps as `theirs`: 1, or that of t = 0."""
        if self.diffusers_exact:
            return theirs.to(levels)
        return levels.new_ones(()) if theirs == 1 else levels[0]

    def _kept(self, key: Hashable, build: Callable[[], Any]) -> Any:
        """`build()`, kept until something that coefficients rest on is another object."""
        rests_on = (
            self.alphas_cumprod, self.timesteps, self.num_inference_steps, self.config,
            getattr(self, "sigmas", None),
        )  # fmt: skip
        before = self.__dict__.get("_rested_on", ())
        if len(before) != len(rests_on) or any(
            a is not b for a, b in zip(before, rests_on, strict=True)
        ):
            self.__dict__.update(_rested_on=rests_on, _tables={})
        tables: dict[Hashable, Any] = self.__dict__["_tables"]
        if key not in tables:
            with torch.inference_mode(False):  # a table may outlive the mode it was made in
                tables[key] = build()
        return tables[key]

    def _visited(self) -> list[int]:
        """The timesteps as numbers; read from a device only where they were set by hand."""
        of, visited = self.__dict__.get("_read", (None, []))
        if of is not self.timesteps:
            visited = self.timesteps.long().tolist()
            self.__dict__["_read"] = (self.timesteps, visited)
        return visited

    def _known(self, timestep: Timestep) -> int | None:
        """The timestep where it can be had without waiting for a device."""
        if not isinstance(timestep, Tensor):
            return int(timestep)
        if timestep.numel() != 1:
            return None
        if timestep.device.type == "cpu":
            return int(timestep)
        place = self._place(timestep)
        return None if place is None else self._visited()[place]

    def _place(self, timestep: Tensor) -> int | None:
        """Which of self.timesteps this is, by its address alone, if it is a view of one."""
        mine = self.timesteps
        address = mine.untyped_storage().data_ptr()
        if (
            address == 0
            or timestep.untyped_storage().data_ptr() != address
            or timestep.dtype != mine.dtype
            or mine.stride() != (1,)
        ):
            return None
        place = int(timestep.storage_offset()) - int(mine.storage_offset())
        return place if 0 <= place < len(mine) else None

    def _drawn(
        self,
        like: Tensor,
        generator: Generator,
        seed: int | None,
        sample_index: int | Tensor,
        dtype: torch.dtype,
    ) -> dict[str, Any]:
        """Noise for denoise_step: diffusers' own, or fastdiff's where there is a seed."""
        seed = self.seed if seed is None else seed
        if seed is None:
            from diffusers.utils.torch_utils import randn_tensor

            noise = randn_tensor(like.shape, generator=generator, device=like.device, dtype=dtype)
            return {"noise": noise}
        if generator is not None:
            raise ValueError("noise comes from a generator or from a seed; give one of them.")
        if not isinstance(sample_index, Tensor):
            sample_index = torch.arange(sample_index, sample_index + len(like), device=like.device)
        return {"seed": seed, "sample_index": sample_index.to(like.device)}

    def _denoised(
        self,
        sample: Tensor,
        model_output: Tensor,
        step: Tensor,
        table: Tensor,
        clip: float | None,
        **rest: Any,
    ) -> DenoiseStep:
        """denoise_step, thresholded as the config asks; by its reference where gradients flow."""
        if self._thresholds and self.config.thresholding:
            pred = predict_x_start(sample, model_output, step, table)
            quantile = magnitude_quantile(pred, self.config.dynamic_thresholding_ratio)
            # One call: where the greatest is below 1, torch.clamp takes the greatest.
            rest["threshold"] = quantile.clamp(1.0, self.config.sample_max_value)
            clip = 1.0
        call = {"clip": clip, "return_pred_x_start": True, **rest}
        if torch.is_grad_enabled() and (sample.requires_grad or model_output.requires_grad):
            with ops.use_reference("denoise_step"):
                return ops.denoise_step(sample, model_output, step, table, **call)
        return ops.denoise_step(sample, model_output, step, table, **call)


class TimestepFace(Face):
    """A scheduler whose coefficients follow from the timestep alone; rows stand in its order."""

    def _rows(self, device: torch.device, key: Hashable, columns: Callable[..., Any]) -> Tensor:
        """The table [R + 1, 9]: of each timestep in `_order`, and NaN for any other.

        columns(levels, t, before): t [R] and before [R] int64, the timestep and where it leads to.
        """

        def build() -> Tensor:
            order = self._order()
            t = torch.tensor(order)
            return table_of(columns(self._levels(), t, self._leads_to(t))).to(device)

        table: Tensor = self._kept((device, key), build)
        return table

    def _order(self) -> list[int]:
        """The timesteps that have a row: those visited, in that order."""
        return self._visited()

    def _leads_to(self, t: Tensor) -> Tensor:
        """The timestep after each, -1 after the last."""
        return torch.cat([t[1:], t.new_tensor([-1])])

    def _step(self, timestep: Timestep, sample: Tensor) -> Tensor:
        """The row of each sample [N], found without a look at a device's memory."""
        known = self._known(timestep)
        if known is not None:
            row = self._row_of().get(known)
            if row is None:
                raise ValueError(
                    f"timestep {known} is not among this scheduler's timesteps; call set_timesteps "
                    "with those that you visit."
                )
            return torch.full((len(sample),), row, device=sample.device)
        assert isinstance(timestep, Tensor)
        t = timestep.to(sample.device, torch.int64).reshape(-1)
        if len(t) not in (1, len(sample)):
            raise ValueError(
                f"timestep has the shape {list(timestep.shape)}; give one, or one for each of the "
                f"{len(sample)} samples."
            )
        places: Tensor = self._kept(("places", t.device), lambda: self._places(t.device))
        return places[t].expand(len(sample))

    def _row_of(self) -> dict[int, int]:
        rows: dict[int, int] = self._kept(
            "row of", lambda: {t: row for row, t in reversed([*enumerate(self._order())])}
        )
        return rows

    def _places(self, device: torch.device) -> Tensor:
        """[T + 1]: row of each timestep, and last that of -1; the NaN row where there is none."""
        T, rows = self.config.num_train_timesteps, self._row_of()
        missing = len(self._order())
        return torch.tensor([rows.get(t, missing) for t in [*range(T), -1]]).to(device)

    def _mixed(
        self, first: Tensor, second: Tensor, timesteps: Tensor, velocity: bool
    ) -> Tensor | None:
        """add_noise or get_velocity by ops.q_sample; None for what that does not take."""
        if first.shape != second.shape or not first.is_floating_point() or first.ndim < 2:
            return None

        def build() -> Tensor:
            levels = self._levels()
            # diffusers rounds to the samples' dtype first, and only then takes the roots.
            levels = levels.to(first.dtype) if self.diffusers_exact else levels
            signal, deviation = (levels**0.5).double(), ((1 - levels) ** 0.5).double()
            pair = (-deviation, signal) if velocity else (signal, deviation)
            return torch.stack([*pair, *pair], 1).to(first.device)

        table = self._kept((first.device, first.dtype, "mixed", velocity), build)
        t = timesteps.to(first.device, torch.int64).reshape(-1).expand(len(first))
        return ops.q_sample(first, t.contiguous(), table, noise=second).x_t

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t [N, ...] from x_0 and noise, as diffusers' add_noise; timesteps [N] or [1]."""
        mixed = self._mixed(original_samples, noise, timesteps, velocity=False)
        if mixed is None:
            return super().add_noise(original_samples, noise, timesteps)  # type: ignore[misc]
        return mixed

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v [N, ...] of x_0 and noise (Salimans and Ho 2022), as diffusers' get_velocity."""
        mixed = self._mixed(sample, noise, timesteps, velocity=True)
        if mixed is None:
            return super().get_velocity(sample, noise, timesteps)  # type: ignore[misc]
        return mixed


def table_of(columns: dict[str, Tensor]) -> Tensor:
    """[R + 1, 9] float64 for denoise_step; a last row of NaN, which no sample should meet."""
    length = max(column.numel() for column in columns.values())
    zero = torch.zeros(length, dtype=torch.float64)
    table = torch.stack([zero + columns.get(name, zero) for name in COLUMNS], 1)
    return torch.cat([table, torch.full((1, len(COLUMNS)), torch.nan, dtype=torch.float64)])


def prediction(levels: Tensor, prediction_type: str, what: str) -> tuple[Tensor, Tensor]:
    """(of_x, of_output) [R] float64: x_0 or epsilon from x_t at the levels and a model's output.

    `what` is "x_start" or "epsilon". Roots are taken in the levels' own precision.
    """
    signal, deviation = (levels**0.5).double(), ((1 - levels) ** 0.5).double()
    zero, one = torch.zeros_like(signal), torch.ones_like(signal)
    pairs = {
        # Without signal x_0 is infinite there; then its sign alone counts, through the clip.
        ("epsilon", "x_start"): (1 / signal.clamp(min=1e-30), -deviation / signal.clamp(min=1e-30)),
        ("epsilon", "epsilon"): (zero, one),
        ("sample", "x_start"): (zero, one),
        ("sample", "epsilon"): (1 / deviation, -signal / deviation),
        ("v_prediction", "x_start"): (signal, -deviation),
        ("v_prediction", "epsilon"): (deviation, signal),
    }
    if (prediction_type, what) not in pairs:
        known = ", ".join(sorted({kind for kind, _ in pairs}))
        raise ValueError(f"prediction_type is {prediction_type!r}; choose one of {known}.")
    return pairs[prediction_type, what]


def promoted(sample: Tensor, model_output: Tensor) -> Tensor:
    """The sample in the dtype that arithmetic with the model's output would give."""
    return sample.to(torch.promote_types(sample.dtype, model_output.dtype))


def _schedule(config: Any) -> NoiseSchedule:
    from fastdiff.checkpoints._scheduler import process_of

    return process_of(
        {k: v for k, v in config.items() if k not in ("variance_type", "prediction_type")},
        "this scheduler's config",
    ).schedule
