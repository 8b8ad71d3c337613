"""Checkpoints: whole or not at all, the last good one never lost, none of NaNs."""

import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastdiff.training import TrainConfig, Trainer
from tests.training.runs import CPU, assert_same_state, newest, run, started


def steps_saved(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_the_last_ones_are_kept(config, tmp_path):
    run(started(config, tmp_path / "run", save_every=1, keep=3))
    assert steps_saved(tmp_path / "run") == [4, 5, 6]


def spoil_whole(folder):
    path = folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


SPOILERS = {
    "cut tensors": spoil_whole,
    "no tensors": lambda folder: (folder / "state.safetensors").unlink(),
    "no counts": lambda folder: (folder / "state.json").unlink(),
    "empty counts": lambda folder: (folder / "state.json").write_text(""),
    "odd counts": lambda folder: (folder / "state.json").write_text("[1]"),
}


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)
def test_resume_takes_the_newest_whole_one(config, tmp_path, spoil):
    run(started(config, tmp_path / "whole"))
    run(started(config, tmp_path / "run", save_every=2))
    spoil(newest(tmp_path / "run"))
    said = []
    trainer = Trainer.resume(tmp_path / "run", CPU, say=said.append)
    assert trainer.step == 4 and len(said) == 1 and "0000006" in said[0]
    run(trainer)
    assert_same_state(tmp_path / "whole", tmp_path / "run")


def test_without_a_whole_one_resuming_is_refused(config, tmp_path):
    run(started(config, tmp_path / "run"))
    spoil_whole(newest(tmp_path / "run"))
    with pytest.raises(ValueError, match="no whole checkpoint"):
        Trainer.resume(tmp_path / "run", CPU)
    shutil.rmtree(newest(tmp_path / "run"))
    with pytest.raises(ValueError, match="ended before its first"):
        Trainer.resume(tmp_path / "run", CPU)


def test_a_checkpoint_of_another_model_is_refused(config, tmp_path):
    run(started(config, tmp_path / "run"))
    said = []
    dataclasses.replace(config, channels=16).save(tmp_path / "run" / "config.yaml")
    with pytest.raises(ValueError, match="no whole checkpoint of this run"):
        Trainer.resume(tmp_path / "run", CPU, say=said.append)
    assert "[16, 1, 3, 3]" in said[0]


@pytest.mark.parametrize("layer", ["tensors", "counts", "rename"])
def test_a_full_disk_leaves_the_last_one(config, tmp_path, monkeypatch, layer):
    trainer = started(config, tmp_path / "run", save_every=2)

    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(progress):
        if progress.step == 4:
            target = {
                "tensors": "safetensors.torch.save_file",
                "counts": "json.dumps",
                "rename": "os.replace",
            }[layer]
            monkeypatch.setattr(target, full)

    with pytest.raises(OSError, match=r"step 4 could not be written .*No space.* step 2 is kept"):
        run(trainer, fill)
    monkeypatch.undo()
    assert steps_saved(tmp_path / "run") == [2]
    assert Trainer.resume(tmp_path / "run", CPU).step == 2


def test_a_file_that_the_system_cuts_is_no_checkpoint(config, tmp_path):
    """The limit on a file's size stands for a quota: the write fails with bytes on the disk."""
    trainer = started(config, tmp_path / "run", save_every=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(progress):
        if progress.step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    try:
        with pytest.raises(OSError, match=r"step 4 could not be written .*step 2 is kept"):
            run(trainer, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert steps_saved(tmp_path / "run") == [2]
    assert Trainer.resume(tmp_path / "run", CPU).step == 2


def spoil_gradients(trainer, steps):
    """Make the gradient of those steps (their numbers from 1) not finite."""

    def spoil(gradient):
        return gradient * float("nan") if trainer.step + 1 in steps else gradient

    trainer.learner.model.conv_in.weight.register_hook(spoil)


@pytest.mark.parametrize("timesteps", ["uniform", "loss_second_moment"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(
    config,
    tmp_path,
    timesteps,
):
    said = []
    trainer = Trainer.start(
        dataclasses.replace(config, timestep_sampler=timesteps), tmp_path / "run", CPU,
        say=said.append,
    )  # fmt: skip
    spoil_gradients(trainer, {2, 4})
    states = []

    def remember(progress):
        tensors = trainer.learner.state._tensors()
        states.append({name: tensor.clone() for name, tensor in tensors.items()})

    run(trainer, remember)
    for step in (2, 4):
        for name, tensor in states[step - 1].items():
            assert torch.equal(tensor, states[step - 2][name]), name
    assert any(not torch.equal(t, states[1][name]) for name, t in states[2].items())
    assert trainer.skipped == 2 and [s for s in said if s.startswith("step 4 is skipped")]
    counts = json.loads((newest(tmp_path / "run") / "state.json").read_text())
    with np.load(config.data) as arrays:
        data = zlib.crc32(arrays["labels"], zlib.crc32(arrays["images"]))
    assert counts == {"step": 6, "skipped": 2, "skipped_in_a_row": 0, "data_checksum": data}
    log = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert [line.rsplit(",")[-1] for line in log[1:]] == ["0", "1", "0", "1", "0", "0"]


def test_a_run_that_is_no_longer_finite_stops_with_its_last_checkpoint(
    config,
    tmp_path,
):
    trainer = started(config, tmp_path / "run", steps=50, save_every=2, skip_limit=3)
    spoil_gradients(trainer, set(range(5, 50)))
    with pytest.raises(ValueError, match=r"3 steps in a row, up to step 7; .* step 6 is kept"):
        run(trainer)
    assert trainer.step == 7
    for path in (tmp_path / "run").rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())
    assert Trainer.resume(tmp_path / "run", CPU).step == 6


def test_weights_that_are_not_finite_are_never_saved(config, tmp_path):
    trainer = started(config, tmp_path / "run", save_every=2)

    def spoil(progress):
        if progress.step == 4:
            trainer.learner.averages[0].weights["conv_in.bias"][0] = float("inf")

    with pytest.raises(ValueError, match=r"ema\.0\.conv_in\.bias is no longer finite"):
        run(trainer, spoil)
    assert steps_saved(tmp_path / "run") == [2]


SMALL = {
    "steps": 300, "batch_size": 4, "hold_out": 4, "timesteps": 8, "channels": 8,
    "multipliers": (1, 1), "blocks": 1, "attention_resolutions": (), "groups": 4, "dropout": 0.1,
    "ema_decays": (0.9, 0.99), "save_every": 50, "timestep_sampler": "loss_second_moment",
    "variance_type": "learned_range", "objective": "hybrid", "horizontal_flips": True,
    "label_dropout": 0.1, "weight_decay": 0.01, "learning_rate": 1e-3,
}  # fmt: skip


def command(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "fastdiff", "train", *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_killed_at_step_137_and_resumed_it_equals_an_unbroken_run_at_300(
    config,
    tmp_path,
):
    settings = tmp_path / "settings.yaml"
    TrainConfig(data=config.data, **SMALL).save(settings)
    whole = command("--config", settings, "--out", tmp_path / "whole")
    killed = command("--config", settings, "--out", tmp_path / "killed")
    log = tmp_path / "killed" / "log.csv"
    while not log.exists() or log.read_text().count("\n") < 138:
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.002)
    killed.kill()
    killed.communicate()
    assert 137 <= int(log.read_text().splitlines()[-1].split(",")[0]) < 300
    resumed = command("--resume", tmp_path / "killed")
    for process in (whole, resumed):
        out, _ = process.communicate(timeout=600)
        assert process.returncode == 0, out
    assert_same_state(tmp_path / "whole", tmp_path / "killed")
    counts = json.loads((newest(tmp_path / "killed") / "state.json").read_text())
    assert counts["step"] == 300
    names = set(load_file(newest(tmp_path / "killed") / "state.safetensors"))
    parts = ("model.", "ema.0.", "ema.1.", "optimizer.", "timesteps.")
    assert all(any(name.startswith(part) for name in names) for part in parts)
