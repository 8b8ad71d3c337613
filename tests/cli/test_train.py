"""`fastdiff train` trains, resumes, and refuses what it cannot do."""

import json

import numpy as np
import pytest
from PIL import Image

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


def test_resume_goes_on_to_the_new_step(fastdiff, data, tmp_path):
    run = tmp_path / "run"
    assert fastdiff("train", data, "--out", run, "--steps", 2, *SMALL).status == 0
    outcome = fastdiff("train", "--resume", run, "--steps", 5)
    assert outcome.status == 0, outcome.err
    assert json.loads((run / "config.json").read_text())["steps"] == 5
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
    ],
)
def test_bad_input_gets_one_sentence(fastdiff, data, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    outcome = fastdiff("train", *arguments)
    lines = [
        line for line in outcome.err.splitlines() if line and not line.startswith(("Usage", "Try"))
    ]
    assert outcome.status == 2 and len(lines) == 1, outcome
    assert words in lines[0]
    assert not (tmp_path / "run").exists()
