"""The face's small parts: resample, nn."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastdiff.compat.guided_diffusion import nn as gd_nn
from fastdiff.compat.guided_diffusion.resample import (
    LossSecondMomentResampler,
    create_named_schedule_sampler,
)
from tests.restated.guided_diffusion.unet import angles

FOUR = SimpleNamespace(num_timesteps=4)


def test_uniform_sampling_weighs_all_alike() -> None:
    sampler = create_named_schedule_sampler("uniform", FOUR)
    t, weights = sampler.sample(1000, "cpu")
    assert t.dtype == torch.int64 and set(t.tolist()) == {0, 1, 2, 3}
    assert weights.dtype == torch.float32 and (weights == 1).all()
    with pytest.raises(NotImplementedError, match="choose uniform or loss-second-moment"):
        create_named_schedule_sampler("even", FOUR)


def test_importance_goes_by_the_last_losses() -> None:
    """On today's NumPy, where the original fails for its np.int."""
    sampler = LossSecondMomentResampler(FOUR, history_per_term=3, uniform_prob=0.01)
    rounds = [[0.1 * k, 0.2, 0.3 + k, 0.01] for k in range(5)]
    for k, losses in enumerate(rounds):
        assert (sampler.weights() == 1).all() == (k < 3)
        sampler.update_with_local_losses(torch.arange(4), torch.tensor(losses, dtype=torch.float64))
    moments = np.sqrt((np.array(rounds[2:]) ** 2).mean(0))
    expected = 0.99 * moments / moments.sum() + 0.01 / 4
    np.testing.assert_allclose(sampler.weights(), expected, rtol=1e-12)
    np.random.seed(0)
    t, weights = sampler.sample(20_000, "cpu")
    np.testing.assert_allclose(weights, (0.25 / expected)[t], rtol=1e-5)
    assert abs(float(weights.mean()) - 1) < 0.05  # unbiased


def test_all_processes_see_all_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    def gather(everyone: list, own: tuple) -> None:
        everyone[:] = [own, ([3, 3], [5.0, 6.0])]

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    sampler = LossSecondMomentResampler(FOUR, history_per_term=2)
    sampler.update_with_local_losses(torch.tensor([0]), torch.tensor([4.0]))
    seen = sampler._sampler.state()
    assert seen["counts"].tolist() == [1, 0, 0, 2]
    assert seen["losses"][3].tolist() == [5.0, 6.0]


def test_embedding_of_timesteps() -> None:
    t = torch.tensor([0.0, 3.5, 999.0])
    torch.testing.assert_close(gd_nn.timestep_embedding(t, 32), angles(t, 32))
    assert gd_nn.timestep_embedding(t, 7).shape == (3, 7)
    slow = gd_nn.timestep_embedding(t, 4, max_period=100)
    torch.testing.assert_close(slow[:, 1], torch.cos(t / 10))


def test_parameters_in_place() -> None:
    layer = gd_nn.linear(3, 2)
    before = layer.weight.detach().clone()
    assert gd_nn.scale_module(layer, 0.5) is layer
    torch.testing.assert_close(layer.weight.detach(), before / 2)
    gd_nn.update_ema([layer.weight], [before], rate=0.75)
    torch.testing.assert_close(layer.weight.detach(), before * (0.75 / 2 + 0.25))
    assert not any(p.any() for p in gd_nn.zero_module(layer).parameters())


def test_layers() -> None:
    assert isinstance(gd_nn.conv_nd(1, 2, 2, 3), torch.nn.Conv1d)
    assert isinstance(gd_nn.avg_pool_nd(3, 2), torch.nn.AvgPool3d)
    with pytest.raises(ValueError, match="unsupported dimensions: 4"):
        gd_nn.conv_nd(4, 2, 2, 3)
    x = torch.randn(2, 64, 3, 3)
    norm = gd_nn.normalization(64)
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x), torch.nn.functional.group_norm(x, 32))
    torch.testing.assert_close(gd_nn.mean_flat(x), x.mean((1, 2, 3)))
    torch.testing.assert_close(gd_nn.SiLU()(x), x * x.sigmoid())


@pytest.mark.parametrize("flag", [True, False])
def test_checkpointed_gradients(flag: bool) -> None:
    x, w = torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True)
    gd_nn.checkpoint(lambda y: (y * w).sin().sum(), (x,), [w], flag).backward()
    torch.testing.assert_close(x.grad, w * (x * w).cos())
    torch.testing.assert_close(w.grad, x * (x * w).cos())
