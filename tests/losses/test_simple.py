"""L_simple against the papers' formulas in float64."""

import numpy as np
import pytest
import torch

from fastdiff import NoiseSchedule
from fastdiff.losses import simple_loss

T = 50


def closed_form_target(kind, x_start, noise, t):
    """From betas alone, in float64, sample by sample."""
    betas = np.linspace(1e-4, 0.02, T)
    abar = np.cumprod(1 - betas)
    rows = []
    for x0, z, step in zip(x_start.double(), noise.double(), t.tolist(), strict=True):
        before = abar[step - 1] if step else 1.0
        x_t = abar[step] ** 0.5 * x0 + (1 - abar[step]) ** 0.5 * z
        mean = (before**0.5 * betas[step] * x0 + (1 - betas[step]) ** 0.5 * (1 - before) * x_t) / (
            1 - abar[step]
        )
        v = abar[step] ** 0.5 * z - (1 - abar[step]) ** 0.5 * x0
        rows.append({"epsilon": z, "x_start": x0, "v": v, "posterior_mean": mean}[kind])
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["epsilon", "x_start", "v", "posterior_mean"])
def test_the_loss_is_the_squared_distance_to_the_papers_target(kind):
    generator = torch.Generator().manual_seed(0)
    x_start, noise, output = torch.randn(3, 6, 2, 5, 5, generator=generator)
    t = torch.tensor([0, 1, 7, 25, 48, 49])
    losses = simple_loss(
        lambda x_t, t: output,
        x_start,
        t,
        noise,
        schedule=NoiseSchedule.linear(T),
        prediction_type=kind,
    )
    target = closed_form_target(kind, x_start, noise, t)
    expected = (output.double() - target).square().mean((1, 2, 3))
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_model_sees_x_t_and_the_labels():
    x_start, noise = torch.ones(2, 1, 2, 2), torch.full((2, 1, 2, 2), 2.0)
    seen = {}

    def model(x_t, t, class_labels):
        seen.update(x_t=x_t, t=t, class_labels=class_labels)
        return torch.zeros_like(x_t)

    t, labels = torch.tensor([3, 40]), torch.tensor([7, 1])
    simple_loss(model, x_start, t, noise, schedule=NoiseSchedule.linear(T), class_labels=labels)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, T))[t.numpy()]
    np.testing.assert_allclose(
        seen["x_t"][:, 0, 0, 0].numpy(), abar**0.5 + 2 * (1 - abar) ** 0.5, rtol=1e-6
    )
    assert seen["t"] is t and seen["class_labels"] is labels


def test_a_model_of_another_shape_is_refused():
    x = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"\[2, 2, 4, 4\].*\[2, 1, 4, 4\]"):
        simple_loss(
            lambda x_t, t: torch.zeros(2, 2, 4, 4),
            x,
            torch.tensor([0, 1]),
            x,
            schedule=NoiseSchedule.linear(T),
        )
