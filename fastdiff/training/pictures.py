"""Images as pictures (PNG, JPEG, ...) in a folder or a zip, a folder a class."""

from __future__ import annotations

import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastdiff.training.data import Tell, check_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
# More than 8 bits a channel, which PIL would clip without a word.
_DEEP = ("I", "F")
_ORIENTATION = 0x0112  # of EXIF; from 5 on, width and height change places

Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64] | None, tuple[str, ...] | None]
Open = Callable[[Any], AbstractContextManager[Any]]


def read_folder(folder: Path, tell: Tell, image_size: int = 0) -> Arrays:
    """All pictures below a folder: [N, H, W] or [N, H, W, 3], labels [N] and names of classes.

    They are turned upright as their EXIF says, and fit into a square of `image_size` unless that
    is 0.
    """
    files = [file for file in folder.rglob("*") if _is_picture(file.relative_to(folder))]
    if not files:
        raise ValueError(f"{folder} holds neither idx files nor pictures ({_endings()})")
    return _read(files, lambda file: file.open("rb"), folder, tell, image_size)


def read_zip(path: Path, tell: Tell, image_size: int = 0) -> Arrays:
    """As read_folder, of the pictures in a zip."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} is no zip that can be read: {error}") from error
    with archive:
        members = [PurePosixPath(name) for name in archive.namelist()]
        files = [member for member in members if _is_picture(member)]
        if not files:
            raise ValueError(f"{path} holds no pictures ({_endings()})")
        return _read(files, lambda member: archive.open(str(member)), path, tell, image_size)


def fitted(images: npt.NDArray[np.uint8], image_size: int) -> npt.NDArray[np.uint8]:
    """[N, H, W, C] as [N, image_size, image_size, C], as pictures are."""
    from PIL import Image

    N, _, _, C = images.shape
    check_bytes((N, image_size, image_size, C), Path("the scaled set"))
    squares = np.empty((N, image_size, image_size, C), np.uint8)
    for square, image in zip(squares, images, strict=True):
        picture = Image.fromarray(image[..., 0] if C == 1 else image)
        square[:] = np.asarray(_square(picture, image_size)).reshape(square.shape)
    return squares


def _square(picture: Image, size: int) -> Image:
    """The middle of a picture, scaled."""
    from PIL import Image, ImageOps

    return ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)


def _is_picture(file: PurePath) -> bool:
    # macOS puts "._cat.png" beside cat.png, and notebooks keep copies in a hidden folder.
    hidden = any(part.startswith(".") for part in file.parts)
    return file.suffix.lower() in ENDINGS and not hidden


def _endings() -> str:
    return ", ".join(sorted(ENDINGS))


def _read(
    files: Sequence[Any], open_file: Open, source: Path, tell: Tell, image_size: int
) -> Arrays:
    folders = sorted({file.parent for file in files})
    files = _evenly_mixed(files)
    size, grey = _common_size(files, open_file, image_size)
    shape = (len(files), size[1], size[0]) + (() if grey else (3,))
    check_bytes(shape, source)
    images = np.empty(shape, np.uint8)
    for i, file in enumerate(files):
        images[i] = _opened(file, open_file, lambda picture: _pixels(picture, grey, image_size))
        tell(i + 1, len(files))
    if len(folders) == 1:
        return images, None, None
    labels = np.array([folders.index(file.parent) for file in files])
    return images, labels, _names(folders)


def _evenly_mixed(files: Sequence[Any]) -> list[Any]:
    """By name within each folder, the folders interleaved by share of what they hold."""
    by_folder = defaultdict(list)
    for file in sorted(files):
        by_folder[file.parent].append(file)
    place = {
        file: (i + 0.5) / len(names) for names in by_folder.values() for i, file in enumerate(names)
    }
    return sorted(files, key=lambda file: (place[file], file))


def _common_size(
    files: Sequence[Any], open_file: Open, image_size: int
) -> tuple[tuple[int, int], bool]:
    """(width, height) of all, and whether all are grey; from their headers, before any is read."""
    grey = True
    size: tuple[int, int] | None = None
    for file in files:
        found, mode = _opened(
            file, open_file, lambda picture: (_upright_size(picture), picture.mode)
        )
        if mode.startswith(_DEEP):
            raise ValueError(f"{file} has more than 8 bits a channel (mode {mode}); convert it")
        if image_size:
            found = image_size, image_size
        if size is not None and found != size:
            raise ValueError(
                f"{file} is {found[0]} x {found[1]} pixels where {files[0]} is "
                f"{size[0]} x {size[1]}; let --image-size scale and crop all to one size"
            )
        size = found
        grey = grey and mode in ("L", "1")
    assert size is not None
    return size, grey


def _opened(file: Any, open_file: Open, look: Callable[[Image], Any]) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with open_file(file) as stream, Image.open(stream) as picture:
            return look(picture)
    except UnidentifiedImageError:
        raise ValueError(f"{file} is no picture that can be read; mend or remove it") from None
    except (
        OSError, ValueError, SyntaxError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile,
        Image.DecompressionBombError,
    ) as error:  # fmt: skip
        reason = str(error) or type(error).__name__
        raise ValueError(f"{file} cannot be read ({reason}); mend or remove it") from error


def _upright_size(picture: Image) -> tuple[int, int]:
    width, height = picture.size
    return (height, width) if picture.getexif().get(_ORIENTATION, 1) >= 5 else (width, height)


def _pixels(picture: Image, grey: bool, image_size: int) -> npt.NDArray[np.uint8]:
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(picture).convert("L" if grey else "RGB")
    return np.asarray(_square(upright, image_size) if image_size else upright)


def _names(folders: Sequence[PurePath]) -> tuple[str, ...]:
    """The folders' own names, or their whole paths where two share one."""
    names = [folder.name for folder in folders]
    return tuple(names if len(set(names)) == len(names) else map(str, folders))
