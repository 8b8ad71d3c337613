"""``fastdiff sample``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastdiff.cli.options import device_option, resolve_device
from fastdiff.cli.stopwatch import Stopwatch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fastdiff.checkpoints import Pretrained

DTYPES = {
    "auto": "float32", "float32": "float32", "tf32": "float32", "bf16": "bfloat16", "f16": "float16"
}  # fmt: skip


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
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    multiple=True,
    default=["samples.png"],
    help="A grid (.png) or all images (.npz); give it twice for both.",
)
@click.option("--gif", type=click.Path(path_type=Path), help="How the first images came to be.")
@device_option
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPES)),
    default="auto",
    help="Of the model; tf32: float32 that a GPU multiplies with 10 bits.",
)
@click.option("--profile", is_flag=True, help="Time operators one by one, and tell by kind.")
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
    out: tuple[Path, ...],
    gif: Path | None,
    device: str,
    dtype: str,
    profile: bool,
) -> None:
    """Draw images from MODEL and write them as one PNG, or all of them as one npz.

    MODEL is a folder in the diffusers format, or the id of one on the Hub; without it, the
    bundled model of handwritten digits draws. Image i depends on the seed and on i alone, not on
    --num or --batch-size.
    The npz holds arr_0, uint8 [N, H, W, C], and with classes arr_1, as guided-diffusion's does.

    Finished batches are kept in a folder beside it until all are there: an interrupted run goes on
    when the same command is given again. `torchrun --nproc-per-node K -m fastdiff -- sample ...`
    shares the batches among K processes or GPUs; the images are the same.
    """
    from fastdiff.cli.drawing import Drawing
    from fastdiff.cli.outputs import Outputs
    from fastdiff.ranks import joined
    from fastdiff.shards import Shards

    outputs = Outputs.checked(out, gif)
    stopwatch = Stopwatch()
    with joined() as ranks:
        with stopwatch.part("start"):
            from fastdiff.cli.operators import Operators  # and torch, which takes a second

            chosen = resolve_device(device, ranks)
            if dtype == "tf32" and chosen.type != "cuda":
                raise click.UsageError("--dtype tf32 is of NVIDIA GPUs; on the CPU take float32")
            pretrained = _load(model, chosen, DTYPES[dtype])
            labels = _labels(pretrained, label, num)
            pretrained.uncond_labels(0, guidance_scale)  # refused before any work
            called = pretrained.model_for(tf32=dtype == "tf32")
            if steps is None and sampler != "ddpm":
                steps = min(50, pretrained.schedule.num_timesteps)
            settings = {"sampler": sampler, "steps": steps, "eta": eta, "seed": seed}
            settings["guidance_scale"] = guidance_scale
            told = {"class": label, "dtype": dtype, "model": ranks.agree(pretrained.fingerprint)}
            shards = Shards(outputs.main, num, batch_size, {**settings, **told})
            ranks.agree(shards.check)
        run = Drawing(pretrained, called, labels, settings, outputs, shards)
        operators = Operators(chosen) if profile else None
        with run.unfinished():
            before, batches = ranks.agree(run.begin)
            with stopwatch.part("sampling"):
                with operators or nullcontext():
                    run.draw(batches[ranks.rank :: ranks.size], before, shown=ranks.first)
                ranks.wait()
            if not ranks.first:
                return
            with stopwatch.part("writing"):
                run.finish()
    click.echo(stopwatch.summary(num - before))
    if before:
        click.echo(f"{before} of {num} images were there from an earlier run")
    if operators is not None:
        _print_profile(operators.seconds)


def _print_profile(seconds: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("operators", "seconds", "share", show_edge=False, pad_edge=False)
    for name, spent in seconds.items():
        table.add_row(name, f"{spent:.2f}", f"{100 * spent / sum(seconds.values()):.1f} %")
    Console().print(table)


def _load(model: Path | None, device: torch.device, dtype: str) -> Pretrained:
    import torch

    from fastdiff import checkpoints

    pretrained = checkpoints.load(model, dtype=getattr(torch, dtype))
    # torch's stub of Module.to leaves memory_format out.
    pretrained.unet.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return pretrained


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
