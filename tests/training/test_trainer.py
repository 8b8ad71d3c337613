"""A run does Algorithm 1, resumes to the bit, and never leaves a broken file."""

import csv
import dataclasses
import math
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import UNet
from fastdiff.ops import _library, philox_normal
from fastdiff.training import TrainConfig, Trainer, learner
from fastdiff.training.draws import TRAINING_STREAM, draw
from fastdiff.training.ema import EMA
from tests.training.runs import CPU, assert_same_state, run, started

# Every part that keeps something from step to step, or draws by chance.
EVERYTHING = {
    "accumulate": 2,
    "ema_decays": (0.9, 0.5),
    "weight_decay": 0.1,
    "horizontal_flips": True,
    "label_dropout": 0.3,
    "variance_type": "learned_range",
    "objective": "hybrid",
    "timestep_sampler": "loss_second_moment",
    "timesteps": 2,
    "precision": "bf16",
    "checkpoint_activations": True,
}


def log_of(folder):
    return list(csv.DictReader((folder / "log.csv").read_text().splitlines()))


def randomise_zeros(model):
    """A zero last layer would hide every gradient behind it."""
    for weight in model.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)


@pytest.mark.parametrize("parts", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_stopped_and_resumed_run_equals_an_unbroken_one(config, tmp_path, parts):
    config = dataclasses.replace(config, steps=20, **parts)
    run(started(config, tmp_path / "whole"))
    run(started(config, tmp_path / "parts", steps=13))
    run(Trainer.resume(tmp_path / "parts", CPU, steps=20))
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("changed", ["nothing", "images", "labels"])
def test_a_run_that_goes_on_with_other_data_says_so(config, tmp_path, changed):
    run(started(config, tmp_path / "run", steps=3))
    with np.load(config.data) as arrays:
        found = {name: array.copy() for name, array in arrays.items()}
    if changed != "nothing":
        found[changed].flat[0] ^= 1
        np.savez(config.data, **found)
    told = []
    Trainer.resume(tmp_path / "run", CPU, say=told.append)
    assert len(told) == (changed != "nothing")
    assert all("data.npz holds other images or labels than at step 3" in line for line in told)


def test_a_broken_run_goes_on_from_its_newest_checkpoint(config, tmp_path):
    def die(progress):
        if progress.step == 5:
            raise RuntimeError("power cut")

    run(started(config, tmp_path / "whole"))
    with pytest.raises(RuntimeError, match="power cut"):
        run(started(config, tmp_path / "broken", save_every=2), die)
    resumed = Trainer.resume(tmp_path / "broken", CPU)
    assert resumed.step == 4
    run(resumed)
    assert_same_state(tmp_path / "whole", tmp_path / "broken")
    whole, broken = log_of(tmp_path / "whole"), log_of(tmp_path / "broken")
    assert len(whole) == len(broken) == 6
    for a, b in zip(whole, broken, strict=True):
        assert {**a, "images_per_second": 0} == {**b, "images_per_second": 0}


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def stop_signal(request):
    """Python's own way with SIGINT, where a shell may have told it to ignore that."""
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


def test_ctrl_c_and_kill_save_the_finished_step(config, tmp_path, stop_signal):
    def press(progress):
        if progress.step == 2:
            signal.raise_signal(stop_signal)

    run(started(config, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        run(started(config, tmp_path / "pressed"), press)
    assert signal.getsignal(stop_signal) is signal.default_int_handler
    resumed = Trainer.resume(tmp_path / "pressed", CPU)
    assert resumed.step == 3  # the ranks hear of it with the losses of the next step
    run(resumed)
    assert_same_state(tmp_path / "whole", tmp_path / "pressed")


def test_a_run_in_a_thread_needs_no_signal(config, tmp_path):
    trainer = started(config, tmp_path / "run")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run, trainer).result()
    assert trainer.step == 6


@pytest.mark.parametrize("clip", [1e-3, 1e9])
def test_the_gradient_that_adam_sees_is_clipped(config, tmp_path, clip):
    trainer = started(config, tmp_path / "run", gradient_clip=clip)
    learner = trainer.learner
    reported = trainer.train_step(torch.tensor([3, 1, 4, 15]))
    # After one step the first moment is a tenth of the gradient.
    moments = [state["exp_avg"].double() / 0.1 for state in learner.optimizer.state.values()]
    seen = math.sqrt(sum(float(moment.square().sum()) for moment in moments))
    assert reported.gradient_norm > 2e-3
    assert seen == pytest.approx(min(clip, reported.gradient_norm), rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_one_step_is_the_gradient_step_of_algorithm_1(config, tmp_path, accumulate):
    """Against the paper's formulas and AdamW's, written out in float64."""
    trainer = started(
        config, tmp_path / "run", dropout=0.0, warmup_steps=0, gradient_clip=1e9,
        weight_decay=0.01, accumulate=accumulate,
    )  # fmt: skip
    config, learner = trainer.config, trainer.learner
    randomise_zeros(learner.model)
    model = UNet(**learner.model.config.to_dict()).double().train()
    model.load_state_dict(learner.model.state_dict())
    index = torch.tensor([3, 1, 4, 15])
    x_start, labels = trainer.training_data.batch(index)
    t = draw(config, learner.timesteps, step=0).t
    noise = philox_normal(
        x_start.shape, config.seed, sample_index=torch.arange(4), stream=TRAINING_STREAM
    )

    abar = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 20)))[t].view(-1, 1, 1, 1)
    x_t = abar.sqrt() * x_start.double() + (1 - abar).sqrt() * noise.double()
    loss = (model(x_t, t, class_labels=labels) - noise).square().mean()
    loss.backward()
    reported = trainer.train_step(index)

    assert reported.loss == pytest.approx(loss.item(), rel=1e-5)
    norm = math.sqrt(sum(float(w.grad.square().sum()) for w in model.parameters()))
    assert reported.gradient_norm == pytest.approx(norm, rel=1e-4)
    after = dict(learner.model.named_parameters())
    moved = 0
    for name, before in model.named_parameters():
        gradient = before.grad
        # Adam's first step is lr * g / (|g| + eps): the sign, where g is above rounding.
        expected = before * (1 - 1e-3 * 0.01) - 1e-3 * gradient / (gradient.abs() + 1e-8)
        clear = gradient.abs() > 1e-3
        moved += int(clear.sum())
        torch.testing.assert_close(after[name].double()[clear], expected[clear], rtol=0, atol=2e-6)
    assert moved > 1000


def test_what_is_drawn_belongs_to_the_place_in_the_run(config, tmp_path):
    config = dataclasses.replace(config, horizontal_flips=True, label_dropout=0.25, batch_size=2000)
    timesteps = started(config, tmp_path / "run", batch_size=4).learner.timesteps
    first, again, other = (draw(config, timesteps, step) for step in (3, 3, 4))
    for field in dataclasses.fields(first):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name))
    indices = torch.cat([first.sample_index, other.sample_index])
    assert indices.tolist() == list(range(6000, 10000))
    for name in ("t", "flipped", "label_hidden"):
        one, two = (getattr(draws, name).double() for draws in (first, other))
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.1, name  # 4.5 standard deviations
    assert first.flipped.double().mean() == pytest.approx(0.5, abs=0.05)
    assert first.label_hidden.double().mean() == pytest.approx(0.25, abs=0.05)


def seen_by(trainer, steps):
    """What the network is given: every x_t and its labels."""
    seen = []

    def watch(module, arguments):
        seen.append(tuple(a.clone() for a in arguments if a is not None))

    with trainer.learner.model.register_forward_pre_hook(watch):
        for step in range(steps):
            trainer.train_step(trainer.batches[step])
    return seen


def test_flipped_images_are_mirrored_and_the_noise_is_not(config, tmp_path):
    plain = seen_by(started(config, tmp_path / "plain"), 4)
    trainer = started(config, tmp_path / "flipped", horizontal_flips=True)
    flipped, count = seen_by(trainer, 4), 0
    for step, ((x, *_), (y, *_)) in enumerate(zip(plain, flipped, strict=True)):
        draws = draw(trainer.config, trainer.learner.timesteps, step)
        x_start, _ = trainer.training_data.batch(trainer.batches[step])
        scale = trainer.learner.schedule.sqrt_alphas_cumprod[draws.t.numpy()]
        mirrored = (x_start.flip(3) - x_start).double() * torch.from_numpy(scale).view(-1, 1, 1, 1)
        expected = torch.where(draws.flipped.view(-1, 1, 1, 1), x + mirrored, x.double())
        torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-6)
        count += int(draws.flipped.sum())
    assert 0 < count < 16


def test_hidden_labels_are_the_label_for_no_class(config, tmp_path):
    plain = seen_by(started(config, tmp_path / "plain"), 5)
    trainer = started(config, tmp_path / "hidden", label_dropout=0.5)
    hidden = torch.cat([labels for _, _, labels in seen_by(trainer, 5)])
    labels = torch.cat([labels for _, _, labels in plain])
    changed = hidden != labels
    assert (hidden[changed] == 3).all() and 0 < changed.sum() < 20


def test_a_model_of_hidden_labels_guides(config, tmp_path):
    run(started(config, tmp_path / "run", label_dropout=0.2))
    model = fastdiff.load(tmp_path / "run" / "model")
    assert (model.num_classes, model.unet.num_classes, model.no_class_label) == (3, 4, 3)
    images = fastdiff.sample(
        model.unet, (2, *model.sample_shape), schedule=model.schedule, steps=3, sampler="ddim",
        class_labels=torch.tensor([0, 1]), uncond_labels=torch.tensor([3, 3]), guidance_scale=2.0,
    )  # fmt: skip
    assert images.isfinite().all()


def test_label_dropout_without_labels_is_refused(config, tmp_path):
    np.savez(tmp_path / "bare.npz", images=np.zeros((20, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="has no labels"):
        started(config, tmp_path / "run", data=str(tmp_path / "bare.npz"), label_dropout=0.1)


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_learned_variances_are_saved_with_the_model(config, tmp_path, variance_type):
    trainer = started(
        config, tmp_path / "run", variance_type=variance_type, objective="hybrid", schedule="cosine"
    )
    before = trainer.learner.model.conv_out.weight.detach().clone()
    run(trainer)
    moved = (trainer.learner.model.conv_out.weight != before).flatten(1).any(1)
    assert moved.tolist() == [True, True]  # the mean's channel and the variance's
    model = fastdiff.load(tmp_path / "run" / "model")
    assert model.variance_type == variance_type
    assert model.unet.config.out_channels == 2
    assert np.allclose(model.schedule.betas, fastdiff.NoiseSchedule.cosine(20).betas)
    assert model.sample(2, sampler="ddpm").isfinite().all()


def test_the_loss_draws_its_noise_in_the_kernel(config, tmp_path):
    trainer = started(config, tmp_path / "run")
    calls = _library.native_calls("q_sample", "CPU")
    trainer.train_step(torch.arange(4))
    assert _library.native_calls("q_sample", "CPU") == calls + 1


def test_bf16_keeps_its_weights_in_float32(config, tmp_path, monkeypatch):
    monkeypatch.setattr(learner, "onednn_knows", lambda dtype: True)
    dtypes = set()
    trainer = started(config, tmp_path / "run", precision="bf16")
    hook = trainer.learner.model.conv_out.register_forward_hook(
        lambda module, inputs, output: dtypes.add(output.dtype)
    )
    run(trainer)
    hook.remove()
    assert dtypes == {torch.bfloat16}
    assert {weight.dtype for weight in trainer.learner.model.parameters()} == {torch.float32}


def test_bf16_is_float32_where_the_processor_does_not_know_it(config, tmp_path, monkeypatch):
    monkeypatch.setattr(learner, "onednn_knows", lambda dtype: dtype != torch.bfloat16)
    with pytest.warns(RuntimeWarning, match="bf16 trains in float32 here"):
        run(started(config, tmp_path / "bf16", precision="bf16"))
    run(started(config, tmp_path / "float32"))
    losses = [[row["loss"] for row in log_of(tmp_path / name)] for name in ("bf16", "float32")]
    assert len(losses[0]) > 0 and losses[0] == losses[1]


def test_a_compiled_run_is_the_same_to_rounding(config, tmp_path):
    """Traced and cut into forward and backward; what makes code of that is torch's own affair."""
    losses = {}
    compile = torch.nn.Module.compile
    for name in ("eager", "compiled"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.Module, "compile", lambda m: compile(m, backend="aot_eager"))
            trainer = started(config, tmp_path / name, compile=name == "compiled", dropout=0.0)
        run(trainer, lambda p, name=name: losses.setdefault(name, []).append(p.loss))
    assert trainer.learner.model._compiled_call_impl is not None
    assert losses["compiled"] == pytest.approx(losses["eager"], rel=1e-4)


def test_training_lowers_the_loss_by_far(config, tmp_path):
    losses = []
    trainer = started(
        config, tmp_path / "run", steps=150, prediction_type="x_start", dropout=0.0, save_every=1000
    )
    run(trainer, lambda p: losses.append(p.loss))
    assert np.mean(losses[-20:]) < 0.3 * np.mean(losses[:5])
    assert all(loss < 1 for _, loss in trainer.held_out_loss(points=3))


def test_ema_follows_its_recurrence():
    weight = torch.nn.Parameter(torch.zeros(1))
    model = torch.nn.ParameterList([weight])
    ema, expected = EMA(model, decay=0.8), 0.0
    for step in range(1, 60):
        weight.data.fill_(float(step))
        ema.update(model, step)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert ema.weights["0"].item() == pytest.approx(expected, rel=1e-6)


def test_the_run_leaves_models_samples_curves_and_its_settings(config, tmp_path):
    trainer = started(
        config, tmp_path / "run", sample_every=3, validate_every=2, ema_decays=(0.9, 0.5)
    )
    run(trainer)
    folder = tmp_path / "run"
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        "0000003.png",
        "0000006.png",
    ]
    assert TrainConfig.load(folder / "config.yaml") == trainer.config
    for name, average in zip(("model", "model-0.5"), trainer.learner.averages, strict=True):
        for key, weight in UNet.from_pretrained(folder / name).named_parameters():
            assert torch.equal(weight, average.weights[key]), key
    validation = list(csv.DictReader((folder / "validation.csv").read_text().splitlines()))
    assert [row["step"] for row in validation[::20]] == ["2", "4", "6"]
    assert [int(row["t"]) for row in validation[:20]] == list(range(20))
    final = dict(trainer.held_out_loss())
    for row in validation[40:]:
        assert float(row["loss"]) == pytest.approx(final[int(row["t"])], rel=1e-5)


def test_samples_that_are_not_finite_do_not_end_the_run(config, tmp_path):
    said = []
    trainer = Trainer.start(config, tmp_path / "run", CPU, say=said.append)
    next(iter(trainer.learner.averages[0].weights.values())).fill_(float("nan"))
    assert (trainer.draw_samples(4, steps=2) == 128).any()
    assert "not all finite" in said[0]


def test_validation_is_the_loss_by_the_papers_formula(config, tmp_path):
    trainer = run(started(config, tmp_path / "run"))
    x_start, labels = trainer.held_out.batch(torch.arange(4))
    (_, _), (t, found), (_, _) = trainer.held_out_loss(points=3)
    noise = philox_normal(x_start.shape, 0, sample_index=torch.arange(4), draw=1, stream=2)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 20))[t]
    x_t = math.sqrt(abar) * x_start + math.sqrt(1 - abar) * noise
    with torch.no_grad():
        out = trainer.averaged().unet(x_t, t, labels)
    assert found == pytest.approx(float((out - noise).square().mean()), rel=1e-4)


def test_a_second_run_in_the_same_folder_is_refused(config, tmp_path):
    started(config, tmp_path / "run")
    with pytest.raises(ValueError, match="already holds a run"):
        started(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"batch_size": 6, "accumulate": 4}, "6 does not split into 4"),
        ({"multipliers": (1, 1, 1, 1, 1), "attention_resolutions": ()}, "multiples of 16"),
        ({"hold_out": 24}, "hold_out 24"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_named(config, tmp_path, changed, words):
    with pytest.raises(ValueError, match=words):
        started(config, tmp_path / "run", **changed)
    assert not (tmp_path / "run").exists()
