"""Files written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the place of `path` at once.

    Whatever is raised in the block, KeyboardInterrupt included, leaves the old file as it was
    and nothing beside it. The temporary name keeps the suffix of `path`, by which writers choose
    their format. Raises OSError where the folder is missing or not writable.
    """
    target = Path(path)
    beside = target.with_name(f".{target.stem}.{secrets.token_hex(4)}{target.suffix}")
    # Created here rather than by the writer: an unwritable folder shows before the work is done.
    os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = beside.stat().st_mode
    try:
        yield beside
        beside.chmod(mode)  # some writers make a private file of their own
        _flush_to_disk(beside)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def write_whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path` at once.

    Its files lie on the disk before it does. Whatever is raised in the block leaves nothing behind.
    Raises FileExistsError where `path` is there already, unless it is an empty folder, and OSError
    where it cannot be written.
    """
    target = Path(path)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise FileExistsError(f"{target} is there already; name another place or remove it first.")
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    beside.mkdir()
    try:
        yield beside
        for file in beside.rglob("*"):
            if file.is_file():
                _flush_to_disk(file)
        os.replace(beside, target)
        _flush_names(target.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _flush_to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_names(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
