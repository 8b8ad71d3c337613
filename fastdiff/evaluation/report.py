"""One HTML file that tells all of an evaluation, pictures inside."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff._files import write_whole
from fastdiff.images import Pixels, grid, save_png
from fastdiff.likelihood import BitsPerDim

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>fastdiff evaluate</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .2rem 1rem .2rem 0; text-align: left; }}
img {{ max-width: 100%; image-rendering: pixelated; }} figure {{ margin: 1rem 0; }}
.two {{ display: flex; flex-wrap: wrap; gap: 2rem; }} small {{ color: #666; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


@dataclass(frozen=True)
class Picture:
    """A PNG and what stands below it."""

    png: bytes
    caption: str


def write_report(
    path: Path,
    title: str,
    figures: Mapping[str, str],
    told: Mapping[str, Any],
    pictures: Sequence[Sequence[Picture]],
    notes: Sequence[str] = (),
) -> None:
    """Write the page, whole or not at all: figures, rows of pictures, then how it was made."""
    parts = [_table(figures), *(f"<p>{html.escape(note)}</p>" for note in notes)]
    for row in pictures:
        parts.append(f'<div class="two">{"".join(map(_figure, row))}</div>')
    parts.append(f"<h2>How it was made</h2>{_table({k: str(v) for k, v in told.items()})}")
    with write_whole(path) as unfinished:
        page = PAGE.format(title=html.escape(title), body="\n".join(parts))
        Path(unfinished).write_text(page, encoding="utf-8")


def grid_picture(images: Tensor, caption: str, columns: int = 8) -> Picture:
    """Images [N, C, H, W] uint8 side by side."""
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    return Picture(_png(grid(pixels, columns), max(1, 48 // pixels.shape[2])), caption)


def neighbours_picture(samples: Tensor, reference: Tensor, nearest: Tensor) -> Picture:
    """The first samples above, the nearest images of the reference below."""
    count = len(nearest)
    both = torch.cat([samples[:count], reference[nearest]])
    caption = "samples above, below each the reference's nearest image in these features"
    return grid_picture(both, caption, columns=max(1, count))


def terms_picture(bits: BitsPerDim) -> Picture:
    """The bound's terms by timestep, the mean over images; ImportError without matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    t = bits.timesteps.reshape(-1)
    counts = np.bincount(t)
    steps = np.flatnonzero(counts)
    means = np.bincount(t, weights=bits.vb.reshape(-1))[steps] / counts[steps]
    axes.plot(steps, np.maximum(means, 1e-9), ".-", markersize=2)
    axes.set(xlabel="timestep", ylabel="bits/dim", yscale="log")
    axes.grid(alpha=0.3)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return Picture(file.getvalue(), "terms of the variational bound by timestep")


def curve_picture(bits: BitsPerDim) -> Picture:
    """Rate and distortion; ImportError without matplotlib."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "curve.png"
        bits.rate_distortion().save(path)
        return Picture(path.read_bytes(), "progressive lossy coding: distortion and rate")


def _png(picture: Pixels, scale: int) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        save_png(path, picture, scale)
        return path.read_bytes()


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    caption = html.escape(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption><small>{caption}</small></figcaption></figure>"
    )


def _table(rows: Mapping[str, str]) -> str:
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table>{cells}</table>"
