"""Each step beside the installed diffusers' own, over the options of the four classes.

diffusers makes its coefficients in float32; on samples in float64 nothing else is rounded, so that
a coefficient off by one unit in float32's last place shows. Its DPM-Solver computes in float32.
"""

from __future__ import annotations

import itertools
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import fastdiff

from .dummies import SHAPE, noise, ramp

PREDICTIONS = ("epsilon", "sample", "v_prediction")
CLIPS: dict[str, dict[str, Any]] = {
    "clip": {"clip_sample": True},
    "wide": {"clip_sample": True, "clip_sample_range": 2.5},
    "raw": {"clip_sample": False},
    "threshold": {"thresholding": True, "sample_max_value": 1.6},
    "narrow": {"thresholding": True, "sample_max_value": 0.5, "dynamic_thresholding_ratio": 0.8},
}
BETAS: dict[str, dict[str, Any]] = {
    "linear": {},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "given": {"trained_betas": torch.linspace(0.001, 0.03, 1000).tolist()},
    "zero": {"rescale_betas_zero_snr": True},
}
SPACINGS = {
    "leading": (10, {"timestep_spacing": "leading"}),
    "offset": (10, {"timestep_spacing": "leading", "steps_offset": 1}),
    "trailing": (7, {"timestep_spacing": "trailing"}),
    "linspace": (9, {"timestep_spacing": "linspace"}),
    "all": (1000, {}),
}


def pair(name: str, **config: Any) -> tuple[Any, Any]:
    return tuple(
        getattr(library, f"{name}Scheduler")(**config) for library in (fastdiff, diffusers)
    )  # type: ignore[return-value]


def some_model(channels: int = 3) -> Any:
    """A smooth function of x and t that is neither small nor of one sign."""

    def model(x: Tensor, t: Any) -> Tensor:
        wide = torch.cat([x, x.flip(1)], 1)[:, :channels]
        return 0.7 * torch.sin(2 * wide + float(t) / 150) + 0.3 * wide.roll(1, -1)

    return model


def assert_same(
    ours: Any, theirs: Any, *, steps: int = 12, channels: int = 3,
    dtype: torch.dtype = torch.float64, tolerance: float = 1e-10, **arguments: Any,
) -> None:  # fmt: skip
    """Both step from the same x_t, over the first timesteps and the last."""
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    model, x = some_model(channels), noise(0, dtype=dtype)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    timesteps = list(theirs.timesteps)
    if len(timesteps) > steps:
        timesteps = timesteps[: steps // 2] + timesteps[-steps // 2 :]
    for t in timesteps:
        out = model(x, t)
        found, expected = (
            scheduler.step(out, t, x, generator=g, **arguments) if "generator" in step_names(theirs)
            else scheduler.step(out, t, x, **arguments)
            for scheduler, g in zip((ours, theirs), generators, strict=True)
        )  # fmt: skip
        assert type(found) is type(expected)
        for name in expected:
            a, b = getattr(found, name), getattr(expected, name)
            assert a.dtype == b.dtype
            finite = b.isfinite()
            scale = 1 + b[finite].abs().max() if finite.any() else 1
            assert (a - b)[finite].abs().max() <= tolerance * scale, (int(t), name)
        x = expected.prev_sample.nan_to_num(0.0, 0.0, 0.0)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def step_names(scheduler: Any) -> tuple[str, ...]:
    return scheduler.step.__func__.__code__.co_varnames


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddpm(spacing: str, prediction_type: str, clip: str) -> None:
    steps, config = SPACINGS[spacing]
    ours, theirs = pair("DDPM", prediction_type=prediction_type, **config, **CLIPS[clip])
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(steps)
    assert_same(ours, theirs)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("variance_type", [
    "fixed_small", "fixed_small_log", "fixed_large", "other", "learned", "learned_range",
])  # fmt: skip
def test_ddpm_variances_and_betas(variance_type: str, betas: str) -> None:
    learned = variance_type.startswith("learned")
    prediction = "v_prediction" if betas == "zero" else "epsilon"
    ours, theirs = pair(
        "DDPM", variance_type=variance_type, prediction_type=prediction, **BETAS[betas]
    )
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(20)
    assert_same(ours, theirs, channels=6 if learned else 3)


def test_ddpm_before_set_timesteps_and_by_a_list_of_them() -> None:
    assert_same(*pair("DDPM"))
    ours, theirs = pair("DDPM")
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(timesteps=[900, 555, 554, 20, 3])
    assert_same(ours, theirs)


@pytest.mark.parametrize("name", ["DDPM", "DDIM", "DDIMInverse"])
def test_the_timestep_below_zero(name: str) -> None:
    """61 trailing steps are 62, the last at -1: a rounded range is one longer than asked for."""
    ours, theirs = pair(name, timestep_spacing="trailing")
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(61)
    assert -1 in theirs.timesteps.tolist()
    assert_same(ours, theirs)
    right = getattr(fastdiff, f"{name}Scheduler")(
        timestep_spacing="trailing", diffusers_exact=False
    )
    right.set_timesteps(61)
    assert len(right.timesteps) == 61 and right.timesteps.min() >= 0


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
def test_epsilon_where_there_is_no_signal(name: str) -> None:
    """x_0 is infinite there, and clipped."""
    ours, theirs = pair(name, rescale_betas_zero_snr=True)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(1000)
    x, out = noise(0), noise(1)
    found, expected = (s.step(out, 999, x, generator=torch.manual_seed(0)) for s in (ours, theirs))
    assert (expected.pred_original_sample.abs() == 1).all()
    assert torch.equal(found.pred_original_sample, expected.pred_original_sample)
    torch.testing.assert_close(found.prev_sample, expected.prev_sample)


@pytest.mark.parametrize("rederived", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_ddim(prediction_type: str, clip: str, eta: float, rederived: bool) -> None:
    for spacing in ("leading", "trailing", "linspace"):
        steps, config = SPACINGS[spacing]
        ours, theirs = pair("DDIM", prediction_type=prediction_type, **config, **CLIPS[clip])
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(steps)
        assert_same(ours, theirs, eta=eta, use_clipped_model_output=rederived)


@pytest.mark.parametrize("to_one", [False, True])
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_betas_and_spacings(spacing: str, betas: str, to_one: bool) -> None:
    steps, config = SPACINGS[spacing]
    if spacing == "offset" and betas == "zero":
        return
    prediction = "v_prediction" if betas == "zero" else "epsilon"
    ours, theirs = pair(
        "DDIM", prediction_type=prediction, set_alpha_to_one=to_one, **config, **BETAS[betas]
    )
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(steps)
    assert_same(ours, theirs, eta=0.5)


def test_ddim_with_its_noise_handed_in() -> None:
    ours, theirs = pair("DDIM")
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    x, out, z = noise(0), noise(1), noise(2)
    found, expected = (s.step(out, 500, x, eta=0.7, variance_noise=z) for s in (ours, theirs))
    torch.testing.assert_close(found.prev_sample, expected.prev_sample)
    with pytest.raises(ValueError, match="noise comes from"):
        ours.step(out, 500, x, eta=1.0, variance_noise=z, generator=torch.manual_seed(0))


@pytest.mark.parametrize("clip", ["clip", "wide", "raw"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("betas", BETAS)
def test_ddim_inverse(betas: str, prediction_type: str, clip: str) -> None:
    for spacing, to_one in itertools.product(("leading", "offset", "trailing"), (False, True)):
        steps, config = SPACINGS[spacing]
        ours, theirs = pair(
            "DDIMInverse", prediction_type=prediction_type, set_alpha_to_one=to_one,
            **config, **BETAS[betas], **CLIPS[clip],
        )  # fmt: skip
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(steps)
        assert_same(ours, theirs)


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    "algorithm", ["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"]
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_dpm_solver(algorithm: str, order: int, solver_type: str) -> None:
    if algorithm == "sde-dpmsolver" and order == 3:
        ours, _ = pair("DPMSolverMultistep", algorithm_type=algorithm, solver_order=3,
                       final_sigmas_type="sigma_min")  # fmt: skip
        ours.set_timesteps(20)
        with pytest.raises(ValueError, match="has no third order"):
            for t in ours.timesteps[:3]:
                ours.step(ramp(), t, ramp())
        return
    for prediction_type, thresholding, final, steps in itertools.product(
        PREDICTIONS, (False, True), ("sigma_min", "zero"), (8, 20)
    ):
        if final == "zero" and not algorithm.endswith("++"):
            continue
        ours, theirs = pair(
            "DPMSolverMultistep", algorithm_type=algorithm, solver_order=order,
            solver_type=solver_type, prediction_type=prediction_type, thresholding=thresholding,
            final_sigmas_type=final,
        )  # fmt: skip
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(steps)
        # One third of float32's digits are lost in (exp(-h) - 1 + h) / h^2 - 1/2, there as here.
        assert_same(
            ours, theirs, steps=steps, dtype=torch.float32, tolerance=2e-4 if order == 3 else 2e-5
        )


SIGMAS: dict[str, dict[str, Any]] = {
    "karras": {"use_karras_sigmas": True},
    "lu": {"use_lu_lambdas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "flow": {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
    "leading": {"timestep_spacing": "leading", "steps_offset": 1},
    "trailing": {"timestep_spacing": "trailing"},
    "clipped": {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"},
    "zero": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction",
             "timestep_spacing": "trailing"},
    "euler at the end": {"euler_at_final": True, "lower_order_final": False,
                         "final_sigmas_type": "sigma_min"},
    "full order at the end": {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
    "deis": {"algorithm_type": "deis", "solver_type": "logrho", "final_sigmas_type": "sigma_min"},
}  # fmt: skip


@pytest.mark.parametrize("sigmas", SIGMAS)
@pytest.mark.parametrize("steps", [1, 2, 3, 12, 25])
def test_dpm_solver_sigmas(sigmas: str, steps: int) -> None:
    ours, theirs = pair("DPMSolverMultistep", **SIGMAS[sigmas])
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(steps)
    assert_same(ours, theirs, steps=steps, dtype=torch.float32, tolerance=2e-5)


def test_dpm_solver_learned_variance_and_its_noise_handed_in() -> None:
    ours, theirs = pair(
        "DPMSolverMultistep", variance_type="learned_range", algorithm_type="sde-dpmsolver++"
    )
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(6)
    x = noise(0)
    for i, t in enumerate(theirs.timesteps):
        out = some_model(6)(x, t)
        found, expected = (
            s.step(out, t, x, variance_noise=noise(i)).prev_sample for s in (ours, theirs)
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        x = expected


def test_dpm_solver_counts_as_there() -> None:
    ours, theirs = pair("DPMSolverMultistep", use_karras_sigmas=True)
    for begin in (None, 4):
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(40)  # rounding makes some timesteps twins
            if begin is not None:
                scheduler.set_begin_index(begin)
        assert ours.begin_index == theirs.begin_index == begin
        for t in [*theirs.timesteps[:40:3], torch.tensor(12345)]:
            assert ours.index_for_timestep(t) == theirs.index_for_timestep(t)
            several = ours.index_for_timestep(torch.stack([t, t]))
            assert several.tolist() == [theirs.index_for_timestep(t)] * 2
        t = theirs.timesteps[3]
        noised = [s.add_noise(ramp(), noise(1), t[None]) for s in (ours, theirs)]
        torch.testing.assert_close(*noised)
        for scheduler in (ours, theirs):
            scheduler.step(noise(0), t, noise(1))
        assert ours.step_index == theirs.step_index
        noised = [s.add_noise(ramp(), noise(1), t[None].expand(4)) for s in (ours, theirs)]
        torch.testing.assert_close(*noised)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["DDPM", "DDIM", "DDIMInverse", "DPMSolverMultistep"])
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    ours, theirs = pair(name)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    # In half precision diffusers rounds after every operation, fastdiff once.
    # x_0 at T is a difference of numbers 150 times larger.
    coarse = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}
    assert_same(ours, theirs, dtype=dtype, tolerance=coarse[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
def test_noising(name: str, dtype: torch.dtype) -> None:
    ours, theirs = pair(name)
    x, z, t = noise(0, dtype=dtype), noise(1, dtype=dtype), torch.tensor([0, 5, 500, 999])
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    if dtype == torch.float64:
        tolerance = {"rtol": 1e-12, "atol": 1e-12}
    for method in ("add_noise", "get_velocity"):
        found, expected = (getattr(s, method)(x, z, t) for s in (ours, theirs))
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, **tolerance)
    # What the op does not take goes the original's way.
    broadcast = ours.add_noise(x, z[:1], t)
    torch.testing.assert_close(broadcast, theirs.add_noise(x, z[:1], t))


def test_lists_of_generators() -> None:
    ours, theirs = pair("DDPM")
    found, expected = (
        s.step(noise(0), 500, noise(1), generator=[torch.manual_seed(i) for i in range(4)])
        for s in (ours, theirs)
    )
    torch.testing.assert_close(found.prev_sample, expected.prev_sample)


@pytest.mark.parametrize("name", ["DDPM", "DDIM", "DPMSolverMultistep"])
def test_gradients_are_theirs(name: str) -> None:
    gradients = []
    for scheduler in pair(name):
        scheduler.set_timesteps(10)
        x, out = (noise(i).requires_grad_() for i in range(2))
        result = scheduler.step(
            out, scheduler.timesteps[4], x, generator=torch.manual_seed(0)
        ).prev_sample
        result.square().sum().backward()
        gradients.append((x.grad, out.grad))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_tuples() -> None:
    for name in ("DDPM", "DDIM", "DDIMInverse", "DPMSolverMultistep"):
        both = pair(name)
        for scheduler in both:
            scheduler.set_timesteps(10)
        t = both[1].timesteps[2]
        found, expected = (s.step(ramp(), t, ramp(), return_dict=False) for s in both)
        assert len(found) == len(expected)
        assert found[0].shape == SHAPE
