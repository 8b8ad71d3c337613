"""A learned noise schedule: monotone, its bound the exported schedule's, trained by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff.learned_schedule import LearnedSchedule
from fastdiff.losses import prior_term, training_losses
from tests.likelihood.gaussian_model import GaussianModel, levels

T = 20


def spread_out(seed: int = 0, num_timesteps: int = T) -> LearnedSchedule:
    """As training may have left it, in float64."""
    torch.manual_seed(seed)
    schedule = LearnedSchedule(num_timesteps, (8.0, -7.0)).double()
    with torch.no_grad():
        for parameter in (schedule.slopes, schedule.offsets, schedule.heights):
            parameter += 2 * torch.randn_like(parameter)
    return schedule


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (count, 2, 3, 3), generator=generator)
    return x.double() / 127.5 - 1


def wavy(x: Tensor, t: Tensor) -> Tensor:
    return 0.9 * x + 0.1 * torch.sin(3 * x + t.view(-1, 1, 1, 1))


def test_it_begins_about_as_the_linear_schedule_does() -> None:
    found = LearnedSchedule(1000).export()
    assert found.alphas_cumprod[0] == pytest.approx(0.9999, abs=5e-5)
    assert 2e-5 < found.alphas_cumprod[-1] < 8e-5


@pytest.mark.parametrize("seed", range(5))
def test_the_log_snr_falls_and_is_what_is_exported(seed: int) -> None:
    schedule = spread_out(seed, 1000)
    log_snr = schedule(torch.arange(1000)).detach()
    assert (log_snr.diff() < 0).all()
    assert log_snr[0] == pytest.approx(8) and log_snr[-1] == pytest.approx(-7)
    abar = schedule.export().alphas_cumprod
    np.testing.assert_allclose(np.log(abar / (1 - abar)), log_snr, rtol=1e-6)


def test_its_terms_are_those_of_the_exported_schedule() -> None:
    """losses.training_losses knows nothing of it but betas."""
    schedule, x_start, t = spread_out(), images(T), torch.arange(T)
    keyed: dict[str, Any] = {"seed": 3, "sample_index": torch.arange(T) + 9, "stream": 1}
    found = schedule.losses(wavy, x_start, t, **keyed)
    exported = schedule.export()
    wanted = training_losses(wavy, x_start, t, schedule=exported, objective="vlb", **keyed)
    torch.testing.assert_close(found.vlb, wanted.vlb, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found.simple, wanted.simple, rtol=1e-5, atol=1e-9)
    prior = prior_term(exported, x_start)
    torch.testing.assert_close(found.loss, wanted.vlb + prior / T, rtol=1e-5, atol=1e-9)


def test_gradients_are_finite_differences() -> None:
    schedule, x_start, t = spread_out(), images(T), torch.arange(T)

    def loss() -> Tensor:
        keyed: dict[str, Any] = {"seed": 3, "sample_index": torch.arange(T)}
        return schedule.losses(wavy, x_start, t, **keyed).loss.mean()

    loss().backward()
    for name, parameter in schedule.named_parameters():
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter += 1e-5 * direction
            above = loss()
            parameter -= 2e-5 * direction
            below = loss()
            parameter += 1e-5 * direction
        assert parameter.grad is not None
        slope = float((parameter.grad * direction).sum())
        assert slope == pytest.approx(float(above - below) / 2e-5, rel=1e-4, abs=1e-8), name


def test_training_lowers_the_bound_of_a_known_model() -> None:
    """The best model for Gaussian data, whatever the schedule: the schedule alone is trained."""
    torch.manual_seed(0)
    schedule = LearnedSchedule(T, (6.0, -2.0)).double()
    mean, covariance = torch.tensor([0.2]).double(), torch.tensor([[0.04]]).double()
    data = GaussianModel(schedule.export(), mean, covariance).draw(4000)
    x_start = levels(data).double() / 127.5 - 1
    t = torch.arange(4000) % T

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        a = torch.sigmoid(schedule(t)).view(-1, 1, 1)
        return (1 - a).sqrt() * (x_t - a.sqrt() * 0.2) / (a * 0.04 + 1 - a)

    def bound(draw: int) -> Tensor:
        found = schedule.losses(model, x_start, t, sample_index=torch.arange(4000), draw=draw)
        return T * found.loss.mean()

    before = bound(10**6).item()
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.02)
    for step in range(150):
        optimizer.zero_grad()
        bound(step).backward()
        optimizer.step()
    after = bound(10**6).item()
    assert after < before - 0.5
    assert (schedule(torch.arange(T)).diff() < 0).all()


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match="two timesteps or more"):
        LearnedSchedule(1)
    with pytest.raises(ValueError, match="that falls"):
        LearnedSchedule(10, (-1.0, 1.0))
    with pytest.raises(ValueError, match="takes a model of epsilon"):
        spread_out().losses(
            lambda x, t: torch.cat([x, x], 1), images(1), torch.tensor([3]),
            sample_index=torch.arange(1),
        )  # fmt: skip
