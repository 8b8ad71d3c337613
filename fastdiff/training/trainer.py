"""Algorithm 1 of Ho et al. 2020, with Adam, an average of the weights, and exact resume."""

from __future__ import annotations

import csv
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor

from fastdiff import checkpoints
from fastdiff._files import write_whole
from fastdiff.checkpoints import Pretrained
from fastdiff.images import grid, save_png, to_uint8
from fastdiff.losses import simple_loss
from fastdiff.models import UNet
from fastdiff.samplers import sample
from fastdiff.training.config import TrainConfig
from fastdiff.training.data import ImageData, ShuffledBatches, load_images
from fastdiff.training.ema import EMA
from fastdiff.training.state import load_state, save_state

TRAINING_STREAM = 1
VALIDATION_STREAM = 2


@dataclass(frozen=True)
class Progress:
    """What a run tells after each step: steps done, the step's mean loss, images a second."""

    step: int
    loss: float
    images_per_second: float


class Trainer:
    """One training run in one folder.

    The folder holds ``config.json``, ``state.safetensors`` (all that resuming needs),
    ``log.csv``, ``samples/`` and ``model/``: the averaged model as a diffusers folder.
    Batch, timesteps, noise and dropout of a step depend on the seed and the step's number
    alone; a run that was stopped and resumed equals an unbroken one to the bit, on one
    machine with one number of threads.
    """

    def __init__(self, config: TrainConfig, folder: Path, device: torch.device) -> None:
        self.config = config
        self.folder = folder
        self.device = device
        self.step = 0
        self.schedule = config.noise_schedule()
        data = load_images(config.data)
        if config.hold_out >= len(data):
            raise ValueError(f"hold_out {config.hold_out} leaves none of {len(data)} images")
        if not config.class_conditional:
            data = ImageData(data.images, None)
        border = len(data) - config.hold_out
        self.training_data, self.held_out = data.part(0, border), data.part(border, len(data))
        self.batches = ShuffledBatches(border, config.batch_size, config.seed)
        self.num_classes = data.num_classes
        torch.manual_seed(config.seed)
        self.model = _build_unet(config, data, device)
        self.ema = EMA(self.model, config.ema_decay)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.learning_rate, fused=True
        )

    @classmethod
    def start(cls, config: TrainConfig, folder: Path, device: torch.device) -> Trainer:
        """Begin a run in a folder that holds none yet."""
        if (folder / "config.json").exists():
            raise ValueError(f"{folder} already holds a run; resume it, or name another folder")
        trainer = cls(config, folder, device)
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        config.save(folder / "config.json")
        return trainer

    @classmethod
    def resume(cls, folder: Path, device: torch.device, steps: int | None = None) -> Trainer:
        """Go on with the run in ``folder`` from its last saved state, to ``steps`` if given."""
        config = TrainConfig.load(folder / "config.json")
        if steps is not None:
            config = dataclasses.replace(config, steps=steps)
        trainer = cls(config, folder, device)
        trainer.step = load_state(
            folder / "state.safetensors", trainer.model, trainer.ema, trainer.optimizer
        )
        config.save(folder / "config.json")
        return trainer

    def run(
        self,
        *,
        save_every: int,
        sample_every: int,
        report: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """Train to the last step; Ctrl-C ends the step under way, saves, and goes up."""
        config = self.config
        _keep_log_up_to(self.folder / "log.csv", self.step)
        with _stop_after_step() as stopped:
            while self.step < config.steps and not stopped():
                began = time.perf_counter()
                loss = self.train_step(self.batches[self.step])
                speed = config.batch_size / (time.perf_counter() - began)
                self._log(loss, speed)
                report(Progress(self.step, loss, speed))
                if self.step % save_every == 0:
                    self.save()
                if self.step % sample_every == 0:
                    self.draw_samples()
        self.save()
        if stopped():
            raise KeyboardInterrupt

    def train_step(self, index: Tensor) -> float:
        """One step of Algorithm 1 on the images of ``index``; returns the batch's mean loss."""
        config = self.config
        x_start, labels = self._batch(self.training_data, index)
        t, sample_index = self._timesteps_and_indices(len(x_start), self.step)
        _seed_dropout(config.seed, self.step)
        self.model.train()
        losses = simple_loss(
            self.model,
            x_start,
            t,
            schedule=self.schedule,
            prediction_type=config.prediction_type,
            class_labels=labels,
            seed=config.seed,
            sample_index=sample_index,
            stream=TRAINING_STREAM,
        )
        loss = losses.mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
        warmup = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * warmup
        self.optimizer.step()
        self.step += 1
        self.ema.update(self.model, self.step)
        return loss.item()

    def averaged(self) -> Pretrained:
        """The model with averaged weights, ready to sample or save."""
        torch_state = torch.get_rng_state()
        model = _build_unet(self.config, self.training_data, self.device)
        torch.set_rng_state(torch_state)
        self.ema.copy_to(model)
        return Pretrained(
            unet=model.eval(),
            schedule=self.schedule,
            prediction_type=self.config.prediction_type,
        )

    def save(self) -> None:
        """Write the state and the averaged model, each whole or not at all."""
        save_state(
            self.folder / "state.safetensors", self.step, self.model, self.ema, self.optimizer
        )
        checkpoints.save(self.folder / "model", self.averaged())

    def draw_samples(self, count: int = 100, steps: int = 50) -> None:
        """Write a grid of DDIM samples of the averaged model to ``samples/<step>.png``."""
        pretrained = self.averaged()
        labels = None
        if self.num_classes:
            labels = torch.arange(count, device=self.device) % self.num_classes
        images = sample(
            pretrained.unet,
            (count, *self.training_data.images.shape[1:]),
            schedule=self.schedule,
            sampler="ddim",
            steps=min(steps, self.schedule.num_timesteps),
            prediction_type=self.config.prediction_type,
            class_labels=labels,
            seed=self.config.seed,
        )
        picture = grid(to_uint8(images), columns=self.num_classes)
        save_png(self.folder / "samples" / f"{self.step:07d}.png", picture)

    @torch.no_grad()
    def held_out_loss(self, points: int = 20) -> list[tuple[int, float]]:
        """L_simple of the averaged model on the held-out images, at evenly spaced timesteps."""
        if not len(self.held_out):
            raise ValueError("the run holds no images out; set hold_out")
        unet = self.averaged().unet
        x_start, labels = self._batch(self.held_out, torch.arange(len(self.held_out)))
        index = torch.arange(len(x_start), device=self.device)
        table = []
        for point, t in enumerate(np.linspace(0, self.config.timesteps - 1, points).astype(int)):
            losses = [
                simple_loss(
                    unet,
                    x_start[part],
                    torch.full((len(part),), int(t), device=self.device),
                    schedule=self.schedule,
                    prediction_type=self.config.prediction_type,
                    class_labels=None if labels is None else labels[part],
                    seed=self.config.seed,
                    sample_index=part,
                    draw=point,
                    stream=VALIDATION_STREAM,
                )
                for part in index.split(250)
            ]
            table.append((int(t), torch.cat(losses).mean().item()))
        return table

    def _batch(self, data: ImageData, index: Tensor) -> tuple[Tensor, Tensor | None]:
        images, labels = data.batch(index)
        images = images.to(self.device, memory_format=torch.channels_last)
        return images, None if labels is None else labels.to(self.device)

    def _timesteps_and_indices(self, count: int, step: int) -> tuple[Tensor, Tensor]:
        """Keyed by each image's place in the whole run, whatever machine draws it."""
        generator = np.random.default_rng((self.config.seed, TRAINING_STREAM, step))
        t = torch.from_numpy(generator.integers(self.config.timesteps, size=count))
        index = step * count + torch.arange(count, device=self.device)
        return t.to(self.device), index

    def _log(self, loss: float, images_per_second: float) -> None:
        with open(self.folder / "log.csv", "a", newline="") as file:
            csv.writer(file).writerow([self.step, f"{loss:.6f}", f"{images_per_second:.1f}"])


def _build_unet(config: TrainConfig, data: ImageData, device: torch.device) -> UNet:
    _, image_channels, height, width = data.images.shape
    if height != width:
        raise ValueError(f"the images are {height} x {width}; fastdiff train takes square ones")
    unet = UNet.ddpm(
        height,
        image_channels=image_channels,
        channels=config.channels,
        multipliers=config.multipliers,
        blocks=config.blocks,
        attention_resolutions=config.attention_resolutions,
        num_classes=data.num_classes,
        groups=config.groups,
        dropout=config.dropout,
    )
    # torch's stub of Module.to leaves memory_format out.
    return unet.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _seed_dropout(seed: int, step: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0]))


def _keep_log_up_to(path: Path, step: int) -> None:
    """Drop the lines that an interrupted run wrote after its last saved state."""
    header = ["step", "loss", "images_per_second"]
    rows = list(csv.reader(path.read_text().splitlines()))[1:] if path.exists() else []
    kept = [row for row in rows if len(row) == len(header) and int(row[0]) <= step]
    with write_whole(path) as unfinished, open(unfinished, "w", newline="") as file:
        csv.writer(file).writerows([header, *kept])


@contextmanager
def _stop_after_step() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a flag, so that no step is cut in half."""
    pressed = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # Python delivers signals to the main thread alone
        return

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)
