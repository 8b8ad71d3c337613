"""What a run tells on the way: curves as CSV and for TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdiff._files import write_whole

NO_TENSORBOARD = (
    "tensorboard is not installed, so the curves go to log.csv alone; "
    "pip install 'fastdiff[tensorboard]' for both"
)


class Log:
    """log.csv, a line a step; validation.csv, a line a timestep; events/ for TensorBoard.

    Made for a run that goes on after `step`: what an interrupted run told of later steps is taken
    back. `say` hears once where tensorboard is missing.
    """

    COLUMNS = ("step", "loss", "gradient_norm", "learning_rate", "images_per_second", "skipped")
    VALIDATION_COLUMNS = ("step", "t", "loss")

    def __init__(self, folder: Path, step: int, say: Callable[[str], None]) -> None:
        self.folder = folder
        _keep_up_to(folder / "log.csv", self.COLUMNS, step)
        if (folder / "validation.csv").exists():
            _keep_up_to(folder / "validation.csv", self.VALIDATION_COLUMNS, step)
        self._events = _event_writer(folder / "events", step)
        if self._events is None:
            say(NO_TENSORBOARD)

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """One line of figures, by the names in COLUMNS."""
        row = [str(step), *(f"{figures[name]:.6g}" for name in self.COLUMNS[1:])]
        _append(self.folder / "log.csv", [row])
        for name in self.COLUMNS[1:]:
            self._scalar(f"training/{name}", figures[name], step)

    def validation(self, step: int, losses: Sequence[tuple[int, float]]) -> None:
        """The losses by timestep."""
        path = self.folder / "validation.csv"
        if not path.exists():
            _keep_up_to(path, self.VALIDATION_COLUMNS, step)
        _append(path, [[str(step), str(t), f"{loss:.6g}"] for t, loss in losses])
        self._scalar("validation/loss", sum(loss for _, loss in losses) / len(losses), step)
        for t, loss in losses:
            self._scalar(f"validation_by_timestep/{t:04d}", loss, step)

    def picture(self, name: str, step: int, pixels: Any) -> None:
        """An image [H, W, C] uint8."""
        if self._events is not None:
            self._events.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Write out what waits."""
        if self._events is not None:
            self._events.close()

    def _scalar(self, name: str, value: float, step: int) -> None:
        if self._events is not None:
            self._events.add_scalar(name, value, step)


def _event_writer(folder: Path, step: int) -> Any | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def _keep_up_to(path: Path, columns: Sequence[str], step: int) -> None:
    """Drop the lines of later steps, which an interrupted run wrote and this one will again."""
    rows = list(csv.reader(path.read_text().splitlines()))[1:] if path.exists() else []
    kept = [row for row in rows if len(row) == len(columns) and int(row[0]) <= step]
    with write_whole(path) as unfinished, open(unfinished, "w", newline="") as file:
        csv.writer(file).writerows([columns, *kept])


def _append(path: Path, rows: Iterable[Sequence[str]]) -> None:
    with open(path, "a", newline="") as file:
        csv.writer(file).writerows(rows)
