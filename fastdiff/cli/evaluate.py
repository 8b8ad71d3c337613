"""``fastdiff evaluate``."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastdiff.cli.options import device_option, resolve_device

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fastdiff.checkpoints import Pretrained
    from fastdiff.evaluation import Comparison, FeatureNet
    from fastdiff.likelihood import BitsPerDim
    from fastdiff.training import ImageData

METRICS = ("bits", "distances")


@click.command(context_settings={"show_default": True})
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Real images.")
@click.option("--samples", type=click.Path(path_type=Path), help="Generated ones.")
@click.option("--metric", "metrics", type=click.Choice(METRICS), multiple=True, default=METRICS)
@click.option("--num", type=click.IntRange(2), default=1000, help="Images of each set at most.")
@click.option("--skip", type=click.IntRange(0), default=0, help="First images of DATA left out.")
@click.option(
    "--image-size", type=click.IntRange(0), default=0,
    help="Scale and crop DATA and samples as fastdiff train does; 0 takes them as they are.",
)  # fmt: skip
@click.option("--timesteps", type=click.IntRange(3), help="Of the bound, an image.  [default: all]")
@click.option("--steps", type=click.IntRange(1), default=50, help="DDIM steps of samples drawn.")
@click.option("--features", default="inception", help="Or the folder of a model, or 'bundled'.")
@click.option("--inception-weights", type=click.Path(path_type=Path), help="torch-fidelity's file.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, help="Of all noise.")
@click.option("--batch-size", type=click.IntRange(1), default=64)
@click.option("--out", type=click.Path(path_type=Path), help="Report, an .html with pictures.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="The figures as JSON.")
@device_option
@click.pass_context
def evaluate(
    ctx: click.Context,
    model: Path | None,
    data: Path,
    samples: Path | None,
    metrics: tuple[str, ...],
    num: int,
    skip: int,
    image_size: int,
    timesteps: int | None,
    steps: int,
    features: str,
    inception_weights: Path | None,
    seed: int,
    batch_size: int,
    out: Path | None,
    json_path: Path | None,
    device: str,
) -> None:
    """Tell how good MODEL is: bits a dimension of DATA, and how far its samples lie from DATA.

    MODEL is a folder in the diffusers format; without it, --samples are compared with DATA. Both
    are idx files, a folder or zip of pictures, or an npz as fastdiff sample and guided-diffusion
    write it. Distances are FID, KID and the Inception score by torch-fidelity, whose Inception
    weights must be there; by --features they are taken in another network, offline.

    \b
    fastdiff evaluate runs/mine/model --data test.npz --metric bits --num 100
    fastdiff evaluate runs/mine/model --data train/ --num 10000 --out report.html
    fastdiff evaluate --samples images.npz --data train/ --features bundled
    """
    if model is None and samples is None:
        raise click.UsageError("give MODEL, or --samples to compare with --data")
    if model is None:
        metrics = ("distances",)
    from fastdiff.cli.outputs import check_writable

    for path, ending in ((out, ".html"), (json_path, ".json")):
        if path is not None and path.suffix != ending:
            raise click.UsageError(f"{path}: its name must end in {ending}")
        if path is not None:
            check_writable(path)

    from fastdiff import checkpoints
    from fastdiff.training import load_images

    chosen = resolve_device(device)
    # What is missing is told before any work.
    net = _net(features, inception_weights, chosen) if "distances" in metrics else None
    real = load_images(data, image_size=image_size)
    if skip + 2 > len(real):
        raise click.UsageError(f"--skip {skip} leaves none of {len(real)} images to speak of")
    real = real.part(skip, skip + num)
    pretrained = None if model is None else checkpoints.load(model).to(chosen)
    if pretrained is not None and pretrained.unet.config.sample_size is not None:
        found, drawn_size = tuple(real.images.shape[1:]), pretrained.sample_shape
        if found != drawn_size:
            raise click.UsageError(
                f"{data} holds images of {_told_size(found)} and {model} draws "
                f"{_told_size(drawn_size)}; --image-size scales and crops"
            )
    bits = comparison = drawn = None
    if pretrained is not None and "bits" in metrics:
        bits = _bits(pretrained, real, timesteps, seed, batch_size)
    if net is not None:
        if samples is not None:
            drawn = load_images(samples, image_size=image_size).images[:num]
        elif pretrained is not None:
            drawn = _draw(pretrained, real, steps, seed, batch_size)
        comparison = _compare(drawn, real, net)
    figures = _figures(bits, comparison)
    _print(figures)
    told = _told(ctx, model, data)
    if json_path is not None:
        _write_json(json_path, figures, told)
    if out is not None:
        _report(out, figures, told, real, drawn, bits, comparison)
        click.echo(f"report: {out}")


def _told_size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _net(features: str, weights: Path | None, device: torch.device) -> FeatureNet:
    from fastdiff import checkpoints
    from fastdiff.evaluation import inception_net, unet_net
    from fastdiff.evaluation.features import require_torch_fidelity

    require_torch_fidelity()
    if features == "inception":
        return inception_net(weights, device)
    pretrained = checkpoints.load(None if features == "bundled" else Path(features)).to(device)
    return unet_net(pretrained, features)


def _bits(
    pretrained: Pretrained, real: ImageData, timesteps: int | None, seed: int, batch_size: int
) -> BitsPerDim:
    labels = real.labels if pretrained.num_classes is not None else None
    if pretrained.num_classes is not None and labels is None:
        raise click.UsageError("the model was trained with classes, and the data has no labels")
    return pretrained.bits_per_dim(
        real.images,
        class_labels=labels,
        timesteps=timesteps,
        seed=seed,
        batch_size=batch_size,
        progress=True,
    )


def _draw(
    pretrained: Pretrained, real: ImageData, steps: int, seed: int, batch_size: int
) -> Tensor:
    import torch

    from fastdiff.images import to_uint8
    from fastdiff.samplers.progress import progress_bar

    parts = []
    with progress_bar("sampling") as show:
        for start in range(0, len(real), batch_size):
            index = torch.arange(start, min(start + batch_size, len(real)))
            labels = None
            if (classes := pretrained.num_classes) is not None:
                labels = index % classes if real.labels is None else real.labels[index]
            images = pretrained.sample(
                len(index),
                steps=min(steps, pretrained.schedule.num_timesteps),
                seed=seed,
                sample_index=start,
                class_labels=labels,
            )
            parts.append(torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2))
            show(int(index[-1]) + 1, len(real))
    return torch.cat(parts)


def _compare(drawn: Tensor | None, real: ImageData, net: FeatureNet) -> Comparison:
    from fastdiff.evaluation import compare
    from fastdiff.samplers.progress import progress_bar

    assert drawn is not None
    with progress_bar("features") as show:
        return compare(drawn, real.images, net, progress=show)


def _figures(bits: BitsPerDim | None, comparison: Comparison | None) -> dict[str, str]:
    figures: dict[str, str] = {}
    if bits is not None:
        count = len(bits.total)
        error = (bits.total.var(ddof=1) / count) ** 0.5 if count > 1 else float("nan")
        figures["bits/dim"] = f"{bits.total.mean():.4f} +- {error:.4f} ({count} images)"
        figures["of which prior (L_T)"] = f"{bits.prior.mean():.2e}"
        at_zero = bits.vb[:, 0].mean()
        figures["of which decoder (L_0)"] = f"{at_zero:.4f}"
        if bits.standard_error.any():
            error = (bits.standard_error**2).sum() ** 0.5 / count
            figures["for timesteps left out"] = f"+- {error:.4f}"
    if comparison is not None:
        proper = comparison.features == "Inception-v3"
        within = "" if proper else f" (features: {comparison.features})"
        figures["FID" if proper else f"Frechet distance{within}"] = f"{comparison.frechet:.4f}"
        mean, spread = comparison.kernel
        figures["KID" if proper else f"kernel distance{within}"] = f"{mean:.6f} +- {spread:.6f}"
        if comparison.score is not None:
            mean, spread = comparison.score
            figures["Inception score"] = f"{mean:.3f} +- {spread:.3f}"
        figures["images compared"] = (
            f"{comparison.num_samples} samples, {comparison.num_reference} of the data"
        )
    return figures


def _print(figures: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in figures.items():
        table.add_row(name, value)
    Console().print(table)


def _told(ctx: click.Context, model: Path | None, data: Path) -> dict[str, Any]:
    """How the figures came to be: options, versions, machine."""
    import torch

    import fastdiff

    hidden = ("out", "json_path", "model", "data")
    given = {name: value for name, value in ctx.params.items() if name not in hidden}
    return {
        "model": "none" if model is None else str(model),
        "data": str(data),
        **{name: str(value) for name, value in given.items() if value is not None},
        "fastdiff": fastdiff.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def _write_json(path: Path, figures: dict[str, str], told: dict[str, Any]) -> None:
    from fastdiff._files import write_whole

    with write_whole(path) as unfinished:
        text = json.dumps({"figures": figures, "told": told}, indent=2)
        Path(unfinished).write_text(text + "\n")


def _report(
    path: Path,
    figures: dict[str, str],
    told: dict[str, Any],
    real: ImageData,
    drawn: Tensor | None,
    bits: BitsPerDim | None,
    comparison: Comparison | None,
) -> None:
    from fastdiff.evaluation import report

    rows = []
    first = [report.grid_picture(real.images[:64], "the data")]
    if drawn is not None:
        first.insert(0, report.grid_picture(drawn[:64], "samples"))
    rows.append(first)
    notes: list[str] = []
    if comparison is not None and drawn is not None:
        near = report.neighbours_picture(drawn, real.images, comparison.nearest)
        rows.append([near])
        notes = comparison.notes
    if bits is not None:
        rows.append([report.terms_picture(bits)])
        if not bits.standard_error.any():
            rows.append([report.curve_picture(bits)])
    title = f"fastdiff evaluate: {told['model'] if told['model'] != 'none' else told['data']}"
    report.write_report(path, title, figures, told, rows, notes)
