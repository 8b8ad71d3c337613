"""What fastdiff's schedulers do that diffusers' do not, and that they do it in its pipelines."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import fastdiff
from fastdiff.ops import _library, philox_normal
from fastdiff.schedules import NoiseSchedule

from .dummies import SHAPE, noise

NAMES = ("DDPM", "DDIM", "DDIMInverse", "DPMSolverMultistep")
RIGHT = {"diffusers_exact": False}


def smooth(x: Tensor, t: Any) -> Tensor:
    t = t.view(-1, 1, 1, 1) if isinstance(t, Tensor) and t.ndim else t
    return torch.sin(3 * x + torch.as_tensor(t, dtype=x.dtype) / 150)


def make(name: str, **config: Any) -> Any:
    return getattr(fastdiff, f"{name}Scheduler")(**config)


def run(scheduler: Any, x: Tensor, **arguments: Any) -> Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(smooth(x, t), t, x, **arguments).prev_sample
    return x


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [7, 30])
def test_ddim_goes_to_the_timestep_that_comes_next(spacing: str, steps: int) -> None:
    """huggingface/diffusers#11347 and #12633."""
    scheduler = make("DDIM", timestep_spacing=spacing, clip_sample=False, **RIGHT)
    scheduler.set_timesteps(steps)
    x = noise(0, dtype=torch.float64)
    expected = fastdiff.sample(
        smooth, SHAPE, schedule=NoiseSchedule.linear(1000), sampler="ddim", steps=steps,
        spacing=spacing, clip=False, noise=x, dtype=torch.float64,
    )  # fmt: skip
    torch.testing.assert_close(run(scheduler, x), expected, rtol=1e-10, atol=1e-10)
    theirs = make("DDIM", timestep_spacing=spacing, clip_sample=False)
    theirs.set_timesteps(steps)
    apart = (run(theirs, x) - expected).abs().max()
    assert (apart > 1e-3) == (spacing != "leading")


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [10, 300])
def test_the_inverse_comes_from_the_timestep_before(spacing: str, steps: int) -> None:
    scheduler = make("DDIMInverse", timestep_spacing=spacing, clip_sample=False, **RIGHT)
    scheduler.set_timesteps(steps)
    x = noise(0, dtype=torch.float64)
    expected = fastdiff.ddim_invert(
        smooth, x, schedule=NoiseSchedule.linear(1000), steps=steps, spacing=spacing,
        dtype=torch.float64,
    )  # fmt: skip
    torch.testing.assert_close(run(scheduler, x), expected, rtol=1e-9, atol=1e-9)


def test_fixed_large_log_is_no_nan() -> None:
    """huggingface/diffusers#14569."""
    x, out = noise(0), noise(1)
    arguments = {"generator": torch.manual_seed(0)}
    theirs = make("DDPM", variance_type="fixed_large_log")
    assert theirs.step(out, 500, x, **arguments).prev_sample.isnan().all()
    right = [
        make("DDPM", variance_type=kind, **RIGHT)
        .step(out, 500, x, generator=torch.manual_seed(0))
        .prev_sample
        for kind in ("fixed_large_log", "fixed_large")
    ]
    assert torch.equal(*right)
    scheduler = make("DDPM", variance_type="fixed_large_log", **RIGHT)
    assert abs(float(scheduler._get_variance(999)) - 0.02) < 1e-5


def test_a_learned_variance_is_its_logarithm() -> None:
    x, out = noise(0, dtype=torch.float64), noise(1, 4, 6, 8, 8, dtype=torch.float64)
    scheduler = make("DDPM", variance_type="learned", **RIGHT)
    z = torch.randn(SHAPE, dtype=torch.float64, generator=torch.manual_seed(5))
    done = scheduler.step(out, 500, x, generator=torch.manual_seed(5))
    mean = make("DDPM", **RIGHT).step(out[:, :3], 500, x, generator=torch.manual_seed(5))
    fixed = float(NoiseSchedule.linear(1000).posterior_variance[500]) ** 0.5
    expected = mean.prev_sample - fixed * z + (out[:, 3:] / 2).exp() * z
    torch.testing.assert_close(done.prev_sample, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("name", "sampler"), [("DDPM", "ddpm"), ("DDIM", "ddim")])
def test_a_seed_gives_the_noise_and_the_numbers_of_fastdiff(
    name: str, sampler: str, clip: bool
) -> None:
    options: dict[str, Any] = {"eta": 1.0} if sampler == "ddim" else {}
    expected = fastdiff.sample(
        smooth, SHAPE, schedule=NoiseSchedule.linear(1000), sampler=sampler, steps=20, seed=11,
        clip=clip, rederive_eps=False, dtype=torch.float64, **options,
    )  # fmt: skip
    x = philox_normal(SHAPE, 11, sample_index=torch.arange(4)).double()
    scheduler = make(name, clip_sample=clip, **RIGHT)
    scheduler.set_timesteps(20)
    found = run(scheduler, x, seed=11, **options)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    of_two = x[2:]
    for t in scheduler.timesteps:
        of_two = scheduler.step(
            smooth(of_two, t), t, of_two, seed=11, sample_index=torch.tensor([2, 3]), **options
        ).prev_sample
    assert torch.equal(of_two, found[2:])


def test_a_seed_of_the_solver_and_of_the_constructor() -> None:
    results = []
    for config, arguments in (({"seed": 4}, {}), ({}, {"seed": 4}), ({}, {"seed": 5})):
        scheduler = make("DPMSolverMultistep", algorithm_type="sde-dpmsolver++", **config)
        scheduler.set_timesteps(6)
        results.append(run(scheduler, noise(0), **arguments))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    with pytest.raises(ValueError, match="from a generator or from a seed"):
        make("DDPM", seed=1).step(noise(0), 5, noise(1), generator=torch.manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("exact", [True, False])
def test_timesteps_may_differ_by_sample(name: str, exact: bool) -> None:
    """huggingface/diffusers#1784."""
    x, out = noise(0), noise(1)
    mixed = make(name, diffusers_exact=exact)
    mixed.set_timesteps(10)
    timesteps = mixed.timesteps[[1, 7, 9, 4]]
    whole = mixed.step(out, timesteps, x, **_zero_noise(name)).prev_sample
    for i, t in enumerate(timesteps):
        alone = make(name, diffusers_exact=exact)
        alone.set_timesteps(10)
        one = alone.step(out[i : i + 1], t, x[i : i + 1], **_zero_noise(name, i)).prev_sample
        torch.testing.assert_close(whole[i], one[0], rtol=1e-6, atol=1e-6)


def test_the_solver_remembers_by_sample() -> None:
    """Two steps of each: the second rests on the first."""
    for order in (2, 3):
        mixed = make("DPMSolverMultistep", solver_order=order)
        mixed.set_timesteps(20)
        starts = torch.tensor([0, 5, 9, 14])
        x = noise(0)
        for k in range(4):
            t = mixed.timesteps[starts + k]
            x = mixed.step(smooth(x, t), t, x).prev_sample
        for i, start in enumerate(starts.tolist()):
            alone = make("DPMSolverMultistep", solver_order=order)
            alone.set_timesteps(20)
            y = noise(0)[i : i + 1]
            for t in alone.timesteps[start : start + 4]:
                y = alone.step(smooth(y, t), t, y).prev_sample
            torch.testing.assert_close(x[i], y[0], rtol=1e-5, atol=1e-5)


def _zero_noise(name: str, index: int = 0) -> dict[str, Any]:
    return {"seed": 0, "sample_index": index} if name == "DDPM" else {}


@pytest.mark.parametrize("by_sample", [False, True])
@pytest.mark.parametrize("threshold", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_no_step_reads_a_device(name: str, threshold: bool, by_sample: bool) -> None:
    """On the meta device there is nothing to read: looking at a value raises."""
    config = {} if name == "DDIMInverse" else {"thresholding": threshold}
    scheduler = make(name, **config)
    scheduler.set_timesteps(10, device="meta")
    with pytest.raises(RuntimeError):
        int(scheduler.timesteps[0])
    x = torch.empty(SHAPE, device="meta")
    for t in scheduler.timesteps:
        t = t.expand(4) if by_sample else t
        x = scheduler.step(torch.empty_like(x), t, x).prev_sample
    assert x.shape == SHAPE and x.device.type == "meta"
    if name != "DDIMInverse":
        t = scheduler.timesteps[3].expand(4)
        assert scheduler.add_noise(x, torch.empty_like(x), t).shape == SHAPE


def test_a_view_of_the_timesteps_is_known_by_its_address() -> None:
    scheduler = make("DDPM")
    scheduler.set_timesteps(10)
    for place, t in enumerate(scheduler.timesteps):
        assert scheduler._place(t) == place
    assert scheduler._place(torch.tensor(900)) is None
    assert scheduler._place(scheduler.timesteps.flip(0)[2]) is None


def test_steps_run_on_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    if not _library.native_kernel("denoise_step", "CPU"):
        pytest.fail("the native library is not built")
    for name in NAMES:
        scheduler = make(name)
        scheduler.set_timesteps(5)
        before = _library.native_calls("denoise_step", "CPU")
        run(scheduler, noise(0))
        assert _library.native_calls("denoise_step", "CPU") == before + 5


@pytest.mark.parametrize("name", NAMES)
def test_configs_are_diffusers_own(name: str, tmp_path: Path) -> None:
    theirs = getattr(diffusers, f"{name}Scheduler")
    ours = make(name)
    assert dict(ours.config) == dict(theirs().config)
    assert isinstance(ours, theirs)
    ours.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["_class_name"] == f"{name}Scheduler" and "diffusers_exact" not in saved
    assert dict(type(ours).from_pretrained(tmp_path).config) == dict(
        theirs.from_pretrained(tmp_path).config
    )
    right = type(ours).from_config(theirs().config, diffusers_exact=False, seed=3)
    right.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(tmp_path)
    assert (again.diffusers_exact, again.seed) == (False, 3)


BAD: dict[str, tuple[str, dict[str, Any], Any, str]] = {
    "a timestep not visited": ("DDPM", {}, 17, "timestep 17 is not among"),
    "too few timesteps": ("DDPM", {}, torch.tensor([900, 800]), "one for each of the 4 samples"),
    "no learned variance": ("DDPM", {"variance_type": "learned_range"}, 900, "of 6 channels"),
    "an unknown prediction": ("DDIM", {"prediction_type": "flow"}, 900, "is 'flow'; choose one"),
    "flow without ++": (
        "DPMSolverMultistep",
        {"prediction_type": "flow_prediction", "algorithm_type": "dpmsolver",
         "final_sigmas_type": "sigma_min"}, 900, "does not go with algorithm_type 'dpmsolver'",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_sentence(case: str) -> None:
    name, config, t, message = BAD[case]
    scheduler = make(name, **config)
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match=message):
        scheduler.step(noise(0), t, noise(1))


def test_set_timesteps_comes_first_and_a_run_ends() -> None:
    for name in NAMES[1:]:
        with pytest.raises(ValueError, match="set_timesteps has to be called"):
            make(name).step(noise(0), 5, noise(1))
    scheduler = make("DPMSolverMultistep")
    scheduler.set_timesteps(3)
    run(scheduler, noise(0))
    with pytest.raises(ValueError, match="all 3 steps are done"):
        scheduler.step(noise(0), 5, noise(1))


def test_what_is_changed_by_hand_is_seen() -> None:
    scheduler = make("DDIM")
    scheduler.set_timesteps(10)
    x, out = noise(0, dtype=torch.float64), noise(1, dtype=torch.float64)
    scheduler.step(out, 500, x)
    theirs = diffusers.DDIMScheduler(beta_schedule="scaled_linear")
    theirs.set_timesteps(10)
    scheduler.alphas_cumprod = theirs.alphas_cumprod
    scheduler.register_to_config(prediction_type="v_prediction")
    theirs.register_to_config(prediction_type="v_prediction")
    found, expected = (s.step(out, 500, x).prev_sample for s in (scheduler, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def pipeline(kind: str, scheduler: Any) -> Any:
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(16,), down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    made = getattr(diffusers, f"{kind}Pipeline")(unet, diffusers.DDPMScheduler())
    made.scheduler = scheduler.from_config(made.scheduler.config)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("DDPM", {"num_inference_steps": 20}),
        ("DDIM", {"num_inference_steps": 10}),
        ("DDIM", {"num_inference_steps": 10, "eta": 0.7}),
    ],
)
def test_in_diffusers_pipelines(kind: str, arguments: dict[str, Any]) -> None:
    images = [
        pipeline(kind, getattr(library, f"{kind}Scheduler"))(
            batch_size=2, generator=torch.manual_seed(1), output_type="pt", **arguments
        ).images
        for library in (fastdiff, diffusers)
    ]
    ours, theirs = (torch.as_tensor(i) for i in images)
    assert ours.std() > 0.05
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


def test_a_saved_pipeline_opens_without_fastdiff(tmp_path: Path) -> None:
    made = pipeline("DDPM", fastdiff.DDPMScheduler)
    made.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DDPMScheduler"]
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert type(again.scheduler) is diffusers.DDPMScheduler
    assert made.scheduler.config.items() >= again.scheduler.config.items()


def test_schedulers_are_pickled_and_copied_as_they_are() -> None:
    scheduler = make("DDIM", **RIGHT)
    scheduler.set_timesteps(7)
    expected = run(scheduler, noise(0))
    for again in (pickle.loads(pickle.dumps(scheduler)), copy.deepcopy(scheduler)):
        assert type(again) is fastdiff.DDIMScheduler
        assert torch.equal(run(again, noise(0)), expected)
