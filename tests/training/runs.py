"""Runs begun, ended and compared."""

import dataclasses

import torch
from safetensors.torch import load_file

from fastdiff.training import Trainer

CPU = torch.device("cpu")


def started(config, folder, **changed):
    return Trainer.start(dataclasses.replace(config, **changed), folder, CPU)


def run(trainer, report=lambda progress: None):
    trainer.run(report)
    return trainer


def newest(folder):
    return max((folder / "checkpoints").iterdir())


def assert_same_state(one, other):
    first, second = (load_file(newest(run) / "state.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
