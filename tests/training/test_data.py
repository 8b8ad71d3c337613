"""Data sets are read as they were written, and bad ones named."""

import gzip
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastdiff.training.data import ShuffledBatches, load_images


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (10, 6, 5), dtype=np.uint8)


def write_idx(path, array):
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_give_images_and_labels(tmp_path, pixels, ending):
    labels = np.arange(10, dtype=np.uint8) % 3
    write_idx(tmp_path / f"t10k-images-idx3-ubyte{ending}", pixels)
    write_idx(tmp_path / f"t10k-labels-idx1-ubyte{ending}", labels)
    data = load_images(tmp_path)
    assert data.images.shape == (10, 1, 6, 5)
    np.testing.assert_array_equal(data.images[:, 0].numpy(), pixels)
    np.testing.assert_array_equal(data.labels.numpy(), labels)
    assert data.num_classes == 3


def test_idx_without_labels(tmp_path, pixels):
    write_idx(tmp_path / "images-idx3-ubyte", pixels)
    assert load_images(tmp_path / "images-idx3-ubyte").labels is None


@pytest.mark.parametrize("cut", [2, 10, 100])
def test_a_short_idx_file_is_refused(tmp_path, pixels, cut):
    path = tmp_path / "images-idx3-ubyte"
    write_idx(path, pixels)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="images-idx3-ubyte"):
        load_images(path)


def test_npz(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 1, 1, 0]))
    data = load_images(tmp_path / "a.npz")
    np.testing.assert_array_equal(data.images.permute(0, 2, 3, 1).numpy(), images)
    assert data.labels.tolist() == [0, 1, 1, 0]


def test_an_npz_of_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.array([object()], dtype=object))
    with pytest.raises(ValueError, match=r"a\.npz"):
        load_images(tmp_path / "a.npz")


def test_floats_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.float32))
    with pytest.raises(ValueError, match="uint8"):
        load_images(tmp_path / "a.npz")


def test_a_folder_a_class(tmp_path, pixels):
    for i, image in enumerate(pixels):
        folder = tmp_path / ("cats" if i < 4 else "dogs")
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    data = load_images(tmp_path)
    np.testing.assert_array_equal(data.images[:, 0].numpy(), pixels)
    assert data.labels.tolist() == [0] * 4 + [1] * 6


def test_pictures_of_two_sizes_are_named(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (5, 4)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png"):
        load_images(tmp_path)


def test_missing_data_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        load_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither"):
        load_images(tmp_path)


def test_a_batch_is_scaled_to_minus_one_and_one(tmp_path, pixels):
    pixels[0, 0, :2] = 0, 255
    write_idx(tmp_path / "images-idx3-ubyte", pixels)
    images, labels = load_images(tmp_path).batch(torch.tensor([0]))
    assert images[0, 0, 0, :2].tolist() == [-1.0, 1.0]
    assert labels is None


@given(
    count=st.integers(1, 40),
    size=st.integers(1, 40),
    step=st.integers(0, 100),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=50, deadline=None)
def test_a_batch_depends_on_the_seed_and_the_step_alone(count, size, step, seed):
    size = min(size, count)
    walked, asked = ShuffledBatches(count, size, seed), ShuffledBatches(count, size, seed)
    for earlier in range(step):
        walked[earlier]
    assert torch.equal(walked[step], asked[step])
    assert len(asked[step].unique()) == size


def test_an_epoch_shows_every_image_once_in_a_new_order():
    batches = ShuffledBatches(12, 4, seed=0)
    epochs = [torch.cat([batches[3 * epoch + i] for i in range(3)]).tolist() for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1]


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="batch size 5"):
        ShuffledBatches(4, 5, seed=0)
