"""Curves: a line a step in CSV, and the same for TensorBoard."""

import sys

import numpy as np
import pytest

from fastdiff.training import Trainer
from fastdiff.training.log import NO_TENSORBOARD
from tests.training.runs import CPU, run, started


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "events"))
    events.Reload()
    return events


def test_tensorboard_shows_what_the_csv_holds(config, tmp_path):
    run(started(config, tmp_path / "run", validate_every=3, sample_every=3))
    events = scalars(tmp_path / "run")
    rows = np.genfromtxt(tmp_path / "run" / "log.csv", delimiter=",", names=True)
    for name in ("loss", "gradient_norm", "learning_rate", "skipped"):
        shown = events.Scalars(f"training/{name}")
        assert [event.step for event in shown] == list(range(1, 7))
        np.testing.assert_allclose([event.value for event in shown], rows[name], rtol=1e-5)
    assert rows["learning_rate"] == pytest.approx([1e-3 / 3, 2e-3 / 3, *[1e-3] * 4])
    validation = np.genfromtxt(tmp_path / "run" / "validation.csv", delimiter=",", names=True)
    means = [validation["loss"][validation["step"] == step].mean() for step in (3, 6)]
    shown = events.Scalars("validation/loss")
    np.testing.assert_allclose([event.value for event in shown], means, rtol=1e-5)
    assert [image.step for image in events.Images("samples")] == [3, 6]


def test_a_resumed_run_takes_back_what_came_after_its_checkpoint(config, tmp_path):
    def die(progress):
        if progress.step == 5:
            raise RuntimeError("power cut")

    trainer = started(config, tmp_path / "run", save_every=2, validate_every=1)
    with pytest.raises(RuntimeError):
        run(trainer, die)
    run(Trainer.resume(tmp_path / "run", CPU))
    shown = scalars(tmp_path / "run").Scalars("training/loss")
    assert [event.step for event in shown] == list(range(1, 7))
    validation = np.genfromtxt(tmp_path / "run" / "validation.csv", delimiter=",", names=True)
    assert validation["step"].tolist() == [step for step in range(1, 7) for _ in range(20)]


def test_without_tensorboard_the_csv_is_written_and_that_is_said_once(
    config, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    said = []
    run(Trainer.start(config, tmp_path / "run", CPU, say=said.append))
    assert said == [NO_TENSORBOARD]
    assert len((tmp_path / "run" / "log.csv").read_text().splitlines()) == 7
    assert not (tmp_path / "run" / "events").exists()
