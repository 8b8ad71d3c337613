"""A run on a GPU: the losses of the CPU, and the same bits when it is resumed."""

import dataclasses

import pytest
import torch

from fastdiff.training import Trainer
from tests.training.runs import assert_same_state, run, started
from tests.training.test_ranks import losses

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
GPU = torch.device("cuda")


def on_the_gpu(config, folder, **changed):
    return run(Trainer.start(dataclasses.replace(config, **changed), folder, GPU))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"variance_type": "learned_range", "objective": "hybrid", "schedule": "cosine"},
        {"schedule": "learned", "objective": "vlb"},
    ],
)
def test_its_losses_are_those_of_the_cpu(config, tmp_path, changed):
    changed = {"dropout": 0.0, **changed}
    run(started(config, tmp_path / "cpu", **changed))
    on_the_gpu(config, tmp_path / "gpu", **changed)
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=2e-3)


def test_bf16_is_near_float32(config, tmp_path):
    on_the_gpu(config, tmp_path / "float32", dropout=0.0)
    on_the_gpu(config, tmp_path / "bf16", dropout=0.0, precision="bf16")
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "float32"), rel=0.05)


def test_a_resumed_run_equals_an_unbroken_one(config, tmp_path):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        on_the_gpu(config, tmp_path / "whole")
        on_the_gpu(config, tmp_path / "parts", steps=3)
        run(Trainer.resume(tmp_path / "parts", GPU, steps=6))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_state(tmp_path / "whole", tmp_path / "parts")
