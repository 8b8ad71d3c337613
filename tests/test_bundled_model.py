"""The bundled model is what its card says, and draws digits that are read as what they are."""

import os
import re
from pathlib import Path

import pytest
import torch

import fastdiff
from fastdiff.checkpoints import BUNDLED
from fastdiff.training.data import load_images
from tests.digit_classifier import classify, train_digit_classifier

ROOT = Path(__file__).parents[1]
MNIST = Path(os.environ.get("FASTDIFF_DATA", ROOT.parent / "shared" / "data")) / "mnist"
needs_mnist = pytest.mark.skipif(
    not MNIST.is_dir(), reason=f"no MNIST files in {MNIST}; FASTDIFF_DATA names their parent"
)


@pytest.fixture(scope="module")
def digits():
    """7,000 to train and 1,000 to test, in [-1, 1]."""
    data = load_images(MNIST)
    images, labels = data.batch(torch.arange(len(data)))
    return (images[:7000], labels[:7000]), (images[7000:], labels[7000:])


def test_it_is_small():
    size = sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file())
    assert size <= 6_000_000


def test_diffusers_loads_it_and_agrees():
    from diffusers import DDPMPipeline

    pipeline = DDPMPipeline.from_pretrained(BUNDLED, local_files_only=True)
    ours = fastdiff.load()
    x, t = torch.randn(3, *ours.sample_shape), torch.tensor([0, 500, 999])
    labels = torch.tensor([7, 0, 9])
    with torch.no_grad():
        mine, theirs = ours.unet(x, t, labels), pipeline.unet(x, t, labels).sample
    assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    table = torch.tensor(ours.schedule.alphas_cumprod)
    torch.testing.assert_close(
        pipeline.scheduler.alphas_cumprod.double(), table, rtol=2e-4, atol=1e-9
    )


@needs_mnist
@pytest.mark.many_threads
def test_a_classifier_of_real_digits_recognises_its_samples(digits):
    (images, labels), (test_images, test_labels) = digits
    classifier = train_digit_classifier(images, labels)
    on_real = (classify(classifier, test_images) == test_labels).float().mean().item()
    assert on_real >= 0.975

    model = fastdiff.load()
    wanted = torch.arange(1000) % 10
    samples = torch.cat([
        fastdiff.sample(
            model.unet, (len(part), *model.sample_shape), schedule=model.schedule, sampler="ddim",
            steps=50, prediction_type=model.prediction_type, class_labels=part,
            sample_index=100 * batch,
        )
        for batch, part in enumerate(wanted.split(100))
    ])  # fmt: skip
    on_samples = (classify(classifier, samples) == wanted).float().mean().item()
    print(f"recognised: {on_real:.1%} of the real digits, {on_samples:.1%} of the samples")
    assert on_samples >= 0.95


@needs_mnist
@pytest.mark.many_threads
def test_the_loss_by_timestep_is_the_cards(digits):
    """Recomputed with other noise, by the formula of v alone, on the 1,000 held-out digits."""
    card = (BUNDLED / "README.md").read_text()
    rows = re.findall(r"^\| *(\d+) *\| *(\d\.\d+) *\|$", card, re.MULTILINE)
    assert len(rows) == 20
    _, (images, labels) = digits
    model = fastdiff.load()
    generator = torch.Generator().manual_seed(5)
    for t, loss in [(int(t), float(loss)) for t, loss in rows[::6]]:
        abar = float(model.schedule.alphas_cumprod[t])
        noise = torch.randn(images.shape, generator=generator)
        x_t = abar**0.5 * images + (1 - abar) ** 0.5 * noise
        v = abar**0.5 * noise - (1 - abar) ** 0.5 * images
        with torch.no_grad():
            out = torch.cat([
                model.unet(x, torch.full((250,), t), y)
                for x, y in zip(x_t.split(250), labels.split(250), strict=True)
            ])  # fmt: skip
        assert (out - v).square().mean().item() == pytest.approx(loss, rel=0.03), t
