"""``fastdiff sample``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import click

from fastdiff.cli.options import device_option, resolve_device
from fastdiff.cli.stopwatch import Stopwatch

if TYPE_CHECKING:
    from torch import Tensor

    from fastdiff.checkpoints import Pretrained
    from fastdiff.samplers import SampleStep

GIF_FRAMES = 60
DTYPES = {"auto": "float32", "float32": "float32", "bf16": "bfloat16", "f16": "float16"}


@click.command(context_settings={"show_default": True})
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--num", type=click.IntRange(1), default=64, help="How many images.")
@click.option(
    "--sampler",
    type=click.Choice(["ddpm", "ddim", "dpm++"]),
    default="ddim",
    help="Ancestral sampling, DDIM, or DPM-Solver++(2M).",
)
@click.option("--steps", type=int, help="Model calls an image.  [default: 50; all with ddpm]")
@click.option("--eta", type=float, default=0.0, help="DDIM's share of fresh noise, 0 to 1.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, help="Of all noise.")
@click.option("--class", "label", type=int, help="One class for all.  [default: each in turn]")
@click.option("--guidance-scale", type=float, default=1.0, help="Above 1, classes count for more.")
@click.option("--batch-size", type=click.IntRange(1), default=64)
@click.option("--out", type=click.Path(path_type=Path), default=Path("samples.png"), help="Grid.")
@click.option("--npz", type=click.Path(path_type=Path), help="All images, as uint8 arrays.")
@click.option("--gif", type=click.Path(path_type=Path), help="How the first batch came to be.")
@device_option
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="auto", help="Of the model.")
@click.option("--profile", is_flag=True, help="Tell what the time went to.")
def sample(
    model: Path | None,
    num: int,
    sampler: str,
    steps: int | None,
    eta: float,
    seed: int,
    label: int | None,
    guidance_scale: float,
    batch_size: int,
    out: Path,
    npz: Path | None,
    gif: Path | None,
    device: str,
    dtype: str,
    profile: bool,
) -> None:
    """Draw images from MODEL and write them as one PNG.

    MODEL is a folder in the diffusers format, or the id of one on the Hub; without it, the
    bundled model of handwritten digits draws. Image i depends on the seed and on i alone, not on
    --num or --batch-size.
    The npz holds arr_0, uint8 [N, H, W, C], and with classes arr_1, as guided-diffusion's does.
    """
    for path, ending in ((out, ".png"), (npz, ".npz"), (gif, ".gif")):
        _check_output(path, ending)
    stopwatch = Stopwatch()
    with stopwatch.part("start"):
        import torch

        from fastdiff import checkpoints
        from fastdiff.samplers.progress import progress_bar

        chosen = resolve_device(device)
        pretrained = checkpoints.load(model, dtype=getattr(torch, DTYPES[dtype]))
        # torch's stub of Module.to leaves memory_format out.
        pretrained.unet.to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
        labels = _labels(pretrained, label, num)
        pretrained.uncond_labels(0, guidance_scale)  # refused before any work
        timed = stopwatch.time_model(pretrained.model, chosen, by_kind=profile)
    if steps is None and sampler != "ddpm":
        steps = min(50, pretrained.schedule.num_timesteps)
    settings = {"sampler": sampler, "steps": steps, "eta": eta, "seed": seed}
    settings["guidance_scale"] = guidance_scale
    frames: list[Tensor] = []
    with stopwatch.part("sampling"), progress_bar() as show:
        images = _draw(
            pretrained, num, batch_size, labels, settings, timed, show, frames if gif else None
        )
    with stopwatch.part("writing"):
        _write(images, labels, pretrained, out, npz, gif, frames)
    click.echo(stopwatch.summary(num))
    if profile:
        _print_profile(stopwatch.profile())


def _print_profile(seconds: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("part", "seconds", "share", show_edge=False, pad_edge=False)
    for name, spent in seconds.items():
        table.add_row(name, f"{spent:.2f}", f"{100 * spent / sum(seconds.values()):.1f} %")
    Console().print(table)


def _draw(
    pretrained: Pretrained,
    num: int,
    batch_size: int,
    labels: Tensor | None,
    settings: dict[str, Any],
    model: Callable[..., Tensor],
    show: Callable[[int, int], None],
    frames: list[Tensor] | None,
) -> Tensor:
    import torch

    from fastdiff.samplers import sample

    unet = pretrained.unet
    device = unet.conv_in.weight.device
    batches: list[Tensor] = []

    def after_step(done: SampleStep) -> None:
        finished = len(batches) * done.num_steps + done.step + 1
        show(finished, -(-num // batch_size) * done.num_steps)
        last = done.step == done.num_steps - 1
        every = -(-done.num_steps // GIF_FRAMES)
        if frames is not None and not batches and (last or done.step % every == 0):
            frames.append(done.x_prev.cpu())

    for first in range(0, num, batch_size):
        count = min(batch_size, num - first)
        images = sample(
            model,
            (count, *pretrained.sample_shape),
            schedule=pretrained.schedule,
            prediction_type=pretrained.prediction_type,
            variance_type=pretrained.variance_type,
            clip=pretrained.clip,
            sample_index=first,
            class_labels=None if labels is None else labels[first : first + count],
            uncond_labels=pretrained.uncond_labels(count, settings["guidance_scale"]),
            device=device,
            dtype=unet.dtype,
            callback=after_step,
            **settings,
        )
        batches.append(images.cpu())
    return torch.cat(batches)


def _write(
    images: Tensor,
    labels: Tensor | None,
    pretrained: Pretrained,
    out: Path,
    npz: Path | None,
    gif: Path | None,
    frames: list[Tensor],
) -> None:
    import numpy as np

    from fastdiff._files import write_whole
    from fastdiff.images import grid, save_gif, save_png, to_uint8

    classes = pretrained.num_classes
    columns = classes if classes and classes <= 16 else None
    scale = max(1, 64 // images.shape[-1])
    pixels = to_uint8(images)
    save_png(out, grid(pixels, columns), scale)
    if npz is not None:
        arrays = [pixels] if labels is None else [pixels, labels.numpy()]
        with write_whole(npz) as unfinished:
            np.savez(unfinished, *arrays)
    if gif is not None:
        save_gif(gif, [grid(to_uint8(frame), columns) for frame in frames], scale)


def _labels(pretrained: Pretrained, label: int | None, num: int) -> Tensor | None:
    import torch

    classes = pretrained.num_classes
    if classes is None:
        if label is not None:
            raise click.UsageError("--class: this model was trained without classes; leave it out")
        return None
    if label is None:
        return torch.arange(num) % classes
    if not 0 <= label < classes:
        raise click.UsageError(f"--class {label}: this model's classes are 0 to {classes - 1}")
    return torch.full((num,), label)


def _check_output(path: Path | None, ending: str) -> None:
    """Find out now, rather than after the work, that a file cannot be written."""
    if path is None:
        return
    if path.suffix.lower() != ending:
        raise click.UsageError(f"{path}: its name must end in {ending}")
    folder = path.parent
    if not folder.is_dir():
        raise click.UsageError(f"{path}: there is no folder {folder}; make it first")
    try:
        # Asked of the disk itself: permissions alone do not tell, least of all root's.
        with TemporaryFile(dir=folder):
            writable = not path.is_dir()
    except OSError:
        writable = False
    if not writable:
        raise click.UsageError(f"{path}: cannot be written here; name another place")
