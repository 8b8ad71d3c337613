"""A training run in a folder: Algorithm 1 of Ho et al. 2020, with exact resume."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff import checkpoints
from fastdiff.checkpoints import Pretrained
from fastdiff.images import Pixels, grid, save_png, to_uint8
from fastdiff.ranks import ALONE, Ranks
from fastdiff.training.config import TrainConfig
from fastdiff.training.data import ImageData, ShuffledBatches, Tell, load_images
from fastdiff.training.interrupt import stop_after_step
from fastdiff.training.learner import Learner, StepResult
from fastdiff.training.log import Log
from fastdiff.training.network import build_unet
from fastdiff.training.saves import Saves
from fastdiff.training.validation import loss_by_timestep

CONFIG = "config.yaml"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Progress:
    """What a run tells after each step: steps done, the step's mean loss, images a second."""

    step: int
    loss: float
    images_per_second: float


def _to_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr)


class Trainer:
    """One training run in one folder.

    The folder holds ``config.yaml``, ``checkpoints/`` (all that resuming needs), ``log.csv``,
    ``validation.csv``, ``events/`` for TensorBoard, ``samples/``, and as diffusers folders the
    averaged models: ``model/`` of the first of the config's ``ema_decays``, ``model-<decay>/`` of
    each other one.

    Batch, timesteps, noise, flips and hidden labels of a step depend on the seed and the step's
    number alone; a run that was stopped and resumed equals an unbroken one to the bit, on one
    machine with one number of threads and ranks. On another number of ranks it is the same to
    rounding, and but for dropout, which each rank draws for itself.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        device: torch.device,
        *,
        ranks: Ranks = ALONE,
        say: Say = _to_stderr,
        tell: Tell = lambda done, total: None,
    ) -> None:
        self.config, self.folder, self.device = config, folder, device
        self.ranks = ranks
        self.say: Say = say if ranks.first else lambda sentence: None
        self.step, self.skipped, self._skipped_in_a_row = 0, 0, 0
        data = load_images(
            config.data,
            tell if ranks.first else lambda done, total: None,
            image_size=config.image_size,
        )
        if config.hold_out >= len(data):
            raise ValueError(f"hold_out {config.hold_out} leaves none of {len(data)} images")
        if not config.class_conditional:
            data = ImageData(data.images, None)
        border = len(data) - config.hold_out
        self.training_data, self.held_out = data.part(0, border), data.part(border, len(data))
        self.batches = ShuffledBatches(border, config.batch_size, config.seed)
        self.num_classes = data.num_classes
        # Of the first rank alone, which writes it and tells of another one.
        self._checksum = data.checksum() if ranks.first else 0
        self.learner = Learner(config, data, config.noise_schedule(), device, ranks)
        self.saves = Saves(folder / "checkpoints", config.keep)

    @classmethod
    def start(
        cls,
        config: TrainConfig,
        folder: Path,
        device: torch.device,
        *,
        ranks: Ranks = ALONE,
        say: Say = _to_stderr,
        tell: Tell = lambda done, total: None,
    ) -> Trainer:
        """Begin a run in a folder that holds none yet.

        Args:
            ranks: this process among those of the run; the first alone writes.
            say: hears what the user should know, a sentence at a time.
            tell: called while pictures are read, with how many are and how many there are.

        Raises ValueError for settings or data that do not fit.
        """
        if ranks.first and (folder / CONFIG).exists():
            raise ValueError(f"{folder} already holds a run; resume it, or name another folder")
        trainer = cls(config, folder, device, ranks=ranks, say=say, tell=tell)
        ranks.wait()
        trainer._keep_config()
        return trainer

    @classmethod
    def resume(
        cls,
        folder: Path,
        device: torch.device,
        *,
        ranks: Ranks = ALONE,
        say: Say = _to_stderr,
        tell: Tell = lambda done, total: None,
        **changed: Any,
    ) -> Trainer:
        """Go on with the run in ``folder`` from its newest whole checkpoint.

        `changed` settings take the place of the run's own; the others are as for start.
        """
        config = dataclasses.replace(TrainConfig.load(folder / CONFIG), **changed)
        trainer = cls(config, folder, device, ranks=ranks, say=say, tell=tell)
        counts = trainer.saves.read_newest(trainer.learner.state, trainer.say)
        trainer.step = counts["step"]
        trainer.skipped = counts["skipped"]
        trainer._skipped_in_a_row = counts["skipped_in_a_row"]
        if ranks.first and counts.get("data_checksum", trainer._checksum) != trainer._checksum:
            trainer.say(
                f"{config.data} holds other images or labels than at step {trainer.step}: the run "
                "goes on with these, otherwise than an unbroken one would"
            )
        ranks.wait()
        trainer._keep_config()
        return trainer

    def run(self, report: Callable[[Progress], None] = lambda progress: None) -> None:
        """Train to the last step, and save.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, when the step under way is done and saved.
            ValueError: after `skip_limit` steps in a row without a finite loss.
            OSError: when a checkpoint cannot be written; the last one is kept.
        """
        config = self.config
        log = Log(self.folder, self.step, self.say) if self.ranks.first else None
        stop = False
        try:
            with stop_after_step() as stopped:
                while self.step < config.steps and not stop:
                    began = time.perf_counter()
                    done = self.train_step(self.batches[self.step], stop=stopped())
                    speed = config.batch_size / (time.perf_counter() - began)
                    stop = done.stop
                    if log is not None:
                        log.step(self.step, self._figures(done, speed))
                        report(Progress(self.step, done.loss, speed))
                    self._after_step(log)
            if self.step not in self.saves.steps():
                self.save()
        finally:
            if log is not None:
                log.close()
        if stop:
            raise KeyboardInterrupt

    def train_step(self, index: Tensor, *, stop: bool = False) -> StepResult:
        """One step of Algorithm 1 on the images of ``index``; one that is not finite is skipped."""
        done = self.learner.step(self.step, index, stop=stop)
        self.step += 1
        if done.finite:
            self._skipped_in_a_row = 0
            return done
        self.skipped += 1
        self._skipped_in_a_row += 1
        self.say(
            f"step {self.step} is skipped, the {self.skipped}. so far: its loss is {done.loss:g} "
            f"and its gradient's norm {done.gradient_norm:g}"
        )
        if self._skipped_in_a_row >= self.config.skip_limit:
            saved = self.saves.steps()
            raise ValueError(
                f"no loss was finite in {self._skipped_in_a_row} steps in a row, up to step "
                f"{self.step}; "
                + (f"the checkpoint of step {saved[-1]} is kept" if saved else "nothing is saved")
                + "; try a smaller learning rate"
            )
        return done

    def averaged(self, which: int = 0) -> Pretrained:
        """The model with the weights of that average, ready to sample or save."""
        torch_state = torch.get_rng_state()
        model = build_unet(self.config, self.training_data, self.device)
        torch.set_rng_state(torch_state)
        self.learner.averages[which].copy_to(model)
        return Pretrained(
            unet=model.eval(),
            schedule=self.learner.schedule,
            prediction_type=self.config.prediction_type,
            variance_type=self.config.variance_type,
            class_names=self.training_data.class_names,
            no_class_label=self.learner.no_class_label,
        )

    def save(self) -> None:
        """Write a checkpoint, then the averaged models, each whole or not at all."""
        if not self.ranks.first:
            return
        counts = {
            "skipped": self.skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
            "data_checksum": self._checksum,
        }
        self.saves.write(self.learner.state, self.step, counts)
        for which, decay in enumerate(self.config.ema_decays):
            name = f"model-{decay}" if which else "model"
            checkpoints.save(self.folder / name, self.averaged(which))

    def draw_samples(self, count: int = 100, steps: int = 50) -> Pixels:
        """Write a grid of DDIM samples of the averaged model to ``samples/<step>.png``."""
        classes = self.num_classes
        images = self.averaged().sample(
            count, steps=min(steps, self.config.timesteps), seed=self.config.seed
        )
        if not images.isfinite().all():
            self.say(f"the samples of step {self.step} are not all finite; such pixels are grey")
            images = images.nan_to_num(0, 0, 0)
        path = self.folder / "samples" / f"{self.step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        picture = grid(to_uint8(images), columns=classes if (classes or 99) <= 20 else None)
        save_png(path, picture)
        return picture

    def held_out_loss(self, points: int = 20) -> list[tuple[int, float]]:
        """L_simple of the averaged model on the held-out images, at evenly spaced timesteps."""
        return loss_by_timestep(
            self.averaged(), self.held_out, seed=self.config.seed, points=points
        )

    def _after_step(self, log: Log | None) -> None:
        config = self.config
        if self.step % config.save_every == 0:
            self.save()
        if log is None:
            return
        if self.step % config.sample_every == 0:
            log.picture("samples", self.step, self.draw_samples())
        if len(self.held_out) and self.step % config.validate_every == 0:
            log.validation(self.step, self.held_out_loss())

    def _figures(self, done: StepResult, images_per_second: float) -> dict[str, float]:
        return {
            "loss": done.loss,
            "gradient_norm": done.gradient_norm,
            "learning_rate": self.learner.learning_rate,
            "images_per_second": images_per_second,
            "skipped": float(not done.finite),
        }

    def _keep_config(self) -> None:
        if self.ranks.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.config.save(self.folder / CONFIG)
