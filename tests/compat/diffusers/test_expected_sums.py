"""The sums and means that diffusers' own tests of these four schedulers expect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastdiff

from .dummies import ramp, walk

LINEAR = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02}
SOLVER = LINEAR | {"final_sigmas_type": "sigma_min", "lower_order_final": False}


@pytest.fixture(autouse=True)
def nothing_of_diffusers_own_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A step that fell through to the original would pass these tests without proving anything."""
    import diffusers

    for name in ("DDPM", "DDIM", "DDIMInverse", "DPMSolverMultistep"):
        monkeypatch.delattr(getattr(diffusers, f"{name}Scheduler"), "step")
    yield


def assert_sums(sample: Tensor, total: float | None, mean: float) -> None:
    assert total is None or abs(float(sample.abs().sum()) - total) < 1e-2
    assert abs(float(sample.abs().mean()) - mean) < 1e-3


@pytest.mark.parametrize(
    ("config", "total", "mean"),
    [({}, 258.9606, 0.3372), ({"prediction_type": "v_prediction"}, 202.0296, 0.2631)],
)
def test_ddpm_whole(config: dict[str, Any], total: float, mean: float) -> None:
    scheduler = fastdiff.DDPMScheduler(**LINEAR, variance_type="fixed_small", **config)
    assert len(scheduler) == 1000
    generator = torch.manual_seed(0)
    assert_sums(walk(scheduler, range(999, -1, -1), ramp(), generator=generator), total, mean)


def test_ddpm_from_noised() -> None:
    scheduler = fastdiff.DDPMScheduler(**LINEAR)
    timesteps = scheduler.timesteps[998:]
    sample = scheduler.add_noise(ramp(), ramp(backwards=True), timesteps[:1])
    sample = walk(scheduler, timesteps, sample, generator=torch.manual_seed(0))
    assert_sums(sample, 387.9466, 0.5051)


def test_ddpm_variance() -> None:
    scheduler = fastdiff.DDPMScheduler(**LINEAR)
    for t, variance in ((0, 0.0), (487, 0.00979), (999, 0.02)):
        assert abs(float(scheduler._get_variance(t)) - variance) < 1e-5


def test_ddpm_custom_timesteps() -> None:
    scheduler = fastdiff.DDPMScheduler(**LINEAR)
    scheduler.set_timesteps(timesteps=[100, 87, 50, 1, 0])
    before = [int(scheduler.previous_timestep(t)) for t in scheduler.timesteps]
    assert before == [87, 50, 1, 0, -1]
    for arguments in (
        {"timesteps": [100, 87, 50, 51, 0]},
        {"timesteps": [100, 50], "num_inference_steps": 2},
        {"timesteps": [1000]},
    ):
        with pytest.raises(ValueError):
            scheduler.set_timesteps(**arguments)


@pytest.mark.parametrize(
    ("config", "total", "mean"),
    [
        ({}, 172.0067, 0.223967),
        ({"prediction_type": "v_prediction"}, 52.5302, 0.0684),
        ({"set_alpha_to_one": True, "beta_start": 0.01}, 149.8295, 0.1951),
        ({"set_alpha_to_one": False, "beta_start": 0.01}, 149.0784, 0.1941),
    ],
)
def test_ddim(config: dict[str, Any], total: float, mean: float) -> None:
    scheduler = fastdiff.DDIMScheduler(**LINEAR | config)
    scheduler.set_timesteps(10)
    assert_sums(walk(scheduler, scheduler.timesteps, ramp(), eta=0.0), total, mean)


def test_ddim_from_noised() -> None:
    scheduler = fastdiff.DDIMScheduler(**LINEAR)
    scheduler.set_timesteps(10)
    timesteps = scheduler.timesteps[8:]
    sample = scheduler.add_noise(ramp(), ramp(backwards=True), timesteps[:1])
    assert_sums(walk(scheduler, timesteps, sample), 354.5418, 0.4616)


def test_ddim_variance() -> None:
    scheduler = fastdiff.DDIMScheduler(**LINEAR)
    for t, before, variance in (
        (0, 0, 0.0), (420, 400, 0.14771), (980, 960, 0.32460), (487, 486, 0.00979),
        (999, 998, 0.02),
    ):  # fmt: skip
        assert abs(float(scheduler._get_variance(t, before)) - variance) < 1e-5


def test_steps_offset() -> None:
    for kind, expected in (
        (fastdiff.DDIMScheduler, [801, 601, 401, 201, 1]),
        (fastdiff.DDIMInverseScheduler, [1, 201, 401, 601, 801]),
    ):
        scheduler = kind(**LINEAR, steps_offset=1)
        scheduler.set_timesteps(5)
        assert scheduler.timesteps.tolist() == expected


@pytest.mark.parametrize(
    ("config", "total", "mean"),
    [
        ({}, 671.6816, 0.8746),
        ({"prediction_type": "v_prediction"}, 1394.2185, 1.8154),
        ({"set_alpha_to_one": True, "beta_start": 0.01}, 539.9622, 0.7031),
        ({"set_alpha_to_one": False, "beta_start": 0.01}, 542.6722, 0.7066),
    ],
)
def test_ddim_inverse(config: dict[str, Any], total: float, mean: float) -> None:
    scheduler = fastdiff.DDIMInverseScheduler(**LINEAR | config)
    scheduler.set_timesteps(10)
    assert_sums(walk(scheduler, scheduler.timesteps, ramp()), total, mean)


@pytest.mark.parametrize(
    ("config", "mean"),
    [
        ({}, 0.3301),
        ({"thresholding": True, "dynamic_thresholding_ratio": 0.87, "sample_max_value": 0.5},
         1.1364),
        ({"prediction_type": "v_prediction"}, 0.2251),
        ({"prediction_type": "v_prediction", "use_karras_sigmas": True}, 0.2096),
        ({"prediction_type": "v_prediction", "use_lu_lambdas": True}, 0.1554),
    ],
)  # fmt: skip
def test_dpm_solver(config: dict[str, Any], mean: float) -> None:
    scheduler = fastdiff.DPMSolverMultistepScheduler(**SOLVER | config)
    scheduler.set_timesteps(10)
    sample = walk(scheduler, scheduler.timesteps, ramp(), generator=torch.manual_seed(0))
    assert_sums(sample, None, mean)


def test_dpm_solver_from_noised() -> None:
    scheduler = fastdiff.DPMSolverMultistepScheduler(**SOLVER)
    scheduler.set_timesteps(10)
    timesteps = scheduler.timesteps[5:]
    sample = scheduler.add_noise(ramp(), ramp(backwards=True), timesteps[:1])
    assert_sums(walk(scheduler, timesteps, sample), 318.4111, 0.4146)


def test_dpm_solver_after_its_kin() -> None:
    import diffusers

    scheduler = fastdiff.DPMSolverMultistepScheduler(**SOLVER)
    for kin in ("DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep"):
        scheduler = getattr(diffusers, f"{kin}Scheduler").from_config(scheduler.config)
    scheduler = fastdiff.DPMSolverMultistepScheduler.from_config(scheduler.config)
    scheduler.set_timesteps(10)
    assert_sums(walk(scheduler, scheduler.timesteps, ramp()), None, 0.3301)


def test_dpm_solver_in_half_precision() -> None:
    scheduler = fastdiff.DPMSolverMultistepScheduler(
        **SOLVER, thresholding=True, dynamic_thresholding_ratio=0
    )
    scheduler.set_timesteps(10)
    assert walk(scheduler, scheduler.timesteps, ramp().half()).dtype == torch.float16


def test_dpm_solver_at_every_timestep() -> None:
    scheduler = fastdiff.DPMSolverMultistepScheduler(**SOLVER)
    scheduler.set_timesteps(1000)
    assert len(scheduler.timesteps) == scheduler.num_inference_steps == 1000


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("final", ["sigma_min", "zero"])
def test_dpm_solver_with_custom_timesteps(algorithm: str, prediction_type: str, final: str) -> None:
    config = SOLVER | {
        "algorithm_type": algorithm,
        "prediction_type": prediction_type,
        "final_sigmas_type": final,
    }
    first, second = (fastdiff.DPMSolverMultistepScheduler(**config) for _ in range(2))
    first.set_timesteps(10)
    second.set_timesteps(timesteps=first.timesteps)
    samples = [
        walk(s, s.timesteps, ramp(), generator=torch.manual_seed(0)) for s in (first, second)
    ]
    assert torch.equal(*samples)


SCHEDULERS = ("DDPM", "DDIM", "DDIMInverse", "DPMSolverMultistep")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_trained_betas_are_kept(name: str, tmp_path: Any) -> None:
    kind = getattr(fastdiff, f"{name}Scheduler")
    scheduler = kind(trained_betas=np.array([0.1, 0.3]))
    scheduler.save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).betas.tolist() == scheduler.betas.tolist()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_attributes_and_compatibles(name: str) -> None:
    kind = getattr(fastdiff, f"{name}Scheduler")
    scheduler = kind()
    assert scheduler.order == 1 and scheduler.init_noise_sigma == 1.0
    assert scheduler.num_inference_steps is None and len(scheduler) == 1000
    assert scheduler.scale_model_input(ramp(), 0.0).shape == ramp().shape
    scheduler.own = 5
    assert scheduler.own == 5
    with pytest.raises(AttributeError, match="has no attribute 'does_not_exist'"):
        scheduler.does_not_exist  # noqa: B018
    for kin in scheduler.compatibles:
        if kin.__name__ == "DPMSolverSDEScheduler":  # needs torchsde
            continue
        again = kind.from_config(kin.from_config(scheduler.config).config)
        shared = {key: value for key, value in again.config.items() if key in scheduler.config}
        assert shared == dict(scheduler.config) | {
            "_use_default_values": shared.get("_use_default_values")
        } or shared == dict(scheduler.config)
