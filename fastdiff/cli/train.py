"""``fastdiff train``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastdiff.cli.options import IntList, device_option, resolve_device

if TYPE_CHECKING:
    from fastdiff.training import Progress, Trainer


@click.command(context_settings={"show_default": True})
@click.argument("data", required=False)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the new run.")
@click.option("--resume", type=click.Path(path_type=Path), help="Folder of a run to go on with.")
@click.option("--steps", type=int, help="Train up to this step.  [default: 100000]")
@click.option("--batch-size", type=int, default=128)
@click.option("--learning-rate", type=float, default=2e-4)
@click.option("--warmup-steps", type=int, default=500, help="Steps of rising learning rate.")
@click.option("--ema-decay", type=float, default=0.9999)
@click.option("--gradient-clip", type=float, default=1.0, help="Largest norm of the gradient.")
@click.option("--hold-out", type=int, default=0, help="Images at the end kept for validation.")
@click.option("--unconditional", is_flag=True, help="Ignore the labels of the data.")
@click.option("--seed", type=int, default=0)
@click.option("--timesteps", type=int, default=1000)
@click.option("--schedule", type=click.Choice(["linear", "cosine"]), default="linear")
@click.option(
    "--prediction-type",
    type=click.Choice(["epsilon", "x_start", "v"]),
    default="epsilon",
    help="What the model predicts.",
)
@click.option("--channels", type=int, default=128, help="Channels at full resolution.")
@click.option("--multipliers", type=IntList(), default="1,2,2,2", help="One a resolution.")
@click.option("--blocks", type=int, default=2, help="Residual blocks a resolution.")
@click.option(
    "--attention-resolutions", type=IntList(), default="16", help="Image sizes with attention."
)
@click.option("--groups", type=int, default=32, help="Groups of each normalisation.")
@click.option("--dropout", type=float, default=0.0)
@click.option("--save-every", type=click.IntRange(1), default=1000, help="Steps between saves.")
@click.option("--sample-every", type=click.IntRange(1), default=5000, help="Steps between grids.")
@device_option
def train(
    data: str | None,
    out: Path | None,
    resume: Path | None,
    steps: int | None,
    unconditional: bool,
    save_every: int,
    sample_every: int,
    device: str,
    **settings: Any,
) -> None:
    """Train a model on DATA: Algorithm 1 of the DDPM paper.

    DATA is a folder of pictures (a folder a class), idx files (MNIST), or an npz with
    images and labels. The run's folder keeps config, log, sample grids, everything needed
    to resume, and model/: the averaged model as a diffusers folder.
    """
    from fastdiff.training import TrainConfig, Trainer

    chosen = resolve_device(device)
    if resume is not None:
        if data is not None or out is not None:
            raise click.UsageError("--resume takes data and settings from the run; give no others")
        trainer = Trainer.resume(resume, chosen, steps)
    else:
        if data is None or out is None:
            raise click.UsageError("a new run needs DATA and --out; see fastdiff train --help")
        config = TrainConfig(
            data=data,
            steps=100_000 if steps is None else steps,
            class_conditional=not unconditional,
            **settings,
        )
        trainer = Trainer.start(config, out, chosen)
    _run(trainer, save_every, sample_every)


def _run(trainer: Trainer, save_every: int, sample_every: int) -> None:
    with _progress_bar(trainer) as report:
        trainer.run(save_every=save_every, sample_every=sample_every, report=report)
    click.echo(f"trained to step {trainer.step}: {trainer.folder / 'model'}")
    if len(trainer.held_out):
        click.echo("loss of the averaged model on the held-out images, by timestep")
        for t, loss in trainer.held_out_loss():
            click.echo(f"  {t:5d}  {loss:.5f}")


@contextmanager
def _progress_bar(trainer: Trainer) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=trainer.config.steps, completed=trainer.step, told="")
        smoothed: float | None = None

        def report(progress: Progress) -> None:
            nonlocal smoothed
            smoothed = progress.loss if smoothed is None else 0.98 * smoothed + 0.02 * progress.loss
            told = f"loss {smoothed:.4f}  {progress.images_per_second:.0f} images/s"
            bar.update(task, completed=progress.step, told=told)

        yield report
