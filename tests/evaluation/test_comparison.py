"""Distances between sets of images: Gaussians in closed form, and other people's formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

import fastdiff
from fastdiff.evaluation import FeatureNet, Features, compare, inception_net, unet_net
from fastdiff.evaluation.comparison import nearest


def pixels(images: Tensor) -> Features:
    """Each pixel a feature."""
    return Features(images.flatten(1).float())


PIXELS = FeatureNet("pixels", pixels)


def gaussian_images(count: int, mean: float, seed: int, spread: float = 20.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = mean + spread * torch.randn(count, 1, 2, 3, generator=generator)
    return values.round().clamp(0, 255).to(torch.uint8)


def frechet(a: Tensor, b: Tensor) -> float:
    """Heusel et al. 2017, by scipy's square root of a matrix."""
    (m, c), (n, d) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a.numpy(), b.numpy()))
    root = scipy.linalg.sqrtm(c @ d).real
    return float(((m - n) ** 2).sum() + np.trace(c + d - 2 * root))


def squared_mmd(a: Tensor, b: Tensor) -> float:
    """Binkowski et al. 2018, eq. 4, term by term."""
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def off_diagonal(x: Tensor) -> Tensor:
        return (kernel(x, x).sum() - kernel(x, x).diagonal().sum()) / (len(x) * (len(x) - 1))

    return float(off_diagonal(a) + off_diagonal(b) - 2 * kernel(a, b).mean())


def test_figures_are_those_of_the_papers() -> None:
    a, b = gaussian_images(300, 120, 0), gaussian_images(300, 130, 1, 30.0)
    found = compare(a, b, PIXELS)
    va, vb = (pixels(x).vectors.double() for x in (a, b))
    assert found.frechet == pytest.approx(frechet(va, vb), rel=1e-6)
    # One subset is all there is, a hundred times over in another order.
    assert found.kernel[0] == pytest.approx(squared_mmd(va, vb), rel=1e-6)
    assert found.kernel[1] < 1e-6 * found.kernel[0] and found.score is None
    exact = 6 * (10**2 + (30 - 20) ** 2)  # of the Gaussians themselves
    assert found.frechet == pytest.approx(exact, rel=0.2)


def test_equal_sets_and_halves_of_one_set() -> None:
    images = gaussian_images(800, 120, 0)
    same = compare(images, images, PIXELS)
    assert abs(same.frechet) < 1e-6
    halves = compare(images[:400], images[400:], PIXELS)
    far = compare(images[:400], gaussian_images(400, 150, 2), PIXELS)
    assert abs(halves.kernel[0]) < 0.01 * far.kernel[0] and halves.frechet < 0.02 * far.frechet


def test_the_score_of_logits_that_are_known() -> None:
    """Ten classes, each certain and as frequent as another: ten; all alike: one."""
    images = gaussian_images(2000, 120, 0)
    certain = 60.0 * torch.eye(10).repeat(200, 1)

    def classifier(logits: Tensor) -> FeatureNet:
        seen = 0

        def call(batch: Tensor) -> Features:
            nonlocal seen
            seen += len(batch)
            return Features(pixels(batch).vectors, logits[seen - len(batch) : seen])

        return FeatureNet("known", call)

    one = compare(images, images[:100], classifier(torch.cat([certain, certain[:100]])))
    assert one.score is not None and one.score[0] == pytest.approx(10, rel=0.05)
    even = compare(images, images[:100], classifier(torch.zeros(2100, 10)))
    assert even.score == pytest.approx((1.0, 0.0))


def test_the_nearest_is_the_copy() -> None:
    reference = torch.randint(0, 256, (50, 1, 4, 4), dtype=torch.uint8)
    samples = reference[[7, 49, 0]].clone()
    samples[:, 0, 0, 0] //= 2
    found = compare(samples, reference, PIXELS, num_nearest=3)
    assert found.nearest.tolist() == [7, 49, 0]
    assert nearest(torch.zeros(0, 3), torch.zeros(2, 3)).shape == (0,)


def test_few_images_are_noted() -> None:
    few = torch.randint(0, 256, (12, 1, 4, 4), dtype=torch.uint8)
    assert "12 images say little of a covariance of 16" in compare(few, few, PIXELS).notes[0]
    some = gaussian_images(100, 120, 0)
    assert "larger than that of the 50,000" in compare(some, some, PIXELS).notes[0]


def test_what_does_not_fit_is_told() -> None:
    grey, colour = torch.zeros(4, 1, 4, 4).byte(), torch.zeros(4, 3, 4, 4).byte()
    with pytest.raises(ValueError, match=r"\[1, 4, 4\] and the reference \[3, 4, 4\]"):
        compare(grey, colour, PIXELS)
    with pytest.raises(ValueError, match="two images or more"):
        compare(grey[:1], grey, PIXELS)


def test_progress_goes_over_both_sets() -> None:
    told: list[tuple[int, int]] = []
    images = gaussian_images(100, 120, 0)
    compare(images, images[:10], PIXELS, progress=lambda *done: told.append(done))
    assert told == [(64, 110), (100, 110), (110, 110)]


def test_features_of_a_unet_see_what_is_in_the_image() -> None:
    net = unet_net(fastdiff.load(), "bundled")
    blank = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
    bright = blank.clone()
    bright[:, :, 8:20, 12:16] = 255
    a, b = net(blank), net(bright)
    assert a.vectors.shape == b.vectors.shape and a.vectors.ndim == 2 and a.logits is None
    torch.testing.assert_close(a.vectors[0], a.vectors[3], rtol=1e-3, atol=1e-4)
    assert (a.vectors - b.vectors).norm() > 0.1 * a.vectors.norm()


def test_missing_inception_weights_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"weights-inception-2015-12-05-6726825d\.pth.*--features"):
        inception_net()
    hostile = tmp_path / "hostile.pth"
    torch.save({"x": print}, hostile)
    with pytest.raises(ValueError, match="no file of weights"):
        inception_net(hostile)


def test_inception_is_torch_fidelitys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights of its shapes: grey images go in as colour, features and logits come."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *a, **k: None)
        torch.manual_seed(0)
        theirs: Any = module.FeatureExtractorInceptionV3("any", ["2048", "logits_unbiased"])
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    net = inception_net(tmp_path / "weights.pth")
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    found = net(images)
    vectors, logits = theirs(images.expand(-1, 3, -1, -1))
    assert found.logits is not None and found.vectors.shape == (2, 2048)
    torch.testing.assert_close(found.vectors, vectors)
    torch.testing.assert_close(found.logits, logits)
    assert net.name == "Inception-v3" and math.isfinite(float(found.vectors.sum()))
