"""Schedules and spacings against published numbers, diffusers, and definitions rewritten."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.schedules import SPACINGS, NoiseSchedule, checked_timesteps, timesteps

TABLES = [f.name for f in dataclasses.fields(NoiseSchedule)]
SCHEDULES = {
    "linear": (NoiseSchedule.linear, {"beta_schedule": "linear"}),
    "scaled_linear": (
        NoiseSchedule.scaled_linear,
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    ),
    "cosine": (NoiseSchedule.cosine, {"beta_schedule": "squaredcos_cap_v2"}),
    "sigmoid": (NoiseSchedule.sigmoid, {"beta_schedule": "sigmoid"}),
    "laplace": (NoiseSchedule.laplace, {"beta_schedule": "laplace"}),
}
random_betas = st.lists(st.floats(1e-6, 0.9), min_size=1, max_size=50)


def test_linear_gives_the_published_numbers() -> None:
    s = NoiseSchedule.linear(1000, beta_start=1e-4, beta_end=0.02)
    assert s.betas.sum() == pytest.approx(10.05, rel=1e-12)
    assert s.alphas_cumprod[999] == pytest.approx(4.0358297654e-5, rel=1e-10)
    assert s.posterior_variance[1] == pytest.approx(5.4531876613e-5, rel=1e-10)
    assert s.posterior_mean_coef1[500] == pytest.approx(0.0030580571, rel=1e-7)
    assert s.posterior_mean_coef2[500] == pytest.approx(0.9941043508, rel=1e-9)


def test_linear_prior_term_is_a_hundred_thousandth_of_a_bit() -> None:
    """E KL(q(x_T | x_0) || N(0, 1)) for data of unit mean square."""
    a = NoiseSchedule.linear(1000).alphas_cumprod[-1]
    nats = 0.5 * (a + (1 - a) - 1 - math.log(1 - a))
    assert nats / math.log(2) == pytest.approx(2.9e-5, rel=0.02)


def test_cosine_gives_the_published_numbers() -> None:
    s = NoiseSchedule.cosine(1000)
    assert s.betas.sum() == pytest.approx(12.441496417056, rel=1e-13)
    assert s.alphas_cumprod[500] == pytest.approx(0.492285172449, rel=1e-11)
    assert s.betas.max() == 0.999
    assert NoiseSchedule.cosine(4000).betas.sum() == pytest.approx(15.210434270813, rel=1e-13)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("T", [1000, 37])
def test_betas_equal_diffusers(name: str, T: int) -> None:
    from diffusers import DDPMScheduler

    make, config = SCHEDULES[name]
    theirs = DDPMScheduler(num_train_timesteps=T, **config).betas.numpy()
    np.testing.assert_allclose(make(T).betas, theirs, rtol=2e-6, atol=6e-8)


@pytest.mark.parametrize("name", SCHEDULES)
def test_zero_terminal_snr_equals_diffusers_and_leaves_no_nan(name: str) -> None:
    import torch
    from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

    schedule = SCHEDULES[name][0](1000)
    rescaled = schedule.rescale_zero_terminal_snr()
    assert rescaled.alphas_cumprod[-1] == 0
    assert rescaled.alphas_cumprod[0] == pytest.approx(schedule.alphas_cumprod[0], rel=1e-12)
    for table in TABLES:
        assert np.isfinite(getattr(rescaled, table)).all(), table
    theirs = rescale_zero_terminal_snr(torch.tensor(schedule.betas)).numpy()
    np.testing.assert_allclose(rescaled.betas, theirs, rtol=1e-9, atol=1e-15)


@settings(deadline=None)
@given(random_betas)
def test_tables_follow_from_the_betas(betas: list[float]) -> None:
    """Each table once more, one timestep at a time, in plain Python."""
    s = NoiseSchedule.from_betas(betas)
    product = 1.0
    for t, beta in enumerate(betas):
        before, product = product, product * (1 - beta)
        expected = {
            "betas": beta,
            "alphas": 1 - beta,
            "alphas_cumprod": product,
            "alphas_cumprod_prev": before,
            "sqrt_alphas_cumprod": math.sqrt(product),
            "sqrt_one_minus_alphas_cumprod": math.sqrt(1 - product),
            "posterior_variance": (1 - before) / (1 - product) * beta,
            "posterior_mean_coef1": math.sqrt(before) * beta / (1 - product),
            "posterior_mean_coef2": math.sqrt(1 - beta) * (1 - before) / (1 - product),
        }
        for name, value in expected.items():
            assert getattr(s, name)[t] == pytest.approx(value, rel=1e-9, abs=1e-300), name
        if t:
            assert math.exp(s.posterior_log_variance_clipped[t]) == pytest.approx(
                expected["posterior_variance"], rel=1e-9
            )
    first = s.posterior_variance[1] if len(betas) > 1 else betas[0]
    assert math.exp(s.posterior_log_variance_clipped[0]) == pytest.approx(first, rel=1e-9)


@settings(deadline=None)
@given(random_betas)
def test_invariants(betas: list[float]) -> None:
    s = NoiseSchedule.from_betas(betas)
    assert s.num_timesteps == len(betas)
    assert (np.diff(s.alphas_cumprod) < 0).all()
    assert (s.posterior_variance <= s.betas * (1 + 1e-9)).all()
    assert s.posterior_variance[0] == 0
    assert s.posterior_mean_coef1[0] == pytest.approx(1, rel=1e-9)
    assert s.posterior_mean_coef2[0] == 0
    # The posterior's mean keeps the mean: x_t = sqrt(abar) x_0 goes to sqrt(abar_prev) x_0.
    kept = s.posterior_mean_coef1 + s.posterior_mean_coef2 * s.sqrt_alphas_cumprod
    np.testing.assert_allclose(kept, np.sqrt(s.alphas_cumprod_prev), rtol=1e-8)


@pytest.mark.parametrize("table", TABLES)
def test_tables_are_frozen_float64(table: str) -> None:
    s = NoiseSchedule.linear(10)
    array = getattr(s, table)
    assert array.dtype == np.float64 and array.shape == (10,)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(s, table, array)


def test_given_betas_are_copied() -> None:
    betas = np.full(4, 0.1)
    s = NoiseSchedule.from_betas(betas)
    betas[0] = 0.9
    assert s.betas[0] == 0.1


def test_equality_hash_and_repr() -> None:
    a, b = NoiseSchedule.linear(10), NoiseSchedule.from_betas(np.linspace(1e-4, 0.02, 10))
    assert a == b and hash(a) == hash(b)
    assert a != NoiseSchedule.cosine(10) and a != NoiseSchedule.linear(11) and a != "linear"
    assert repr(a) == "NoiseSchedule(T=10, betas=0.0001..0.02, alphas_cumprod[-1]=0.903739)"


@pytest.mark.parametrize(
    ("betas", "sentence"),
    [
        ([], r"non-empty one-dimensional array, got \(0,\)"),
        ([[0.1, 0.2]], r"got \(1, 2\)"),
        ([0.1, float("nan")], r"betas\[1\] is nan"),
        ([0.1, 0.0], r"betas\[1\] is 0.0"),
        ([1e-18, 0.1], r"betas\[0\] is 1e-18"),
        ([-0.1], r"betas\[0\] is -0.1"),
        ([1.0, 0.1], r"betas\[0\] is 1.0"),
        ([0.1, 1.5], r"betas\[1\] is 1.5"),
        ([0.999] * 200, "no signal before the last timestep"),
    ],
)
def test_bad_betas_are_refused(betas: list[float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        NoiseSchedule.from_betas(betas)


@pytest.mark.parametrize("T", [0, -1, 2.5, True, "10"])
def test_bad_lengths_are_refused(T: object) -> None:
    for make, _ in SCHEDULES.values():
        with pytest.raises(ValueError, match="T must be a positive int"):
            make(T)


def test_rescaling_one_timestep_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 timesteps"):
        NoiseSchedule.from_betas([0.1]).rescale_zero_terminal_snr()


@settings(deadline=None)
@given(random_betas, st.data())
def test_respacing_keeps_the_visited_levels(betas: list[float], data: st.DataObject) -> None:
    s = NoiseSchedule.from_betas(betas)
    kept = data.draw(st.sets(st.integers(0, len(betas) - 1), min_size=1))
    visited = sorted(kept, reverse=True)
    np.testing.assert_allclose(
        s.respace(visited).alphas_cumprod[::-1], s.alphas_cumprod[visited], rtol=1e-9
    )


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_spacings_equal_diffusers(spacing: str) -> None:
    """At every count, up to the t = -1 that their trailing float range appends at 62 of them."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(num_train_timesteps=1000, timestep_spacing=spacing)
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        theirs = scheduler.timesteps.numpy()
        assert (timesteps(1000, steps, spacing) == theirs[theirs >= 0]).all(), steps


def test_quadratic_spacing_is_ddims() -> None:
    """int(s) for s in linspace(0, sqrt(0.8 T), steps)**2, as the DDIM code has it."""
    for steps in (1, 10, 20, 29):
        theirs = [int(s) for s in np.linspace(0, np.sqrt(1000 * 0.8), steps) ** 2]
        assert timesteps(1000, steps, "quadratic").tolist() == theirs[::-1]
    # There 50 steps begin 0, 0, 1, 2, 5: the second visit to 0 is a wasted call.
    assert timesteps(1000, 50, "quadratic")[-6:].tolist() == [8, 5, 3, 2, 1, 0]


def space_timesteps(T: int, counts: list[int]) -> list[int]:
    """guided-diffusion's definition, written out again from its description."""
    kept: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        size = T // len(counts) + (i < T % len(counts))
        at = 0.0
        for _ in range(count):
            kept.append(start + round(at))
            at += (size - 1) / (count - 1) if count > 1 else 1
        start += size
    return kept


@settings(deadline=None)
@given(st.integers(1, 400), st.data())
def test_section_counts_are_guided_diffusions(T: int, data: st.DataObject) -> None:
    sections = data.draw(st.integers(1, min(T, 6)))
    counts = data.draw(
        st.lists(st.integers(1, T // sections), min_size=sections, max_size=sections)
    )
    ours = timesteps(T, ",".join(map(str, counts)))
    assert ours.tolist() == space_timesteps(T, counts)[::-1]


def test_section_counts_known() -> None:
    assert timesteps(1000, "ddim50").tolist() == list(range(980, -1, -20))
    assert timesteps(1000, "ddim1000").tolist() == list(range(999, -1, -1))
    assert (timesteps(1000, "10") == timesteps(1000, 10, "linspace")).all()
    assert timesteps(300, "10,15,20")[-10:].tolist() == [99, 88, 77, 66, 55, 44, 33, 22, 11, 0]


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 3000), st.data(), st.sampled_from(SPACINGS))
def test_spacing_invariants(T: int, data: st.DataObject, spacing: str) -> None:
    steps = data.draw(st.integers(1, T))
    visited = timesteps(T, steps, spacing)
    assert visited.shape == (steps,) and visited.dtype == np.int64
    assert (np.diff(visited) < 0).all()
    assert visited[-1] >= 0 and visited[0] < T
    if spacing == "trailing":
        assert visited[0] == T - 1
    elif steps > 1 or spacing == "leading":
        assert visited[-1] == 0
    if steps == T:
        assert (visited == np.arange(T)[::-1]).all()


@pytest.mark.parametrize(
    ("steps", "spacing", "sentence"),
    [
        (0, "leading", r"steps must lie in 1..1000, got 0"),
        (-3, "trailing", r"steps must lie in 1..1000, got -3"),
        (1001, "linspace", r"steps must lie in 1..1000, got 1001"),
        (10, "even", "unknown spacing 'even': choose one of leading, trailing"),
        ("ddim333", "leading", "no integer stride over T=1000 visits exactly 333"),
        ("ddim0", "leading", "must lie in 1..1000, got 0"),
        ("ddim10,20", "leading", "takes one count"),
        ("10,,20", "leading", "no section count"),
        ("fast", "leading", "no section count"),
        ("600,600", "leading", r"each section of steps '600,600' must lie in 1..500, got 600"),
    ],
)
def test_bad_steps_are_refused(steps: int | str, spacing: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        timesteps(1000, steps, spacing)


@pytest.mark.parametrize("steps", [2.0, True, None])
def test_steps_of_a_wrong_type_are_refused(steps: object) -> None:
    with pytest.raises(TypeError, match="steps must be an int"):
        timesteps(1000, steps)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given_steps", "sentence"),
    [
        ([], "non-empty one-dimensional list of integers"),
        ([[1, 0]], r"got shape \(1, 2\)"),
        ([2.5, 1.0], "of float64"),
        ([10, 3], r"must lie in 0..9; got 3..10"),
        ([3, 3, 1], "strictly decreasing"),
        ([1, 3], "strictly decreasing"),
    ],
)
def test_bad_given_timesteps_are_refused(given_steps: list[int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        checked_timesteps(10, given_steps)


def test_a_schedule_of_log_snr() -> None:
    """Log-SNR survives where 1 - alphas_cumprod would have lost its digits."""
    log_snr = np.linspace(20, -12, 50)
    s = NoiseSchedule.from_log_snr(log_snr)
    found = np.log(s.alphas_cumprod) - np.log1p(-s.alphas_cumprod)
    np.testing.assert_allclose(found, log_snr, rtol=1e-6)
    assert s.betas[0] == pytest.approx(1 / (1 + math.exp(20)), rel=1e-12)
    linear = NoiseSchedule.linear(100)
    again = NoiseSchedule.from_log_snr(np.log(linear.alphas_cumprod / (1 - linear.alphas_cumprod)))
    np.testing.assert_allclose(again.betas, linear.betas, rtol=1e-9)
    for wrong in ([1.0, 1.0], [[2.0, 1.0]], [0.0, 1.0]):
        with pytest.raises(ValueError, match="strictly decreasing"):
            NoiseSchedule.from_log_snr(wrong)
