"""fastdiff evaluate: figures, report, and one sentence where something is missing."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluation.conftest import torchvision as torchvision
from tests.training.conftest import config as config
from tests.training.runs import run, started


@pytest.fixture
def data(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(30) % 3)
    return tmp_path / "data.npz"


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """As fastdiff sample and guided-diffusion write them."""
    images = np.random.default_rng(1).integers(0, 200, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", images, np.arange(40) % 3)
    return tmp_path / "samples.npz"


def assert_whole(page: str) -> None:
    """Nothing is fetched: no link, no script, every picture inside."""
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "<script" not in page
    assert "@import" not in page and "url(" not in page


def test_data_of_another_size_is_refused(fastdiff: Any, tiny_model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "large.npz", images=np.zeros((4, 12, 12), np.uint8))
    outcome = fastdiff("evaluate", tiny_model, "--data", tmp_path / "large.npz", "--metric", "bits")
    assert outcome.status == 2 and "images of 1 x 12 x 12" in outcome.err
    assert "--image-size" in outcome.err


def test_a_model_that_tells_no_size_takes_any(
    fastdiff: Any, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    config = tmp_path / "model" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": None}))
    outcome = fastdiff(
        "evaluate", tmp_path / "model", "--data", data, "--metric", "bits", "--num", 4,
        "--timesteps", 3,
    )  # fmt: skip
    assert outcome.status == 0 and "4 images" in outcome.out, outcome.err


def test_everything_of_a_model(fastdiff: Any, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    report, figures = tmp_path / "report.html", tmp_path / "figures.json"
    outcome = fastdiff(
        "evaluate", tiny_model, "--data", data, "--num", 24, "--steps", 3, "--timesteps", 5,
        "--features", tiny_model, "--out", report, "--json", figures,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    told = json.loads(figures.read_text())
    names = [*told["figures"]]
    assert names[0] == "bits/dim" and "for timesteps left out" in names
    assert f"Frechet distance (features: {tiny_model})" in names and "FID" not in names
    assert told["figures"]["images compared"] == "24 samples, 24 of the data"
    assert told["told"]["seed"] == "0" and told["told"]["torch"] == torch.__version__
    value = float(told["figures"]["bits/dim"].split()[0])
    assert f"{value:.4f}" in outcome.out and value > 5  # of pure noise
    page = report.read_text()
    assert_whole(page)
    assert page.count("data:image/png;base64,") == 4  # samples, data, neighbours, terms
    assert "larger than that of the 50,000" in page


def test_the_whole_bound_has_its_curve(
    fastdiff: Any, classless_model: Path, data: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    outcome = fastdiff(
        "evaluate", classless_model, "--data", data, "--num", 2, "--metric", "bits", "--out", report
    )
    assert outcome.status == 0, outcome.err
    page = report.read_text()
    assert page.count("data:image/png;base64,") == 3 and "progressive lossy coding" in page


def test_samples_of_any_origin(fastdiff: Any, samples: Path, data: Path) -> None:
    outcome = fastdiff("evaluate", "--samples", samples, "--data", data, "--features", "bundled")
    assert outcome.status == 0, outcome.err
    assert "Frechet distance (features: bundled)" in outcome.out and "bits" not in outcome.out
    assert "40 samples, 30 of the data" in outcome.out


def test_its_bits_are_those_of_python(fastdiff: Any, config: Any, tmp_path: Path) -> None:
    trainer = run(started(config, tmp_path / "run"))
    outcome = fastdiff(
        "evaluate", tmp_path / "run" / "model", "--data", config.data, "--metric", "bits",
        "--num", 5, "--skip", 3, "--seed", 4,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    from fastdiff.training import load_images

    five = load_images(config.data).part(3, 8)
    found = trainer.averaged().bits_per_dim(five.images, class_labels=five.labels, seed=4)
    assert f"{found.total.mean():.4f}" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["give MODEL, or --samples"]),
        (["MODEL", "--out", "a.pdf"], ["a.pdf", ".html"]),
        (["MODEL", "--metric", "bits", "--out", "nowhere/a.html"], ["there is no folder nowhere"]),
        (["MODEL", "--metric", "bits", "--json", "/proc/a.json"], ["/proc/a.json: cannot be"]),
        (["MODEL", "--inception-weights", "nowhere.pth"], ["nowhere.pth", "--features"]),
        (["MODEL", "--features", "nowhere"], ["nowhere"]),
        (["MODEL", "--metric", "bits", "--timesteps", "4"], ["odd", "got 4"]),
        (["MODEL", "--metric", "bits", "--skip", "29"], ["--skip 29", "30 images"]),
    ],
)
def test_what_is_missing_is_told_in_one_sentence(
    fastdiff: Any, tiny_model: Path, data: Path, arguments: list[str], words: list[str]
) -> None:
    given = [str(tiny_model) if a == "MODEL" else a for a in arguments]
    outcome = fastdiff("evaluate", *given, "--data", data)
    assert outcome.status == 2
    assert all(word in outcome.err for word in words), outcome.err
    assert "Traceback" not in outcome.err


def test_a_missing_torch_fidelity_is_told_before_any_work(
    fastdiff: Any, tiny_model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    outcome = fastdiff("evaluate", tiny_model, "--data", data, "--features", tiny_model)
    assert outcome.status == 2 and "pip install 'fastdiff[evaluate]'" in outcome.err
    assert "bits" not in outcome.err and "Traceback" not in outcome.err
