"""``fastdiff train``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from fastdiff.cli.options import (
    NumberList,
    SectionCommand,
    SectionOption,
    device_option,
    resolve_device,
)
from fastdiff.training.config import TrainConfig, read_settings

if TYPE_CHECKING:
    from fastdiff.ranks import Ranks
    from fastdiff.training import Progress, Trainer

# What may change when a run goes on: nothing that its result up to a step depends on.
CHANGEABLE = ("steps", "save_every", "keep", "sample_every", "validate_every", "skip_limit")
# What is on by itself: the flag that turns it off, and what the help says of that.
OFF = {"class_conditional": ("unconditional", "Ignore the labels of the data.")}
Command = TypeVar("Command", bound=Callable[..., Any])


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """What the file sets becomes the default, so that flags override it."""
    if path is not None:
        ctx.default_map = read_settings(path)
    return path


def _settings(command: Command) -> Command:
    """An option for each setting of TrainConfig."""
    for setting in reversed(dataclasses.fields(TrainConfig)):
        if setting.name == "data":
            continue
        name, told = setting.name.replace("_", "-"), setting.metadata
        kind: Any = {"int": int, "float": float, "str": str}.get(str(setting.type))
        if told["choices"]:
            kind = click.Choice(told["choices"])
        elif str(setting.type).startswith("tuple"):
            kind = NumberList(int if "int" in str(setting.type) else float)
        off, help = OFF.get(setting.name, (f"no-{name}", told["help"]))
        flag = f"--{name}/--{off}" if kind is None else f"--{name}"
        shown: Any = setting.default
        if isinstance(shown, tuple):
            shown = ",".join(map(str, shown))
        command = click.option(
            flag, setting.name, cls=SectionOption, section=told["section"], type=kind,
            default=shown, help=help,
        )(command)  # fmt: skip
    return command


@click.command(cls=SectionCommand, context_settings={"show_default": True})
@click.argument("data", required=False)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the new run.")
@click.option("--resume", type=click.Path(path_type=Path), help="Folder of a run to go on with.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    callback=_read_config,
    is_eager=True,
    expose_value=True,
    help="YAML file of settings, by the names below; flags override it.",
)
@device_option
@_settings
@click.pass_context
def train(
    ctx: click.Context,
    /,
    data: str | None,
    out: Path | None,
    resume: Path | None,
    config: Path | None,
    device: str,
    **settings: Any,
) -> None:
    """Train a model on DATA: Algorithm 1 of the DDPM paper, and its successors'.

    DATA is a folder or a zip of pictures (a folder a class), idx files (MNIST), or an npz with
    images and labels; all lie in memory, 8 bits a channel, up to 32 GiB. The run's folder keeps
    config.yaml, curves as CSV and for TensorBoard, sample grids, checkpoints, and model/: the
    averaged model as a diffusers folder, a further one for each further decay.

    \b
    fastdiff train cats/ --out runs/cats
    fastdiff train --config cats.yaml --out runs/cats2 --learning-rate 1e-4
    fastdiff train --resume runs/cats --steps 200000
    torchrun --nproc-per-node 4 -m fastdiff -- train cats/ --out runs/cats
    """
    if resume is not None:
        changed = _changed(ctx)
        if data is not None or out is not None or config is not None:
            raise click.UsageError("--resume takes data and settings from the run; give no others")
    elif data is None or out is None:
        raise click.UsageError("a new run needs DATA and --out; see fastdiff train --help")

    from fastdiff.ranks import joined
    from fastdiff.samplers.progress import progress_bar
    from fastdiff.training import Trainer

    with joined() as ranks:
        chosen = resolve_device(device, ranks)
        with progress_bar("reading pictures") as tell:
            common: dict[str, Any] = {"ranks": ranks, "say": _say, "tell": tell}
            if resume is not None:
                trainer = Trainer.resume(resume, chosen, **common, **changed)
            else:
                assert data is not None and out is not None
                # Absolute, so that the run can be resumed from any folder.
                made = TrainConfig(data=str(Path(data).absolute()), **settings)
                trainer = Trainer.start(made, out, chosen, **common)
        _run(trainer, ranks)


def _changed(ctx: click.Context) -> dict[str, Any]:
    """The settings given on the command line, which a resumed run may change."""
    fields = [setting.name for setting in dataclasses.fields(TrainConfig)]
    given = {
        name: value
        for name, value in ctx.params.items()
        if name in fields
        and name != "data"
        and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    fixed = [name for name in given if name not in CHANGEABLE]
    if fixed:
        raise click.UsageError(
            f"--{fixed[0].replace('_', '-')} cannot change when a run goes on (--resume); "
            "begin a new one"
        )
    return given


def _say(sentence: str) -> None:
    click.echo(f"fastdiff: {sentence}", err=True)


def _run(trainer: Trainer, ranks: Ranks) -> None:
    if not ranks.first:
        trainer.run()
        return
    with _progress_bar(trainer) as report:
        trainer.run(report)
    click.echo(f"trained to step {trainer.step}: {trainer.folder / 'model'}")
    if trainer.skipped:
        click.echo(f"{trainer.skipped} steps were skipped: their loss was not finite")
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
