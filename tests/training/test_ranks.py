"""Several ranks under torchrun train as one does."""

import csv
import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.torchrun import torchrun
from tests.training.runs import run, started

WORKER = Path(__file__).with_name("rank_worker.py")


@pytest.fixture
def keyed(config):
    """Every part that is drawn or gathered, but for dropout, which each rank draws for itself."""
    return dataclasses.replace(
        config, batch_size=12, dropout=0.0, horizontal_flips=True, label_dropout=0.3, timesteps=2,
        variance_type="learned_range", objective="hybrid", timestep_sampler="loss_second_moment",
        steps=16,
    )  # fmt: skip


def on_ranks(count, config, folder, spoil="nothing"):
    settings = folder.with_suffix(".yaml")
    config.save(settings)
    done = torchrun(count, WORKER, settings, folder, spoil)
    assert done.returncode == 0, done.stderr[-3000:]
    states = [load_file(folder / f"rank{rank}.safetensors") for rank in range(count)]
    for state in states[1:]:
        assert all(torch.equal(tensor, states[0][name]) for name, tensor in state.items())
    return done.stdout, states[0]


def losses(folder):
    rows = csv.DictReader((folder / "log.csv").read_text().splitlines())
    return [float(row["loss"]) for row in rows]


@pytest.mark.parametrize(("count", "accumulate"), [(2, 1), (3, 2)])
def test_the_losses_are_those_of_one_rank(keyed, tmp_path, count, accumulate):
    run(started(keyed, tmp_path / "one"))
    several = dataclasses.replace(keyed, accumulate=accumulate)
    _, state = on_ranks(count, several, tmp_path / "several")
    assert losses(tmp_path / "several") == pytest.approx(losses(tmp_path / "one"), rel=2e-5)
    one = load_file(tmp_path / "one" / "checkpoints" / "0000016" / "state.safetensors")
    for name, tensor in one.items():
        if name.startswith(("timesteps.", "ema.")):
            torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=2e-4)
    assert any(name.startswith("timesteps.") and t.any() for name, t in one.items())


def test_three_ranks_resume_to_the_bit(keyed, tmp_path):
    keyed = dataclasses.replace(keyed, dropout=0.2, steps=6)
    _, whole = on_ranks(3, keyed, tmp_path / "whole")
    on_ranks(3, keyed, tmp_path / "parts", "stopped early")
    _, parts = on_ranks(3, keyed, tmp_path / "parts", "resumed")
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(keyed, tmp_path):
    out, _ = on_ranks(2, keyed, tmp_path / "run", "nan on the last rank")
    assert "rank 0 skipped 1" in out and "rank 1 skipped 1" in out


def test_a_signal_to_one_rank_stops_all_after_the_same_step(keyed, tmp_path):
    out, _ = on_ranks(2, keyed, tmp_path / "run", "signal to the last rank")
    for rank in (0, 1):
        assert f"rank {rank} was interrupted after step 4" in out
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["0000004"]


def test_the_group_ends_though_its_trainer_is_still_held(keyed, tmp_path):
    out, _ = on_ranks(2, dataclasses.replace(keyed, steps=1), tmp_path / "run")
    for rank in (0, 1):
        assert f"rank {rank} had the group's threads: True, has: False" in out


def test_a_batch_that_the_ranks_cannot_share_is_refused(config, tmp_path):
    from fastdiff.ranks import Ranks
    from fastdiff.training import Trainer

    with pytest.raises(ValueError, match="4 does not split into 3"):
        Trainer.start(config, tmp_path / "run", torch.device("cpu"), ranks=Ranks(1, 3))
