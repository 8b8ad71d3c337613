"""One step of training: gradients of the loss, over all ranks, and what follows from them."""

from __future__ import annotations

import math
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff.learned_schedule import LearnedSchedule
from fastdiff.losses import training_losses
from fastdiff.ops import total_norm
from fastdiff.ops.onednn import onednn_knows
from fastdiff.ranks import Ranks
from fastdiff.schedules import NoiseSchedule
from fastdiff.timestep_samplers import SAMPLERS
from fastdiff.training.config import TrainConfig
from fastdiff.training.data import ImageData
from fastdiff.training.draws import TRAINING_STREAM, Draws, draw, seed_dropout
from fastdiff.training.ema import EMA
from fastdiff.training.network import build_unet, no_class_label
from fastdiff.training.optimizer import AdamW
from fastdiff.training.state import State


@dataclass(frozen=True)
class StepResult:
    """Of one step, over all ranks: the mean loss, the gradient's norm before it is clipped,
    whether both were finite, and whether a rank was told to stop."""

    loss: float
    gradient_norm: float
    finite: bool
    stop: bool


class Learner:
    """The model of a run with its optimiser, averages and timestep sampler.

    A step's gradient is that of the mean over the whole batch, of which each rank takes a share,
    part by part. A loss or a gradient that is not finite changes nothing: all ranks see it alike,
    since both are sums over all of them.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: ImageData,
        schedule: NoiseSchedule,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        parts = ranks.size * config.accumulate
        if config.batch_size % parts:
            raise ValueError(
                f"batch_size {config.batch_size} does not split into {parts} equal parts, "
                f"{config.accumulate} on each of {ranks.size} ranks"
            )
        self.config, self.data, self._schedule = config, data, schedule
        self.device, self.ranks = device, ranks
        self._in_bfloat16 = config.precision == "bf16" and _multiplies_bfloat16(device)
        self.no_class_label = no_class_label(config, data)
        torch.manual_seed(config.seed)
        self.model = build_unet(config, data, device)
        self.model.checkpoint_activations(config.checkpoint_activations)
        self.learned: LearnedSchedule | None = None
        if config.schedule == "learned":
            self.learned = LearnedSchedule(config.timesteps).to(device)
        self._of_schedule = [] if self.learned is None else [*self.learned.parameters()]
        self._parameters = [*self.model.parameters(), *self._of_schedule]
        self.averages = [EMA(self.model, decay) for decay in config.ema_decays]
        self.optimizer = AdamW(self._parameters, config.learning_rate, config.weight_decay)
        self.timesteps = SAMPLERS[config.timestep_sampler](config.timesteps)
        if config.compile:
            self.model.compile()
        self._wrapped = ranks.wrap(self.model)
        self._ready = ranks.size == 1

    @property
    def state(self) -> State:
        """What a checkpoint holds."""
        return State(self.model, self.learned, self.averages, self.optimizer, self.timesteps)

    @property
    def schedule(self) -> NoiseSchedule:
        """The schedule as it is now."""
        return self._schedule if self.learned is None else self.learned.export()

    def step(self, step: int, index: Tensor, *, stop: bool = False) -> StepResult:
        """Train on the images of `index`, the whole batch's, as the step after `step` ones."""
        config, model = self.config, self.model
        self._make_ready()
        draws = draw(config, self.timesteps, step)
        seed_dropout(config.seed, step, self.ranks.rank)
        model.train()
        self.optimizer.zero_grad()
        losses, stopped = self._losses_and_gradients(index, draws, stop)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = total_norm(gradients)
        loss = (losses * draws.weights.to(losses.device)).mean()
        # Read back once a step.
        mean_loss, gradient_norm = torch.stack([loss, norm]).tolist()
        finite = math.isfinite(mean_loss) and math.isfinite(gradient_norm)
        if finite:
            warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
            for group in self.optimizer.param_groups:
                group["lr"] = config.learning_rate * warmup
            too_long = gradient_norm > config.gradient_clip
            self.optimizer.step_scaled(config.gradient_clip / gradient_norm if too_long else 1.0)
            for average in self.averages:
                average.update(model, step + 1)
            self.timesteps.update(draws.t.numpy(), losses.double().cpu().numpy())
        return StepResult(mean_loss, gradient_norm, finite, stopped)

    @property
    def learning_rate(self) -> float:
        """Of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _losses_and_gradients(self, index: Tensor, draws: Draws, stop: bool) -> tuple[Tensor, bool]:
        """The losses of all images, [B] in float32, and whether any rank was told to stop."""
        share = self.ranks.share(len(index))
        own = torch.arange(len(index))[share].chunk(self.config.accumulate)
        parts = []
        for i, places in enumerate(own):
            # Gradients meet those of the other ranks once a step.
            alone = self.ranks.size > 1 and i < len(own) - 1
            with self._wrapped.no_sync() if alone else nullcontext():  # type: ignore[operator]
                losses = self._losses(index[places], draws, places)
                weights = draws.weights[places].to(self.device)
                # DDP divides the sum over ranks by their number.
                (weights * losses).sum().mul(self.ranks.size / len(index)).backward()
            parts.append(losses.detach())
        self.ranks.average([p.grad for p in self._of_schedule if p.grad is not None])
        told = torch.full((1,), float(stop), device=self.device)
        everyone = self.ranks.gather(torch.cat([*parts, told])).view(self.ranks.size, -1)
        return everyone[:, :-1].reshape(-1), bool(everyone[:, -1].any())

    def _losses(self, index: Tensor, draws: Draws, places: Tensor) -> Tensor:
        config = self.config
        x_start, labels = self.data.batch(index, self.device)
        if config.horizontal_flips:
            flipped = draws.flipped[places].view(-1, 1, 1, 1).to(self.device)
            x_start = torch.where(flipped, x_start.flip(3), x_start)
        if labels is not None and self.no_class_label is not None:
            labels = labels.masked_fill(
                draws.label_hidden[places].to(self.device), self.no_class_label
            )
        t = draws.t[places].to(self.device)
        keys: dict[str, Any] = {
            "class_labels": labels,
            "seed": config.seed,
            "sample_index": draws.sample_index[places].to(self.device),
            "stream": TRAINING_STREAM,
        }
        if self.learned is not None:
            loss = self.learned.losses(self._predict, x_start, t, **keys).loss
            return loss * config.timesteps if config.rescaled else loss
        return training_losses(
            self._predict,
            x_start,
            t,
            schedule=self._schedule,
            prediction_type=config.prediction_type,
            variance_type=config.variance_type,
            objective=config.objective,
            rescaled=config.rescaled,
            weighting=config.weighting,
            min_snr_gamma=config.min_snr_gamma,
            vlb_weight=config.vlb_weight,
            **keys,
        ).loss

    def _predict(self, x_t: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._in_bfloat16):
            out: Tensor = self._wrapped(x_t, t, class_labels)
        return out

    def _make_ready(self) -> None:
        """DDP lays its buckets out anew after the first backward pass, and with them the order of
        its sums: that pass is made of nothing, so that a resumed run adds in the order that an
        unbroken one does."""
        if self._ready:
            return
        self._ready = True
        size = self.config.batch_size // self.ranks.size // self.config.accumulate
        x, labels = self.data.batch(torch.zeros(size, dtype=torch.int64), self.device)
        t = torch.zeros(size, dtype=torch.int64, device=self.device)
        self._predict(x, t, labels).float().sum().backward()


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type != "cpu" or onednn_knows(torch.bfloat16):
        return True
    warnings.warn(
        "this processor has no instructions for bfloat16, and PyTorch takes some twenty times as "
        "long to do without them as to compute in float32: precision bf16 trains in float32 here",
        RuntimeWarning,
        stacklevel=3,
    )
    return False
