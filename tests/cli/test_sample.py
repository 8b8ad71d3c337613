"""`fastdiff sample` writes what it says, the same each time, or one sentence."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image, ImageSequence
from safetensors.torch import load_file, save_file


@pytest.fixture
def sample(fastdiff, tiny_model, tmp_path):
    def call(*options, model=tiny_model, name="out"):
        files = {ending: tmp_path / f"{name}.{ending}" for ending in ("png", "npz", "gif")}
        outcome = fastdiff(
            "sample", model, "--steps", 5, "--out", files["png"], "--out", files["npz"], *options
        )
        assert outcome.status == 0, outcome.err
        return files, outcome

    return call


def arrays(files):
    with np.load(files["npz"]) as npz:
        return npz["arr_0"], npz["arr_1"]


def assert_refused(outcome, *words):
    """Exit status 2, one line, no traceback, the words in it."""
    assert outcome.status == 2, outcome
    lines = [
        line for line in outcome.err.splitlines() if line and not line.startswith(("Usage", "Try"))
    ]
    assert len(lines) == 1, outcome.err
    for word in words:
        assert word in lines[0]


def test_the_same_command_writes_the_same_files(sample):
    first, _ = sample("--num", 6, "--seed", 3, name="a")
    second, _ = sample("--num", 6, "--seed", 3, name="b")
    for ending in ("png", "npz"):
        assert first[ending].read_bytes() == second[ending].read_bytes()


def test_another_seed_draws_other_images(sample):
    first, _ = sample("--num", 2, "--seed", 0, name="a")
    second, _ = sample("--num", 2, "--seed", 1, name="b")
    assert not np.array_equal(arrays(first)[0], arrays(second)[0])


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_image_i_depends_on_neither_num_nor_batch_size(sample, sampler):
    options = ("--sampler", sampler, "--seed", 3)
    eight, _ = sample("--num", 8, *options, name="a")
    sixteen, _ = sample("--num", 16, "--batch-size", 5, *options, name="b")
    few, many = arrays(eight)[0].astype(int), arrays(sixteen)[0].astype(int)
    assert np.abs(few - many[:8]).max() <= 1
    assert len({image.tobytes() for image in many.astype(np.uint8)}) == 16


def test_the_grid_shows_the_images(sample):
    files, _ = sample("--num", 6)
    pixels, labels = arrays(files)
    assert pixels.shape == (6, 8, 8, 1) and labels.tolist() == [0, 1, 2, 0, 1, 2]
    picture = np.asarray(Image.open(files["png"]))[::8, ::8]
    assert picture.shape == (2 * 10 + 2, 3 * 10 + 2)
    np.testing.assert_array_equal(picture[12:20, 2:10], pixels[3, ..., 0])


def test_one_class_for_all(sample):
    files, _ = sample("--num", 4, "--class", 2)
    assert arrays(files)[1].tolist() == [2] * 4


def test_the_gif_ends_on_the_images(sample, tmp_path):
    files, _ = sample("--num", 3, "--gif", tmp_path / "out.gif")
    with Image.open(files["gif"]) as gif:
        frames = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(gif)]
    assert len(frames) == 5
    np.testing.assert_array_equal(frames[-1], np.asarray(Image.open(files["png"])))


def test_the_closing_line_says_where_the_time_went(sample):
    _, outcome = sample("--num", 2)
    assert re.search(
        r"2 images in [\d.]+ s, [\d.]+ images/s: start [\d.]+, sampling [\d.]+, writing [\d.]+ s$",
        outcome.out.strip(),
    )


def test_profile_tells_what_the_time_went_to(sample):
    _, outcome = sample("--num", 2, "--profile")
    shares = dict(re.findall(r"^(\w[\w ]*\w)\s.*?([\d.]+) %", outcome.out, re.MULTILINE))
    assert [*shares] == ["convolution", "normalisation", "attention", "other", "step and noise"]
    assert abs(sum(map(float, shares.values())) - 100) < 0.3
    assert all(float(shares[part]) > 0 for part in ("convolution", "normalisation", "attention"))


def test_half_precision_draws_nearly_the_same(sample):
    exact, _ = sample("--num", 3, name="a")
    half, _ = sample("--num", 3, "--dtype", "bf16", name="b")
    difference = np.abs(arrays(exact)[0].astype(int) - arrays(half)[0].astype(int))
    assert 0 < difference.max() and np.median(difference) <= 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--class", 3], ["--class 3", "0 to 2"]),
        (["--class", -1], ["--class -1"]),
        (["--steps", 101], ["101", "100"]),
        (["--steps", 0], ["0"]),
        (["--sampler", "euler"], ["euler", "ddim"]),
        (["--eta", 2], ["eta", "2"]),
        (["--num", 0], ["0"]),
        (["--out", "nowhere/a.png"], ["nowhere"]),
        (["--out", "/proc/a.png"], ["/proc/a.png"]),
        (["--out", "a.jpg"], ["a.jpg", ".png"]),
        (["--out", "a.png", "--out", "b.png"], ["--out", "one .png"]),
        (["--gif", "a.txt"], ["a.txt", ".gif"]),
        (["--device", "tpu9"], ["tpu9"]),
        (["--dtype", "int8"], ["int8"]),
        (["--dtype", "tf32", "--device", "cpu"], ["tf32", "float32"]),
        (["--guidance-scale", 2], ["no class"]),
    ],
)
def test_bad_options_get_one_sentence(fastdiff, tiny_model, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    assert_refused(fastdiff("sample", tiny_model, *options), *words)
    assert not list(tmp_path.iterdir())


def test_a_class_for_a_model_without_classes_is_refused(fastdiff, classless_model, tmp_path):
    out = tmp_path / "a.png"
    assert_refused(fastdiff("sample", classless_model, "--class", 1, "--out", out), "--class")


def test_a_missing_model_is_named(fastdiff, tmp_path):
    out = tmp_path / "a.png"
    assert_refused(fastdiff("sample", tmp_path / "gone", "--out", out), "gone")


def test_weights_that_do_not_fit_the_config_are_named(fastdiff, tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text())
    config["block_out_channels"] = [8, 24]
    path.write_text(json.dumps(config))
    outcome = fastdiff("sample", folder, "--out", tmp_path / "a.png")
    assert_refused(outcome, "down_blocks", "[16", "[24")


def test_images_that_are_not_finite_are_no_black_ones(fastdiff, tiny_model, tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_model, folder)
    out.mkdir()
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_out.bias"].fill_(float("nan"))
    save_file(weights, path)
    outcome = fastdiff("sample", folder, "--num", 3, "--steps", 2, "--out", out / "a.png")
    assert "3 of 3 images are not finite" in outcome.err.splitlines()[-1]
    assert outcome.status == 2 and not list(out.iterdir())
