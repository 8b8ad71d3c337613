"""Data sets are read as they were written, and bad ones named."""

import gzip
import struct
import tracemalloc
import zipfile

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


def cats_and_dogs(folder, pixels):
    """Four cats and six dogs, named 0.png to 9.png; and things that are no pictures."""
    for i, image in enumerate(pixels):
        home = folder / ("cats" if i < 4 else "dogs")
        home.mkdir(exist_ok=True)
        Image.fromarray(image).save(home / f"{i}.png")
    (folder / "dogs" / "._5.png").write_bytes(b"of macOS")
    (folder / "cats" / ".copies").mkdir()
    Image.fromarray(pixels[0]).save(folder / "cats" / ".copies" / "0.png")
    (folder / "README.txt").write_text("of people")
    return folder


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_folder_a_class(tmp_path, pixels, kind):
    (tmp_path / "pets").mkdir()
    source = cats_and_dogs(tmp_path / "pets", pixels)
    if kind == "zip":
        source = zipped(source, tmp_path / "pets.zip")
    told = []
    data = load_images(source, lambda done, total: told.append((done, total)))
    # By place within the folder: cats at 1/8, 3/8, ...; dogs at 1/12, 3/12, ...
    order = [4, 0, 5, 1, 6, 7, 2, 8, 3, 9]
    np.testing.assert_array_equal(data.images[:, 0].numpy(), pixels[order])
    assert data.labels.tolist() == [int(i > 3) for i in order]
    assert data.class_names == ("cats", "dogs") and data.num_classes == 2
    assert told == [(i + 1, 10) for i in range(10)]


def test_the_last_pictures_are_of_every_class_in_its_share(tmp_path):
    for name, count in (("few", 10), ("many", 30)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("L", (2, 2)).save(tmp_path / name / f"{i:02d}.png")
    assert load_images(tmp_path).labels[-8:].sum() == 6


def test_one_colour_picture_makes_all_colour(tmp_path):
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "b.png")
    Image.new("P", (4, 4)).save(tmp_path / "c.png")
    images = load_images(tmp_path).images
    np.testing.assert_array_equal(images[0].numpy(), np.stack([grey] * 3))
    assert images[1, :, 0, 0].tolist() == [1, 2, 3]


def test_pictures_of_two_sizes_are_named(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (5, 4)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png"):
        load_images(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_pictures_of_any_size_fit_into_a_square(tmp_path, kind):
    source = tmp_path / "pictures"
    source.mkdir()
    halves = np.zeros((40, 100, 3), np.uint8)
    halves[:, 50:] = 200
    Image.fromarray(halves).save(source / "wide.png")
    Image.fromarray(halves.transpose(1, 0, 2)).save(source / "tall.png")
    Image.new("L", (5, 5), 7).save(source / "small.png")
    if kind == "zip":
        source = zipped(source, tmp_path / "pictures.zip")
    found = load_images(source, image_size=20).images
    images = dict(zip(("small", "tall", "wide"), found, strict=True))
    assert all(image.shape == (3, 20, 20) for image in images.values())
    assert (images["small"] == 7).all()
    assert torch.equal(images["tall"], images["wide"].transpose(1, 2))
    # The middle 40 x 40 of 100 x 40, two pixels to one: dark to the left, bright to the right.
    assert (images["wide"][..., :8] == 0).all() and (images["wide"][..., 12:] == 200).all()


def test_shrinking_averages(tmp_path):
    chess = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(chess).save(tmp_path / "chess.png")
    images = load_images(tmp_path, image_size=8).images
    assert (images.int() - 127).abs().max() <= 3


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_fit_into_a_square_as_pictures_do(tmp_path, channels):
    noise = np.random.default_rng(0).integers(0, 256, (2, 12, 9, channels), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=noise, labels=np.array([1, 0]))
    data = load_images(tmp_path / "a.npz", image_size=6)
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(noise):
        Image.fromarray(image.squeeze()).save(tmp_path / "pictures" / f"{i}.png")
    assert torch.equal(data.images, load_images(tmp_path / "pictures", image_size=6).images)
    assert data.labels.tolist() == [1, 0]
    same = load_images(tmp_path / "pictures", image_size=0).images
    np.testing.assert_array_equal(same.permute(0, 2, 3, 1), noise)


def test_pictures_are_turned_upright(tmp_path):
    upright = np.arange(12, dtype=np.uint8).reshape(4, 3) * 20
    exif = Image.Exif()
    for turned, orientation in ((np.rot90(upright), 6), (upright[::-1, ::-1], 3)):
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        Image.fromarray(np.ascontiguousarray(turned)).save(path, exif=exif)
    images = load_images(tmp_path).images
    np.testing.assert_array_equal(images[:, 0], [upright, upright])


def half_a_jpeg(path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:600])


SPOILERS = {
    "no picture": lambda path: path.write_bytes(b"hello"),
    "empty": lambda path: path.write_bytes(b""),
    "cut short": half_a_jpeg,
    "another size": lambda path: Image.new("RGB", (31, 32)).save(path),
    "16 bits": lambda path: Image.fromarray(np.zeros((32, 32), np.uint16)).save(path, format="PNG"),
}


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)
def test_a_bad_picture_is_named(tmp_path, spoil, kind):
    source = tmp_path / "pictures"
    source.mkdir()
    Image.new("RGB", (32, 32)).save(source / "fine.jpg")
    spoil(source / "spoilt.jpg")
    if kind == "zip":
        source = zipped(source, tmp_path / "pictures.zip")
    with pytest.raises(ValueError, match=r"spoilt\.jpg") as raised:
        load_images(source)
    assert "\n" not in str(raised.value)


def test_bad_zips_are_named(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK and no more")
    with pytest.raises(ValueError, match=r"a\.zip"):
        load_images(tmp_path / "a.zip")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("none here")
    with pytest.raises(ValueError, match=r"b\.zip holds no pictures"):
        load_images(zipped(tmp_path / "empty", tmp_path / "b.zip"))
    (tmp_path / "empty" / "c.png").write_bytes(b"x" * 1000)
    packed = zipped(tmp_path / "empty", tmp_path / "c.zip")
    packed.write_bytes(packed.read_bytes().replace(b"x" * 1000, b"y" * 1000))  # a wrong checksum
    with pytest.raises(ValueError, match=r"c\.png"):
        load_images(packed)


def test_more_than_memory_should_hold_is_refused_before_it_is_read(tmp_path, monkeypatch, pixels):
    monkeypatch.setattr("fastdiff.training.data.LARGEST_BYTES", 299)
    write_idx(tmp_path / "images-idx3-ubyte", pixels)
    monkeypatch.setattr("numpy.empty", None)
    with pytest.raises(ValueError, match="images-idx3-ubyte holds"):
        load_images(tmp_path)
    with pytest.raises(ValueError, match="pets holds"):
        (tmp_path / "pets").mkdir()
        load_images(cats_and_dogs(tmp_path / "pets", pixels))


def test_pictures_lie_in_memory_once(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    for i in range(40):
        Image.fromarray(noise).save(tmp_path / f"{i:02d}.bmp")
    load_images(tmp_path)
    tracemalloc.start()
    images = load_images(tmp_path).images
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert images.numel() <= peak < 1.3 * images.numel()


@pytest.mark.parametrize(
    ("labels", "words"),
    [([0, -1], "whole numbers"), ([0.5, 1.0], "whole numbers"), ([1], "labels")],
)
def test_bad_labels_are_refused(tmp_path, labels, words):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.array(labels))
    with pytest.raises(ValueError, match=words):
        load_images(tmp_path / "a.npz")


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
