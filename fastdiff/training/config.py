"""What a training run is made of."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdiff._files import write_whole
from fastdiff.schedules import NoiseSchedule

SCHEDULES = ("linear", "cosine")


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run: everything that decides its result, beside the data.

    ``hold_out`` images at the end of the data are never trained on; the loss by
    timestep is measured on them.
    """

    data: str
    steps: int = 100_000
    batch_size: int = 128
    learning_rate: float = 2e-4
    warmup_steps: int = 500
    ema_decay: float = 0.9999
    gradient_clip: float = 1.0
    hold_out: int = 0
    class_conditional: bool = True
    seed: int = 0
    timesteps: int = 1000
    schedule: str = "linear"
    prediction_type: str = "epsilon"
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    groups: int = 32
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "timesteps", "channels", "blocks", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("ema_decay", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if self.hold_out < 0 or self.warmup_steps < 0:
            raise ValueError("hold_out and warmup_steps cannot be negative")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r} is not one of {', '.join(SCHEDULES)}")

    def noise_schedule(self) -> NoiseSchedule:
        if self.schedule == "cosine":
            return NoiseSchedule.cosine(self.timesteps)
        return NoiseSchedule.linear(self.timesteps)

    def save(self, path: Path) -> None:
        with write_whole(path) as unfinished:
            Path(unfinished).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        try:
            settings: dict[str, Any] = json.loads(path.read_text())
            for name in ("multipliers", "attention_resolutions"):
                settings[name] = tuple(settings[name])
            return cls(**settings)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is no training configuration: {error}") from error
