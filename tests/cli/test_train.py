"""`fastdiff train` trains, resumes, and refuses what it cannot do."""

import dataclasses

import click
import numpy as np
import pytest
import yaml
from PIL import Image

from fastdiff.cli.train import train
from fastdiff.training import TrainConfig
from tests.torchrun import torchrun

SMALL = (
    "--batch-size", 4, "--channels", 8, "--multipliers", "1,2", "--blocks", 1, "--groups", 4,
    "--attention-resolutions", "4", "--timesteps", 50,
)  # fmt: skip


@pytest.fixture
def data(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(12) % 2)
    return tmp_path / "data.npz"


def test_a_trained_model_draws(fastdiff, data, tmp_path):
    run = tmp_path / "run"
    outcome = fastdiff(
        "train", data, "--out", run, "--steps", 4, "--sample-every", 4, "--hold-out", 4, *SMALL
    )
    assert outcome.status == 0, outcome.err
    assert "trained to step 4" in outcome.out and "by timestep" in outcome.out
    assert Image.open(run / "samples" / "0000004.png").size == (2 * 10 + 2, 50 * 10 + 2)
    drawn = fastdiff("sample", run / "model", "--num", 2, "--steps", 3, "--out", tmp_path / "a.png")
    assert drawn.status == 0, drawn.err


def test_photographs_of_any_size_train_a_square_model(fastdiff, tmp_path):
    (tmp_path / "photographs").mkdir()
    for i, size in enumerate([(20, 31), (9, 9), (40, 16), (16, 12)]):
        Image.new("RGB", size, (40 * i, 90, 20)).save(tmp_path / "photographs" / f"{i}.jpg")
    pictures, run = tmp_path / "photographs", tmp_path / "run"
    refused = fastdiff("train", pictures, "--out", run, "--steps", 2, *SMALL)
    assert refused.status == 2 and "--image-size" in refused.err
    trained = fastdiff("train", pictures, "--image-size", 8, "--out", run, "--steps", 2, *SMALL)
    assert trained.status == 0, trained.err
    measured = fastdiff(
        "evaluate", run / "model", "--data", pictures, "--image-size", 8, "--metric", "bits",
        "--timesteps", 5,
    )  # fmt: skip
    assert measured.status == 0 and "4 images" in measured.out, measured.err


def test_resume_goes_on_to_the_new_step(fastdiff, data, tmp_path):
    run = tmp_path / "run"
    assert fastdiff("train", data, "--out", run, "--steps", 2, *SMALL).status == 0
    outcome = fastdiff("train", "--resume", run, "--steps", 5)
    assert outcome.status == 0, outcome.err
    assert yaml.safe_load((run / "config.yaml").read_text())["steps"] == 5
    assert [line.split(",")[0] for line in (run / "log.csv").read_text().split()][1:] == list(
        "12345"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone.npz", "--out", "run"], "gone.npz"),
        (["data.npz"], "--out"),
        (["data.npz", "--out", "run", "--batch-size", 100], "100"),
        (["data.npz", "--out", "run", "--hold-out", 12], "12"),
        (["data.npz", "--out", "run", "--multipliers", "1,x"], "1,x"),
        (["data.npz", "--out", "run", "--batch-size", 4, "--channels", 6], "32"),
        (["--resume", "gone"], "gone"),
        (["data.npz", "--resume", "run"], "--resume"),
        (["--resume", "run", "--learning-rate", "1e-3"], "--learning-rate cannot change"),
        (["--resume", "run", "--config", "fine.yaml"], "--resume"),
        (["--config", "gone.yaml", "--out", "run"], "gone.yaml"),
        (["--config", "settings.yaml", "--out", "run"], "settings.yaml sets epochs"),
        (["data.npz", "--out", "run", "--variance-type", "learned"], "objective hybrid or vlb"),
        (["data.npz", "--out", "run", "--ema-decays", "a"], "'a'"),
        (["data.npz", "--out", "run", "--steps", 0], "steps is 0"),
    ],
)
def test_bad_input_gets_one_sentence(fastdiff, data, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text("epochs: 3\n")
    (tmp_path / "fine.yaml").write_text("steps: 3\n")
    outcome = fastdiff("train", *arguments)
    lines = [
        line for line in outcome.err.splitlines() if line and not line.startswith(("Usage", "Try"))
    ]
    assert outcome.status == 2 and len(lines) == 1, outcome
    assert words in lines[0]
    assert not (tmp_path / "run").exists()


def test_every_setting_is_an_option_of_the_same_default():
    options = {param.name: param for param in train.params if isinstance(param, click.Option)}
    with click.Context(train) as context:
        for setting in dataclasses.fields(TrainConfig):
            if setting.name != "data":
                default = options[setting.name].get_default(context)
                shown = options[setting.name].type_cast_value(context, default)
                assert shown == setting.default, setting.name


def test_flags_override_the_file_and_the_run_keeps_both(fastdiff, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(
        "data.npz", steps=3, batch_size=4, channels=8, multipliers=(1, 2), blocks=1, groups=4,
        attention_resolutions=(4,), timesteps=50, learning_rate=0.5, horizontal_flips=True,
        class_conditional=False,
    )  # fmt: skip
    config.save(tmp_path / "settings.yaml")
    outcome = fastdiff(
        "train", "--config", "settings.yaml", "--out", "run", "--learning-rate", "1e-4",
        "--no-horizontal-flips", "--attention-resolutions", "", "--class-conditional",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    kept = TrainConfig.load(tmp_path / "run" / "config.yaml")
    assert kept == dataclasses.replace(
        config, data=str(tmp_path / "data.npz"), learning_rate=1e-4, horizontal_flips=False,
        attention_resolutions=(), class_conditional=True,
    )  # fmt: skip


def test_a_model_of_learned_variances_and_hidden_labels_draws_by_guidance(fastdiff, data, tmp_path):
    run = tmp_path / "run"
    outcome = fastdiff(
        "train", data, "--out", run, "--steps", 3, *SMALL, "--variance-type", "learned_range",
        "--objective", "hybrid", "--label-dropout", 0.2, "--ema-decays", "0.9,0.5",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    for model in ("model", "model-0.5"):
        drawn = fastdiff(
            "sample", run / model, "--num", 4, "--steps", 3, "--sampler", "ddpm",
            "--guidance-scale", 3, "--out", tmp_path / "a.npz", "--out", tmp_path / "a.png",
        )  # fmt: skip
        assert drawn.status == 0, drawn.err
        with np.load(tmp_path / "a.npz") as arrays:
            assert arrays["arr_1"].tolist() == [0, 1, 0, 1]


def test_torchrun_starts_it(data, tmp_path):
    settings = ["train", data, "--out", tmp_path / "run", "--steps", 2, "--device", "cpu", *SMALL]
    done = torchrun(2, "-m", "fastdiff", *map(str, settings))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained to step 2") == 1
