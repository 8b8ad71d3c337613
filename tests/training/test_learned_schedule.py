"""Training a noise schedule with the model: exported, resumed, shared."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from fastdiff import checkpoints
from fastdiff.training import Trainer
from tests.training.runs import CPU, assert_same_state, newest, run, started
from tests.training.test_ranks import losses, on_ranks


@pytest.fixture
def learning(config):
    return dataclasses.replace(config, schedule="learned", objective="vlb", dropout=0.0)


def test_the_model_is_saved_with_the_schedule_as_it_is(learning, tmp_path):
    trainer = run(started(learning, tmp_path / "run", learning_rate=0.05))
    saved = checkpoints.load(tmp_path / "run" / "model").schedule
    assert saved == trainer.learner.learned.export()
    begun = started(learning, tmp_path / "other").learner.learned.export()
    assert abs(saved.betas - begun.betas).max() > 1e-3
    tensors = load_file(newest(tmp_path / "run") / "state.safetensors")
    assert {name for name in tensors if name.startswith("schedule.")} == {
        "schedule.last", "schedule.log_fall", "schedule.slopes", "schedule.offsets",
        "schedule.heights",
    }  # fmt: skip


def test_a_resumed_run_equals_an_unbroken_one(learning, tmp_path):
    run(started(learning, tmp_path / "whole"))
    run(started(learning, tmp_path / "parts", steps=3))
    run(Trainer.resume(tmp_path / "parts", CPU, steps=6))
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


def test_two_ranks_learn_the_schedule_of_one(learning, tmp_path):
    learning = dataclasses.replace(learning, batch_size=8, steps=8)
    run(started(learning, tmp_path / "one"))
    _, state = on_ranks(2, learning, tmp_path / "two")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-5)
    one = load_file(newest(tmp_path / "one") / "state.safetensors")
    for name, tensor in one.items():
        if name.startswith("schedule."):
            torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changed", [{"objective": "simple"}, {"prediction_type": "v"}])
def test_what_it_cannot_be_trained_by_is_refused(learning, changed):
    with pytest.raises(ValueError, match="take objective vlb, prediction_type epsilon"):
        dataclasses.replace(learning, **changed)
