"""GaussianDiffusion and SpacedDiffusion beside the original's arithmetic, restated."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff.compat.guided_diffusion import gaussian_diffusion as gd
from fastdiff.compat.guided_diffusion import losses as gd_losses
from fastdiff.compat.guided_diffusion.respace import SpacedDiffusion, space_timesteps
from fastdiff.ops import _library
from tests.restated.guided_diffusion.gaussian_diffusion import Diffusion, named_betas, spaced

T = 60
MEANS, VARS = ("PREVIOUS_X", "START_X", "EPSILON"), ("LEARNED", "FIXED_SMALL", "FIXED_LARGE",
                                                     "LEARNED_RANGE")  # fmt: skip
LOSSES = ("MSE", "RESCALED_MSE", "KL", "RESCALED_KL")
TYPES = list(itertools.product(MEANS, VARS))


def pair(mean: str, var: str, loss: str = "MSE", sections: Any = "12", rescale: bool = False,
         schedule: str = "linear") -> tuple[SpacedDiffusion, Diffusion]:  # fmt: skip
    ours = SpacedDiffusion(
        space_timesteps(T, sections),
        betas=gd.get_named_beta_schedule(schedule, T),
        model_mean_type=gd.ModelMeanType[mean],
        model_var_type=gd.ModelVarType[var],
        loss_type=gd.LossType[loss],
        rescale_timesteps=rescale,
    )
    return ours, Diffusion(named_betas(schedule, T), mean, var, loss, rescale, spaced(T, sections))


def model_of(var: str) -> Callable[..., Tensor]:
    channels = 6 if var.startswith("LEARNED") else 3

    def model(x: Tensor, t: Tensor, shift: float = 0.0) -> Tensor:
        wide = torch.cat([x, x.flip(1)], 1)[:, :channels]
        return 0.7 * torch.sin(2 * wide + t.to(x.dtype).view(-1, 1, 1, 1) / 15 + shift)

    return model


def images(n: int = 3) -> Tensor:
    """Of 256 levels, both ends among them, in float64."""
    levels = torch.randint(256, (n, 3, 5, 4), generator=torch.Generator().manual_seed(0))
    levels[:, :, 0, 0], levels[:, :, 0, 1] = 0, 255
    return levels.double() / 127.5 - 1


def both(found: Callable[[], Any], expected: Callable[[], Any], tolerance: float = 1e-9) -> None:
    results = []
    for compute in (found, expected):
        torch.manual_seed(4)
        results.append(compute())
    ours, theirs = results
    if isinstance(theirs, tuple):
        theirs = {"sample": theirs[0], "pred_xstart": theirs[1]}
    if isinstance(theirs, Tensor):
        ours, theirs = {"": ours}, {"": theirs}
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=tolerance, atol=tolerance)


STEPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clipped": ({}, {}),
    "raw": ({"clip_denoised": False}, {"clip": False}),
    "denoised": ({"denoised_fn": lambda x: 0.9 * x}, {"denoised": lambda x: 0.9 * x}),
    "told": ({"model_kwargs": {"shift": 0.5}}, {"kwargs": {"shift": 0.5}}),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("mean", "var"), TYPES)
def test_one_step(mean: str, var: str, step: str) -> None:
    ours, theirs = pair(mean, var, rescale=step == "told", schedule="cosine")
    model, (options, restated) = model_of(var), STEPS[step]
    x, t = images() + 0.3, torch.tensor([0, 1, 11])
    both(lambda: ours.p_sample(model, x, t, **options),
         lambda: theirs.p_sample(model, x, t, **restated))  # fmt: skip
    for eta in (0.0, 0.6):
        both(lambda e=eta: ours.ddim_sample(model, x, t, **options, eta=e),
             lambda e=eta: theirs.ddim_sample(model, x, t, **restated, eta=e))  # fmt: skip
    both(lambda: ours.ddim_reverse_sample(model, x, t, **options),
         lambda: theirs.ddim_reverse_sample(model, x, t, **restated))  # fmt: skip


@pytest.mark.parametrize(("mean", "var"), TYPES)
def test_guided_steps(mean: str, var: str) -> None:
    """The mean's shift is made in float32, as there."""
    ours, theirs = pair(mean, var)
    model, x, t = model_of(var), images(), torch.tensor([0, 5, 11])

    def towards(x: Tensor, t: Tensor, shift: float = 0.0) -> Tensor:
        return 0.1 * torch.cos(x) + t.to(x.dtype).view(-1, 1, 1, 1) / 100

    both(lambda: ours.p_sample(model, x, t, cond_fn=towards),
         lambda: theirs.p_sample(model, x, t, cond=towards), 1e-6)  # fmt: skip
    both(lambda: ours.ddim_sample(model, x, t, cond_fn=towards),
         lambda: theirs.ddim_sample(model, x, t, cond=towards), 1e-6)  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("mean", "var"), TYPES)
def test_training_losses(mean: str, var: str, loss: str) -> None:
    ours, theirs = pair(mean, var, loss)
    model, x, t = model_of(var), images(), torch.tensor([0, 5, 11])
    both(lambda: ours.training_losses(model, x, t), lambda: theirs.training_losses(model, x, t))


def test_the_bound_does_not_train_the_mean() -> None:
    ours, _ = pair("EPSILON", "LEARNED_RANGE")
    out = torch.randn(3, 6, 5, 4, requires_grad=True)
    ours.training_losses(lambda *_: out, images().float(), torch.tensor([1, 2, 3]))[
        "vb"
    ].sum().backward()
    assert out.grad is not None and not out.grad[:, :3].any() and out.grad[:, 3:].all()


@pytest.mark.parametrize(("mean", "var"), TYPES)
def test_bits_per_dimension(mean: str, var: str) -> None:
    ours, theirs = pair(mean, var, sections="4")
    model, x = model_of(var), images()
    both(lambda: ours.calc_bpd_loop(model, x), lambda: theirs.calc_bpd_loop(model, x))


@pytest.mark.parametrize("name", ["p_sample_loop", "ddim_sample_loop"])
@pytest.mark.parametrize("var", ["FIXED_LARGE", "LEARNED_RANGE"])
@pytest.mark.parametrize("sections", ["12", "ddim12", "3,4,5", [6, 2]])
def test_loops(sections: Any, var: str, name: str) -> None:
    ours, theirs = pair("EPSILON", var, sections=sections)
    model, shape = model_of(var), (2, 3, 5, 4)
    both(lambda: getattr(ours, name)(model, shape, device="cpu"),
         lambda: getattr(theirs, name)(model, shape), 2e-4)  # fmt: skip
    progressive = getattr(ours, f"{name}_progressive")
    seen = list(progressive(model, shape, noise=torch.zeros(shape), device="cpu"))
    assert len(seen) == ours.num_timesteps and set(seen[0]) == {"sample", "pred_xstart"}


def test_a_loop_shows_its_progress(capsys: pytest.CaptureFixture[str]) -> None:
    ours, _ = pair("EPSILON", "FIXED_LARGE", sections="2")
    ours.ddim_sample_loop(model_of("FIXED_LARGE"), (1, 3, 4, 4), device="cpu", progress=True)
    assert "sampling" in capsys.readouterr().err


def test_attributes_are_numpys() -> None:
    ours, theirs = pair("EPSILON", "FIXED_SMALL", sections="3,4,5", schedule="cosine")
    assert ours.timestep_map == theirs.use and ours.num_timesteps == 12
    assert ours.original_num_steps == T and ours.use_timesteps == set(theirs.use)
    a = theirs.a
    for name, expected in {
        "betas": theirs.betas, "alphas_cumprod": a, "alphas_cumprod_prev": theirs.before,
        "alphas_cumprod_next": np.append(a[1:], 0), "sqrt_alphas_cumprod": a**0.5,
        "sqrt_one_minus_alphas_cumprod": (1 - a) ** 0.5,
        "log_one_minus_alphas_cumprod": np.log(1 - a), "sqrt_recip_alphas_cumprod": a**-0.5,
        "sqrt_recipm1_alphas_cumprod": (1 / a - 1) ** 0.5, "posterior_variance": theirs.small,
        "posterior_log_variance_clipped": np.log(theirs.small_clipped),
    }.items():  # fmt: skip
        found = getattr(ours, name)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_gaussians_of_q() -> None:
    ours, theirs = pair("EPSILON", "FIXED_SMALL")
    x, t = images(), torch.tensor([0, 3, 11])
    mean, variance, log_variance = ours.q_mean_variance(x, t)
    a = theirs.at(theirs.a, t, x)
    torch.testing.assert_close(mean, a**0.5 * x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(variance, (1 - a).expand_as(x), rtol=1e-12, atol=0)
    torch.testing.assert_close(log_variance, variance.log(), rtol=1e-12, atol=1e-12)
    mean, variance, _ = ours.q_posterior_mean_variance(x, x.flip(0), t)
    torch.testing.assert_close(mean, theirs.posterior_mean(x, x.flip(0), t), rtol=1e-9, atol=1e-9)
    assert variance.shape == x.shape
    both(lambda: ours.q_sample(x, t), lambda: theirs.q_sample(x, t, torch.randn_like(x)))


def test_a_step_is_one_op_unless_somebody_has_a_hand_in_it() -> None:
    if not _library.native_kernel("denoise_step", "CPU"):
        pytest.fail("the native library is not built")
    ours, _ = pair("EPSILON", "FIXED_LARGE")
    model, x, t = model_of("FIXED_LARGE"), images().float(), torch.tensor([0, 3, 11])
    before = _library.native_calls("denoise_step", "CPU")
    ours.p_sample(model, x, t)
    ours.ddim_sample(model, x, t)
    assert _library.native_calls("denoise_step", "CPU") == before + 2

    class Shifted(SpacedDiffusion):
        def p_mean_variance(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
            p = super().p_mean_variance(*args, **kwargs)
            return p | {"mean": p["mean"] + 1, "pred_xstart": p["pred_xstart"] + 1}

    shifted = Shifted(ours.use_timesteps, betas=gd.get_named_beta_schedule("linear", T),
                      model_mean_type=ours.model_mean_type, model_var_type=ours.model_var_type,
                      loss_type=ours.loss_type)  # fmt: skip
    torch.manual_seed(0)
    plain = ours.p_sample(model, x, t)["sample"]
    torch.manual_seed(0)
    torch.testing.assert_close(shifted.p_sample(model, x, t)["sample"], plain + 1)
    assert not torch.equal(shifted.ddim_sample(model, x, t)["sample"], plain)


def test_steps_carry_gradients() -> None:
    ours, theirs = pair("EPSILON", "FIXED_LARGE")
    model, t = model_of("FIXED_LARGE"), torch.tensor([0, 3, 11])
    gradients = []
    for process in (ours, theirs):
        x = images().requires_grad_()
        torch.manual_seed(1)
        done = process.p_sample(model, x, t)
        (done["sample"] if isinstance(done, dict) else done[0]).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)


def test_what_does_not_fit_is_refused() -> None:
    ours, _ = pair("EPSILON", "LEARNED_RANGE")
    x, t = images(), torch.tensor([0, 3, 11])
    with pytest.raises(ValueError, match="takes 6 channels for x of 3"):
        ours.p_sample(model_of("FIXED_LARGE"), x, t)
    with pytest.raises(ValueError, match="eta must be 0"):
        ours.ddim_reverse_sample(model_of("LEARNED_RANGE"), x, t, eta=0.5)
    with pytest.raises(NotImplementedError, match="unknown beta schedule: sqrt"):
        gd.get_named_beta_schedule("sqrt", 10)
    with pytest.raises(ValueError, match="no integer stride"):
        space_timesteps(100, "ddim37")


def test_signatures_are_the_originals() -> None:
    sampling = ["model", "shape", "noise", "clip_denoised", "denoised_fn", "cond_fn",
                "model_kwargs", "device", "progress"]  # fmt: skip
    step = ["model", "x", "t", "clip_denoised", "denoised_fn", "cond_fn", "model_kwargs"]
    for name, parameters in {
        "q_mean_variance": ["x_start", "t"],
        "q_sample": ["x_start", "t", "noise"],
        "q_posterior_mean_variance": ["x_start", "x_t", "t"],
        "p_mean_variance": ["model", "x", "t", "clip_denoised", "denoised_fn", "model_kwargs"],
        "condition_mean": ["cond_fn", "p_mean_var", "x", "t", "model_kwargs"],
        "condition_score": ["cond_fn", "p_mean_var", "x", "t", "model_kwargs"],
        "p_sample": step,
        "ddim_sample": [*step, "eta"],
        "ddim_reverse_sample": [*[p for p in step if p != "cond_fn"], "eta"],
        "p_sample_loop": sampling,
        "p_sample_loop_progressive": sampling,
        "ddim_sample_loop": [*sampling, "eta"],
        "ddim_sample_loop_progressive": [*sampling, "eta"],
        "training_losses": ["model", "x_start", "t", "model_kwargs", "noise"],
        "calc_bpd_loop": ["model", "x_start", "clip_denoised", "model_kwargs"],
    }.items():
        found = list(inspect.signature(getattr(gd.GaussianDiffusion, name)).parameters)
        assert found == ["self", *parameters], name


def test_betas_of_alpha_bar() -> None:
    found = gd.betas_for_alpha_bar(10, lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2)
    np.testing.assert_allclose(found, named_betas("cosine", 10), rtol=1e-12)


def test_losses_go_by_hos_approximation() -> None:
    x, mean = images(), 0.5 * images()
    found = gd_losses.discretized_gaussian_log_likelihood(
        x, means=mean, log_scales=torch.full_like(x, -2.0)
    )
    cdf = gd_losses.approx_standard_normal_cdf
    scale = np.exp(2)
    inside = cdf(scale * (x - mean + 1 / 255)) - cdf(scale * (x - mean - 1 / 255))
    middle = x.abs() < 0.999
    torch.testing.assert_close(found[middle], inside[middle].log())
    assert abs(float(cdf(torch.tensor(1.0))) - 0.8413447) < 4e-4
    assert float(gd_losses.normal_kl(torch.zeros(1), 0.0, 1.0, 0.0)) == 0.5
