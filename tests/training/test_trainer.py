"""A run does Algorithm 1, resumes to the bit, and never leaves a broken file."""

import dataclasses
import json
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastdiff import UNet
from fastdiff.ops import _library, philox_normal
from fastdiff.training import TrainConfig, Trainer
from fastdiff.training.ema import EMA
from fastdiff.training.trainer import TRAINING_STREAM

CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path):
    generator = np.random.default_rng(0)
    labels = np.arange(24) % 3
    images = np.clip(labels[:, None, None] * 90 + generator.integers(0, 60, (24, 8, 8)), 0, 255)
    np.savez(tmp_path / "data.npz", images=images.astype(np.uint8), labels=labels)
    return TrainConfig(
        data=str(tmp_path / "data.npz"),
        steps=6,
        batch_size=4,
        hold_out=4,
        learning_rate=1e-3,
        warmup_steps=3,
        ema_decay=0.9,
        timesteps=20,
        channels=8,
        multipliers=(1, 2),
        blocks=1,
        attention_resolutions=(4,),
        groups=4,
        dropout=0.1,
    )


def run(trainer, **options):
    trainer.run(**{"save_every": 100, "sample_every": 100, **options})
    return trainer


def state_of(folder):
    return load_file(folder / "state.safetensors")


def assert_same_state(one, other):
    first, second = state_of(one), state_of(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def randomise_zeros(model):
    """A zero last layer would hide every gradient behind it."""
    for weight in model.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)


def test_a_stopped_and_resumed_run_equals_an_unbroken_one(config, tmp_path):
    run(Trainer.start(config, tmp_path / "whole", CPU))
    run(Trainer.start(dataclasses.replace(config, steps=3), tmp_path / "parts", CPU))
    run(Trainer.resume(tmp_path / "parts", CPU, steps=6))
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


def test_a_killed_run_goes_on_from_its_last_saved_state(config, tmp_path):
    def die(progress):
        if progress.step == 5:
            raise RuntimeError("power cut")

    run(Trainer.start(config, tmp_path / "whole", CPU))
    with pytest.raises(RuntimeError, match="power cut"):
        run(Trainer.start(config, tmp_path / "killed", CPU), save_every=2, report=die)
    resumed = Trainer.resume(tmp_path / "killed", CPU)
    assert resumed.step == 4
    run(resumed)
    assert_same_state(tmp_path / "whole", tmp_path / "killed")
    logs = [(tmp_path / name / "log.csv").read_text().splitlines() for name in ("whole", "killed")]
    assert len(logs[0]) == len(logs[1]) == 7
    for whole, killed in zip(*logs, strict=True):
        assert whole.split(",")[:2] == killed.split(",")[:2]


@pytest.fixture
def ctrl_c():
    """Python's own way with SIGINT, where a shell may have told it to ignore that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_saves_the_finished_step(config, tmp_path):
    def press(progress):
        if progress.step == 2:
            signal.raise_signal(signal.SIGINT)

    run(Trainer.start(config, tmp_path / "whole", CPU))
    with pytest.raises(KeyboardInterrupt):
        run(Trainer.start(config, tmp_path / "pressed", CPU), report=press)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = Trainer.resume(tmp_path / "pressed", CPU)
    assert resumed.step == 2
    run(resumed)
    assert_same_state(tmp_path / "whole", tmp_path / "pressed")


def test_a_run_in_a_thread_needs_no_signal(config, tmp_path):
    trainer = Trainer.start(config, tmp_path / "run", CPU)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run, trainer).result()
    assert trainer.step == 6


def test_one_step_is_the_gradient_step_of_algorithm_1(config, tmp_path):
    """Against the paper's formulas and Adam's, written out in float64."""
    config = dataclasses.replace(config, dropout=0.0, warmup_steps=0, gradient_clip=1e9)
    trainer = Trainer.start(config, tmp_path / "run", CPU)
    randomise_zeros(trainer.model)
    model = UNet(**trainer.model.config.to_dict()).double().train()
    model.load_state_dict(trainer.model.state_dict())
    index = torch.tensor([3, 1, 4, 15])
    x_start, labels = trainer.training_data.batch(index)
    t, sample_index = trainer._timesteps_and_indices(4, step=0)
    noise = philox_normal(
        x_start.shape, config.seed, sample_index=sample_index, stream=TRAINING_STREAM
    )

    abar = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 20)))[t].view(-1, 1, 1, 1)
    x_t = abar.sqrt() * x_start.double() + (1 - abar).sqrt() * noise.double()
    loss = (model(x_t, t, class_labels=labels) - noise).square().mean()
    loss.backward()
    reported = trainer.train_step(index)

    assert reported == pytest.approx(loss.item(), rel=1e-5)
    after = dict(trainer.model.named_parameters())
    moved = 0
    for name, before in model.named_parameters():
        gradient = before.grad
        # Adam's first step is lr * g / (|g| + eps): the sign, where g is above rounding.
        expected = before - 1e-3 * gradient / (gradient.abs() + 1e-8)
        clear = gradient.abs() > 1e-3
        moved += int(clear.sum())
        torch.testing.assert_close(after[name].double()[clear], expected[clear], rtol=0, atol=2e-6)
    assert moved > 1000


def test_noise_belongs_to_the_place_in_the_run(config, tmp_path):
    trainer = Trainer.start(config, tmp_path / "run", CPU)
    t, index = trainer._timesteps_and_indices(4, step=3)
    again = trainer._timesteps_and_indices(4, step=3)
    other = trainer._timesteps_and_indices(4, step=4)
    assert torch.equal(t, again[0]) and torch.equal(index, again[1])
    assert sorted([*index.tolist(), *other[1].tolist()]) == list(range(12, 20))
    assert not torch.equal(t, other[0])


def test_the_loss_draws_its_noise_in_the_kernel(config, tmp_path):
    trainer = Trainer.start(config, tmp_path / "run", CPU)
    calls = _library.native_calls("q_sample", "CPU")
    trainer.train_step(torch.arange(4))
    assert _library.native_calls("q_sample", "CPU") == calls + 1


def test_training_lowers_the_loss_by_far(config, tmp_path):
    config = dataclasses.replace(config, steps=150, prediction_type="x_start", dropout=0.0)
    losses = []
    trainer = Trainer.start(config, tmp_path / "run", CPU)
    run(trainer, save_every=1000, sample_every=1000, report=lambda p: losses.append(p.loss))
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


def test_the_run_leaves_a_model_samples_and_its_settings(config, tmp_path):
    trainer = run(Trainer.start(config, tmp_path / "run", CPU), sample_every=3)
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == [
        "0000003.png",
        "0000006.png",
    ]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 6
    loaded = UNet.from_pretrained(tmp_path / "run" / "model")
    for name, weight in loaded.named_parameters():
        assert torch.equal(weight, trainer.ema.weights[name]), name


def test_a_second_run_in_the_same_folder_is_refused(config, tmp_path):
    Trainer.start(config, tmp_path / "run", CPU)
    with pytest.raises(ValueError, match="already holds a run"):
        Trainer.start(config, tmp_path / "run", CPU)


def test_a_cut_state_is_refused(config, tmp_path):
    run(Trainer.start(dataclasses.replace(config, steps=1), tmp_path / "run", CPU))
    path = tmp_path / "run" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state\.safetensors"):
        Trainer.resume(tmp_path / "run", CPU)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("steps", 0), ("learning_rate", -1.0), ("ema_decay", 1.0), ("schedule", "sine")],
)
def test_bad_settings_are_named(config, setting, value):
    with pytest.raises(ValueError, match=setting):
        dataclasses.replace(config, **{setting: value})
