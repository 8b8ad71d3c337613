"""The Gaussian process against Bayes' rule, autograd, definitions in float64, and diffusers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.diffusion import (
    PREDICTION_TYPES,
    QUANTITIES,
    VARIANCE_TYPES,
    DynamicThresholding,
    clip_x_start,
    convert,
    p_mean_variance,
    predict_x_start,
    prediction_target,
    q_posterior_mean_variance,
    q_sample,
    q_step,
)
from fastdiff.schedules import NoiseSchedule

T = 1000
LINEAR, COSINE = NoiseSchedule.linear(T), NoiseSchedule.cosine(T)
ABAR = np.cumprod(1 - np.linspace(1e-4, 0.02, T))


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def descriptions(x_start: Tensor, noise: Tensor, t: int) -> dict[str, Tensor]:
    """Every kind of description of one x_t, each by its own definition."""
    a, beta = ABAR[t], 1e-4 + (0.02 - 1e-4) * t / (T - 1)
    before = ABAR[t - 1] if t else 1.0
    x_t = math.sqrt(a) * x_start + math.sqrt(1 - a) * noise
    posterior_precision = (1 - beta) / beta + (1 / (1 - before) if t else math.inf)
    mean = x_start
    if t:
        likelihood = math.sqrt(1 - beta) / beta * x_t
        prior = math.sqrt(before) / (1 - before) * x_start
        mean = (likelihood + prior) / posterior_precision
    return {
        "x_t": x_t,
        "x_start": x_start,
        "epsilon": noise,
        "v": math.sqrt(a) * noise - math.sqrt(1 - a) * x_start,
        "posterior_mean": mean,
        "score": -(x_t - math.sqrt(a) * x_start) / (1 - a),
    }


@settings(deadline=None)
@given(st.lists(st.integers(0, T - 1), min_size=1, max_size=5))
def test_q_sample_takes_each_samples_own_level(levels: list[int]) -> None:
    x, noise = draw(len(levels), 2, 3), draw(len(levels), 2, 3, seed=1)
    x_t = q_sample(LINEAR, x, torch.tensor(levels), noise)
    for i, t in enumerate(levels):
        wanted = descriptions(x[i], noise[i], t)["x_t"]
        torch.testing.assert_close(x_t[i], wanted, rtol=1e-12, atol=0)


def test_steps_compose_to_q_sample() -> None:
    """t single steps shrink x_0 and pile up variance as one jump does."""
    signal, variance = torch.ones(1, 1, dtype=torch.float64), 0.0
    one, none = torch.ones_like(signal), torch.zeros_like(signal)
    for t in range(T):
        level = torch.tensor([t])
        shrink = float(q_step(LINEAR, one, level, none))
        variance = shrink**2 * variance + float(q_step(LINEAR, none, level, one)) ** 2
        signal = signal * shrink
    top = torch.tensor([T - 1])
    assert float(signal) == pytest.approx(float(q_sample(LINEAR, one, top, none)), rel=1e-10)
    assert math.sqrt(variance) == pytest.approx(float(q_sample(LINEAR, none, top, one)), rel=1e-10)


@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_posterior_is_bayes_rule(t: int) -> None:
    x, noise = draw(3, 4), draw(3, 4, seed=1)
    known = descriptions(x, noise, t)
    posterior = q_posterior_mean_variance(LINEAR, x, known["x_t"], torch.full((3,), t))
    torch.testing.assert_close(posterior.mean, known["posterior_mean"], rtol=1e-9, atol=1e-11)
    if t == 0:
        assert (posterior.variance == 0).all()
        t = 1
    beta = LINEAR.betas[t]
    variance = 1 / ((1 - beta) / beta + 1 / (1 - ABAR[t - 1]))
    np.testing.assert_allclose(posterior.log_variance.exp(), variance, rtol=1e-9)


@pytest.mark.parametrize("source", QUANTITIES)
@pytest.mark.parametrize("target", QUANTITIES)
@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_conversions_meet_the_definitions(source: str, target: str, t: int) -> None:
    known = descriptions(draw(2, 3), draw(2, 3, seed=1), t)
    level = torch.full((2,), t)
    got = convert(LINEAR, known[source], known["x_t"], level, source=source, target=target)
    torch.testing.assert_close(got, known[target], rtol=1e-9, atol=1e-9)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(QUANTITIES),
    st.sampled_from(QUANTITIES),
    st.integers(0, T - 2),
    st.sampled_from([LINEAR, NoiseSchedule.scaled_linear(T), NoiseSchedule.laplace(T), COSINE]),
)
def test_conversions_go_and_return(
    source: str, target: str, t: int, schedule: NoiseSchedule
) -> None:
    value, x_t, level = draw(2, 3), draw(2, 3, seed=1), torch.tensor([t, t])
    there = convert(schedule, value, x_t, level, source=source, target=target)
    back = convert(schedule, there, x_t, level, source=target, target=source)
    torch.testing.assert_close(back, value, rtol=1e-6, atol=1e-6)


def test_score_is_the_gradient_of_the_log_density() -> None:
    x, t = draw(2, 3), torch.tensor([10, 700])
    x_t = q_sample(LINEAR, x, t, draw(2, 3, seed=1)).requires_grad_()
    a = torch.tensor(ABAR)[t].view(2, 1)
    density = torch.distributions.Normal(a.sqrt() * x, (1 - a).sqrt()).log_prob(x_t)
    (gradient,) = torch.autograd.grad(density.sum(), x_t)
    score = convert(LINEAR, x, x_t.detach(), t, source="x_start", target="score")
    torch.testing.assert_close(score, gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_training_target(kind: str, t: int) -> None:
    x, noise = draw(2, 3), draw(2, 3, seed=1)
    target = prediction_target(LINEAR, x, noise, torch.full((2,), t), kind)
    torch.testing.assert_close(target, descriptions(x, noise, t)[kind], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_zero_terminal_snr(prediction_type: str) -> None:
    """At the level without signal v and x_start still tell x_0; epsilon is refused."""
    schedule = COSINE.rescale_zero_terminal_snr()
    x, noise, t = draw(2, 3), draw(2, 3, seed=1), torch.tensor([T - 1, T - 1])
    x_t = q_sample(schedule, x, t, noise)
    assert (x_t == noise).all()
    output = prediction_target(schedule, x, noise, t, prediction_type)
    if prediction_type == "epsilon":
        with pytest.raises(ValueError, match=r"t = 999 alphas_cumprod is 0.*predicts v or x_start"):
            predict_x_start(schedule, output, x_t, t, prediction_type)
        predict_x_start(schedule, output, x_t, t - 1, prediction_type)
        return
    got = predict_x_start(schedule, output, x_t, t, prediction_type)
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)
    back = convert(schedule, output, x_t, t, source=prediction_type, target="epsilon")
    torch.testing.assert_close(back, noise)


DIFFUSERS_NAME = {"epsilon": "epsilon", "x_start": "sample", "v": "v_prediction"}


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
@pytest.mark.parametrize("prediction_type", DIFFUSERS_NAME)
def test_p_mean_variance_is_diffusers_step(prediction_type: str, variance_type: str) -> None:
    """Their step is mean + deviation * noise: seen at two noises it tells both, in float64."""
    from diffusers import DDPMScheduler

    name = DIFFUSERS_NAME[prediction_type]
    peer = DDPMScheduler(T, variance_type=variance_type, prediction_type=name)
    peer.betas = torch.tensor(LINEAR.betas)
    peer.alphas = 1 - peer.betas
    peer.alphas_cumprod = peer.alphas.cumprod(0)
    learned = variance_type.startswith("learned")
    x_t, output = draw(1, 2, 4, 4), draw(1, 4 if learned else 2, 4, 4, seed=1) * 0.5
    for t in (1, 2, 500, 999):
        ours = p_mean_variance(
            LINEAR,
            output,
            x_t,
            torch.tensor([t]),
            prediction_type=prediction_type,
            variance_type=variance_type,
        )
        noise = draw(1, 2, 4, 4, seed=7)
        theirs = peer.step(output, t, x_t, generator=torch.Generator().manual_seed(7))
        pred = theirs.pred_original_sample
        torch.testing.assert_close(ours.pred_x_start, pred, rtol=1e-9, atol=1e-9)
        # Their "learned" takes the root of the raw output: NaN where it is negative.
        if variance_type != "learned":
            step = ours.mean + ours.variance.sqrt() * noise
            torch.testing.assert_close(step, theirs.prev_sample, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.variance, ours.log_variance.exp(), rtol=1e-9, atol=0)


def test_learned_range_spans_the_two_bounds() -> None:
    x_t, t = draw(2, 1, 2), torch.tensor([0, 600])
    for raw, bound in ((-1.0, LINEAR.posterior_variance[[1, 600]]), (1.0, LINEAR.betas[[0, 600]])):
        output = torch.cat([x_t, torch.full_like(x_t, raw)], 1)
        got = p_mean_variance(LINEAR, output, x_t, t, variance_type="learned_range").variance
        np.testing.assert_allclose(got[:, 0, 0], bound, rtol=1e-9)


def test_learned_variance_is_the_exponential_of_the_output() -> None:
    x_t, raw, t = draw(2, 1, 2), draw(2, 1, 2, seed=2), torch.tensor([0, 600])
    got = p_mean_variance(LINEAR, torch.cat([x_t, raw], 1), x_t, t, variance_type="learned")
    torch.testing.assert_close(got.variance, raw.exp(), rtol=1e-12, atol=0)
    torch.testing.assert_close(got.log_variance, raw, rtol=1e-12, atol=0)


def test_clip_bounds() -> None:
    x = torch.tensor([[-9.0, -0.5, 0.7, 1.5]])
    assert clip_x_start(x, True).tolist() == [[-1.0, -0.5, pytest.approx(0.7), 1.0]]
    assert clip_x_start(x, 1.25).tolist() == [[-1.25, -0.5, pytest.approx(0.7), 1.25]]
    assert clip_x_start(x, False) is x
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="clip must be True, False, a positive number"):
            clip_x_start(x, bad)


@pytest.mark.parametrize("max_value", [1.0, 2.0, 100.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_dynamic_thresholding_is_diffusers(max_value: float, scale: float) -> None:
    from diffusers import DDPMScheduler

    peer = DDPMScheduler(thresholding=True, sample_max_value=max_value)
    x = draw(3, 2, 9, 9) * scale
    got = clip_x_start(x, DynamicThresholding(max_value=max_value))
    torch.testing.assert_close(got, peer._threshold_sample(x), rtol=1e-6, atol=1e-9)


def test_dynamic_thresholding_refuses_bad_options() -> None:
    with pytest.raises(ValueError, match=r"percentile must lie in \(0, 1\]"):
        DynamicThresholding(percentile=1.5)
    with pytest.raises(ValueError, match="max_value must be at least 1"):
        DynamicThresholding(max_value=0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_rounds_the_result_alone(dtype: torch.dtype) -> None:
    x, noise, t = draw(4, 8).to(dtype), draw(4, 8, seed=1).to(dtype), torch.tensor([0, 3, 500, 999])
    exact = q_sample(LINEAR, x.double(), t, noise.double())
    got = q_sample(LINEAR, x, t, noise)
    assert got.dtype == dtype
    unit = torch.finfo(dtype).eps / 2
    slack = 4 * torch.finfo(torch.float32).eps * (x.double().abs() + noise.double().abs())
    assert ((got.double() - exact).abs() <= unit * 1.01 * exact.abs() + slack).all()


def test_gradients_flow() -> None:
    output = draw(2, 2, 3).requires_grad_()
    x_t, t = draw(2, 2, 3, seed=1), torch.tensor([3, 400])

    def mean(out: Tensor) -> Tensor:
        return p_mean_variance(LINEAR, out, x_t, t, clip=False).mean

    assert torch.autograd.gradcheck(mean, output)


def test_tables_kept_from_inference_mode_serve_training() -> None:
    schedule = NoiseSchedule.linear(123)
    x, t = torch.ones(1, 2), torch.tensor([7])
    with torch.inference_mode():
        q_sample(schedule, x, t, x)
    leaf = x.clone().requires_grad_()
    q_sample(schedule, leaf, t, x).sum().backward()
    assert leaf.grad is not None and (leaf.grad == leaf.grad[0, 0]).all()


@pytest.mark.parametrize(
    ("t", "error", "sentence"),
    [
        (torch.tensor([0, T]), ValueError, r"t must lie in 0..999, got 0..1000"),
        (torch.tensor([-1, 3]), ValueError, r"t must lie in 0..999, got -1..3"),
        (torch.tensor([1]), ValueError, r"t must be \[2\], one for each sample; got \[1\]"),
        (torch.tensor(1), ValueError, r"t must be \[2\], one for each sample; got \[\]"),
        (torch.tensor([0.0, 1.0]), TypeError, "t must be int64, got torch.float32"),
    ],
)
def test_bad_t_is_refused(t: Tensor, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        q_sample(LINEAR, torch.zeros(2, 3), t, torch.zeros(2, 3))


def test_bad_shapes_and_kinds_are_refused() -> None:
    x, t = torch.zeros(2, 3, 4), torch.tensor([1, 2])
    with pytest.raises(ValueError, match=r"x_start\'s shape \[2, 3, 4\], got \[2, 3\]"):
        q_sample(LINEAR, x, t, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="'learned_range' needs a model output of 6 channels"):
        p_mean_variance(LINEAR, x, x, t, variance_type="learned_range")
    with pytest.raises(ValueError, match="'fixed_small' needs a model output of 3 channels"):
        p_mean_variance(LINEAR, torch.zeros(2, 6, 4), x, t)
    with pytest.raises(ValueError, match="unknown variance_type 'free'"):
        p_mean_variance(LINEAR, x, x, t, variance_type="free")
    with pytest.raises(ValueError, match="unknown kind 'noise': choose one of epsilon"):
        predict_x_start(LINEAR, x, x, t, "noise")


def test_empty_batch() -> None:
    x = torch.zeros(0, 3)
    assert q_sample(LINEAR, x, torch.zeros(0, dtype=torch.int64), x).shape == (0, 3)
