"""The checkpoints of a run on the disk: each whole or not at all, the last ones kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from fastdiff._files import write_whole_folder
from fastdiff.training.state import State


class Saves:
    """The folder of a run's checkpoints, one folder each by its step."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._broken: list[int] = []

    def steps(self) -> list[int]:
        """Of the whole checkpoints, the oldest first."""
        return sorted(int(path.name) for path in self.folder.glob("[0-9]*") if path.is_dir())

    def write(self, state: State, step: int, counts: Mapping[str, int]) -> None:
        """Write the checkpoint of `step`; only when it lies whole on the disk do old ones go.

        Raises:
            OSError: a full disk, with a sentence that names the last checkpoint, which is kept.
            ValueError: a weight that is not finite.
        """
        self.folder.mkdir(exist_ok=True)
        for unfinished in self.folder.glob(".*"):  # of a run that was killed while it wrote
            shutil.rmtree(unfinished, ignore_errors=True)
        while self._broken:
            shutil.rmtree(self._path(self._broken.pop()), ignore_errors=True)
        if step in self.steps():
            return  # which holds the same
        try:
            with write_whole_folder(self._path(step)) as beside:
                state.save(beside, {"step": step, **counts})
        except OSError as error:
            raise OSError(
                f"the checkpoint of step {step} could not be written ({error.strerror or error}); "
                f"{self._last()}"
            ) from error
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self._path(old))

    def read_newest(self, state: State, say: Callable[[str], None]) -> dict[str, int]:
        """Restore the newest checkpoint that is whole, and return its counts; a broken one is told.

        Raises ValueError where there is none.
        """
        broken: list[int] = []
        for step in reversed(self.steps()):
            try:
                counts = state.load(self._path(step))
            except ValueError as error:
                say(str(error))
                broken.append(step)
                continue
            self._broken = broken
            return counts
        if not self.steps():
            raise ValueError(f"{self.folder} holds no checkpoint; the run ended before its first")
        raise ValueError(f"{self.folder} holds no whole checkpoint of this run")

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:07d}"

    def _last(self) -> str:
        steps = self.steps()
        if not steps:
            return "there is none before it; make room and begin again"
        return f"the one of step {steps[-1]} is kept; make room, then resume from it"
