"""The training objectives against formulas of their own, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff import NoiseSchedule
from fastdiff.diffusion import convert, q_sample
from fastdiff.losses import min_snr_weights, simple_loss, training_losses
from fastdiff.ops import philox_normal

T = 50
LINEAR = NoiseSchedule.linear(T, 1e-3, 0.2)
t_ALL = torch.tensor([0, 1, 2, 25, 48, 49])
KINDS = ["epsilon", "x_start", "v", "posterior_mean"]


def images(N: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Clean images of 256 levels, and noise."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (N, 2, 4, 4), generator=generator)
    noise = torch.randn(N, 2, 4, 4, dtype=torch.float64, generator=generator)
    return (levels / 127.5 - 1).to(dtype), noise.to(dtype)


def outputs(N: int = 6, seed: int = 1) -> Tensor:
    """A model's mean and variance, the latter a little beyond [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, 4, 4, 4, dtype=torch.float64, generator=generator)


def losses(output: Tensor, t: Tensor = t_ALL, **options: Any) -> Any:
    x_start, noise = images(len(t))
    return training_losses(lambda x_t, t: output, x_start, t, noise, schedule=LINEAR, **options)


GRID = np.linspace(-30, 30, 200_001)


def density(x: np.ndarray, mean: float, variance: float) -> np.ndarray:
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


@pytest.mark.parametrize("step", [1, 2, 25, 49])
@pytest.mark.parametrize(
    "variance_type", ["fixed_small", "fixed_large", "learned_range", "learned"]
)
def test_each_kl_is_the_integral_over_the_forward_process(step: int, variance_type: str) -> None:
    """Bayes' rule on a grid: q(x_{t-1} | x_t, x_0) from q(x_t | x_{t-1}) and q(x_{t-1} | x_0)."""
    betas = np.linspace(1e-3, 0.2, T)
    abar, beta = np.cumprod(1 - betas), betas[step]
    x0, z, eps, raw = 0.6, -0.8, -0.3, 0.4
    x_t = math.sqrt(abar[step]) * x0 + math.sqrt(1 - abar[step]) * z
    joint = density(x_t, math.sqrt(1 - beta) * GRID, beta) * density(
        GRID, math.sqrt(abar[step - 1]) * x0, 1 - abar[step - 1]
    )
    q = joint / np.trapezoid(joint, GRID)
    small = beta * (1 - abar[step - 1]) / (1 - abar[step])
    variance = {
        "fixed_small": small,
        "fixed_large": beta,
        "learned": math.exp(raw),
        "learned_range": math.exp((1 + raw) / 2 * math.log(beta) + (1 - raw) / 2 * math.log(small)),
    }[variance_type]
    # Ho et al. 2020, eq. 11.
    mean = (x_t - beta / math.sqrt(1 - abar[step]) * eps) / math.sqrt(1 - beta)
    p = density(GRID, mean, variance)
    seen = (q > 0) & (p > 0)
    q, p = np.where(seen, q, 1), np.where(seen, p, 1)
    kl = np.trapezoid(q * np.log(q / p), GRID)

    learned = variance_type.startswith("learned")
    output = torch.tensor([eps, raw] if learned else [eps], dtype=torch.float64).view(1, -1, 1)
    found = training_losses(
        lambda x_t, t: output,
        torch.full((1, 1, 1), x0, dtype=torch.float64),
        torch.tensor([step]),
        torch.full((1, 1, 1), z, dtype=torch.float64),
        schedule=LINEAR,
        variance_type=variance_type,
        objective="vlb",
    )
    assert float(found.vlb) == pytest.approx(kl / math.log(2), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_hybrid_is_the_simple_loss_and_the_bound(kind: str) -> None:
    output = outputs()
    options = {"prediction_type": kind, "variance_type": "learned_range"}
    hybrid = losses(output, objective="hybrid", **options)
    simple = losses(output, objective="simple", **options)
    vlb = losses(output, objective="vlb", **options)
    assert simple.vlb is None
    assert torch.equal(simple.loss, simple.simple) and torch.equal(vlb.loss, vlb.vlb)
    for other in (simple, vlb):
        torch.testing.assert_close(other.simple, hybrid.simple, rtol=0, atol=0)
    torch.testing.assert_close(vlb.vlb, hybrid.vlb, rtol=0, atol=0)
    torch.testing.assert_close(hybrid.loss, hybrid.simple + 0.001 * T * hybrid.vlb)
    heavy = losses(output, objective="hybrid", vlb_weight=0.5, **options)
    torch.testing.assert_close(heavy.loss, hybrid.simple + 0.5 * T * hybrid.vlb)
    rescaled = losses(output, objective="vlb", rescaled=True, **options)
    torch.testing.assert_close(rescaled.loss, T * vlb.vlb)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_trains_the_variance_alone(kind: str) -> None:
    output = outputs().requires_grad_()
    options = {"prediction_type": kind, "variance_type": "learned_range", "objective": "hybrid"}
    found = losses(output, **options)
    (of_vlb,) = torch.autograd.grad(found.vlb.sum(), output, retain_graph=True)
    assert not of_vlb[:, :2].any()
    assert (of_vlb[:, 2:].flatten(1).abs().amax(1) > 0).all()
    (of_loss,) = torch.autograd.grad(found.loss.sum(), output, retain_graph=True)
    (of_simple,) = torch.autograd.grad(found.simple.sum(), output)
    assert torch.equal(of_loss[:, :2], of_simple[:, :2]) and not of_simple[:, 2:].any()


def test_the_whole_bound_trains_the_mean_too() -> None:
    output = outputs().requires_grad_()
    found = losses(output, variance_type="learned_range", objective="vlb")
    (gradient,) = torch.autograd.grad(found.loss.sum(), output)
    assert (gradient.flatten(1).abs().amax(1) > 0).all() and gradient[:, :2].any()


def test_the_hybrid_losses_gradient_of_the_variance_is_a_finite_difference() -> None:
    output, direction = outputs(), torch.zeros_like(outputs())
    direction[:, 2:] = outputs(seed=5)[:, 2:]
    options = {"variance_type": "learned_range", "objective": "hybrid"}

    def at(step: float) -> Tensor:
        return losses(output + step * direction, **options).loss

    slope = (at(1e-5) - at(-1e-5)) / 2e-5
    leaf = output.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses(leaf, **options).loss.sum(), leaf)
    torch.testing.assert_close(
        (gradient * direction).flatten(1).sum(1), slope, rtol=1e-5, atol=1e-7
    )


def snr_weight_of_diffusers(prediction_type: str, t: Tensor, gamma: float) -> Tensor:
    """As diffusers' training examples have it, from the betas alone."""
    abar = torch.from_numpy(np.cumprod(1 - np.linspace(1e-3, 0.2, T)))[t]
    snr = abar / (1 - abar)
    weight = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    if prediction_type == "epsilon":
        return weight / snr
    return weight / (snr + 1) if prediction_type == "v" else weight


@pytest.mark.parametrize("gamma", [0.5, 5.0])
@pytest.mark.parametrize("kind", ["epsilon", "x_start", "v"])
def test_min_snr_weighs_as_diffusers_does(kind: str, gamma: float) -> None:
    found = losses(outputs()[:, :2], prediction_type=kind, weighting="min_snr", min_snr_gamma=gamma)
    expected = found.simple * snr_weight_of_diffusers(kind, t_ALL, gamma)
    torch.testing.assert_close(found.loss, expected, rtol=1e-10, atol=0)
    plain = losses(outputs()[:, :2], prediction_type=kind)
    torch.testing.assert_close(found.simple, plain.loss)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, T - 1),
    st.sampled_from(KINDS),
    st.sampled_from([LINEAR, NoiseSchedule.cosine(T)]),
    st.floats(0.01, 100),
)
def test_min_snr_is_the_same_loss_whatever_is_predicted(
    step: int, kind: str, schedule: NoiseSchedule, gamma: float
) -> None:
    x_start, noise = images(1)
    t, guess = torch.tensor([step]), outputs(1)[:, :2]
    x_t = q_sample(schedule, x_start, t, noise)
    same = convert(schedule, guess, x_t, t, source="x_start", target=kind)
    options: dict[str, Any] = {"weighting": "min_snr", "min_snr_gamma": gamma}
    options |= {"schedule": schedule}
    as_kind, as_x_start = (
        training_losses(
            lambda x_t, t, out=out: out, x_start, t, noise, prediction_type=k, **options
        )
        for out, k in ((same, kind), (guess, "x_start"))
    )
    torch.testing.assert_close(as_kind.loss, as_x_start.loss, rtol=1e-6, atol=1e-9)


def test_min_snr_without_a_signal() -> None:
    schedule = NoiseSchedule.linear(T).rescale_zero_terminal_snr()
    assert min_snr_weights(schedule, "epsilon")[-1] == 1
    assert min_snr_weights(schedule, "v")[-1] == 0
    for kind in KINDS:
        assert np.isfinite(min_snr_weights(schedule, kind)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("objective", ["hybrid", "vlb"])
def test_short_outputs_are_judged_in_float32(objective: str, dtype: torch.dtype) -> None:
    x_start, noise = images(dtype=torch.float32)
    output = outputs().to(dtype).requires_grad_()
    options: dict[str, Any] = {"schedule": LINEAR, "objective": objective}
    options |= {"variance_type": "learned_range"}
    found = training_losses(lambda x_t, t: output, x_start, t_ALL, noise, **options)
    wide = output.detach().double()
    exact = training_losses(lambda x_t, t: wide, x_start.double(), t_ALL, noise.double(), **options)
    assert found.loss.dtype == torch.float32 and exact.loss.dtype == torch.float64
    torch.testing.assert_close(found.loss.double(), exact.loss, rtol=1e-4, atol=1e-6)
    found.loss.sum().backward()
    assert output.grad is not None and output.grad.isfinite().all()


def test_a_term_that_is_not_asked_for_spoils_no_gradient() -> None:
    """A tiny variance at t = 0: the KL, which counts from t = 1 on, would be infinite."""
    x_start, noise = images(2, torch.float32)
    output = torch.full((2, 4, 4, 4), -100.0, requires_grad=True)
    found = training_losses(
        lambda x_t, t: output, x_start, torch.tensor([0, 0]), noise, schedule=LINEAR,
        variance_type="learned", objective="vlb",
    )  # fmt: skip
    found.loss.sum().backward()
    assert found.loss.isfinite().all()
    assert output.grad is not None and output.grad.isfinite().all()


def test_an_improbable_level_keeps_its_digits_in_float32() -> None:
    """Far above the mean as far below it."""
    from fastdiff.losses import discretized_gaussian_log_likelihood

    x = torch.tensor([0.9, -0.9]).double().mul(127.5).round().div(127.5)
    mean, log_scale = torch.zeros(2).double(), torch.full((2,), math.log(0.18)).double()
    exact = discretized_gaussian_log_likelihood(x, mean, log_scale)
    found = discretized_gaussian_log_likelihood(x.float(), mean.float(), log_scale.float())
    assert float(exact.max()) < -12
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)


def test_noise_is_philox_normal_and_labels_reach_the_model() -> None:
    x_start, labels, seen = images(dtype=torch.float32)[0], torch.arange(6), {}
    index = torch.arange(6) + 70

    def model(x_t: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        seen.update(x_t=x_t, labels=class_labels)
        return torch.zeros_like(x_t)

    found = training_losses(
        model, x_start, t_ALL, schedule=LINEAR, class_labels=labels, seed=5, sample_index=index,
        draw=9, stream=2,
    )  # fmt: skip
    noise = philox_normal(x_start.shape, 5, sample_index=index, draw=9, stream=2)
    torch.testing.assert_close(seen["x_t"], q_sample(LINEAR, x_start, t_ALL, noise))
    assert seen["labels"] is labels
    torch.testing.assert_close(found.loss, noise.square().mean((1, 2, 3)))
    same = simple_loss(
        model, x_start, t_ALL, schedule=LINEAR, class_labels=labels, seed=5, sample_index=index,
        draw=9, stream=2,
    )  # fmt: skip
    assert torch.equal(same, found.loss)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "kl"}, "unknown objective 'kl'"),
        ({"weighting": "snr"}, "unknown weighting 'snr'"),
        ({"prediction_type": "noise"}, "unknown prediction_type"),
        ({"variance_type": "big"}, "unknown variance_type"),
        ({"objective": "hybrid"}, "trains a learned variance"),
        ({"rescaled": True}, "rescaled belongs to objective 'vlb'"),
        ({"objective": "vlb", "weighting": "min_snr"}, "of L_simple"),
        ({"weighting": "min_snr", "min_snr_gamma": 0.0}, "above 0, got 0"),
        ({"variance_type": "learned"}, r"returned \[6, 2, 4, 4\]; expected \[6, 4, 4, 4\]"),
    ],
)
def test_what_does_not_fit_is_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        losses(outputs()[:, :2], **options)
