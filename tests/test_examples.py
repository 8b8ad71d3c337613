"""The examples: one line between before and after, and the same images."""

from __future__ import annotations

import difflib
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.restated.guided_diffusion.script_util import create_model_and_diffusion
from tests.restated.guided_diffusion.script_util import model_and_diffusion_defaults as defaults
from tests.restated.weights import shaken

EXAMPLES = Path(__file__).parents[1] / "examples"
RESTATED = Path(__file__).parent / "restated"


def run(name: str, *arguments: object) -> None:
    before = sys.argv
    sys.argv = [name, *map(str, arguments)]
    try:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before


def code(name: str) -> list[str]:
    """The lines below the docstring."""
    return (EXAMPLES / f"{name}.py").read_text().split('"""', 2)[2].splitlines()


@pytest.mark.parametrize("library", ["diffusers", "guided_diffusion"])
def test_one_line_differs(library: str) -> None:
    lines = difflib.ndiff(code(f"{library}_before"), code(f"{library}_after"))
    changed = [line for line in lines if line[0] in "+-"]
    assert [line[0] for line in changed] == ["-", "+"]
    assert "import" in changed[0] and "fastdiff" in changed[1]


def test_diffusers_before_and_after(tmp_path: Path) -> None:
    import diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(16,), down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "model")
    for name in ("before", "after"):
        out = tmp_path / f"{name}.png"
        run(f"diffusers_{name}", tmp_path / "model", out, "--num", 2, "--steps", 5)
    before, after = (
        np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("before", "after")
    )
    assert before.shape == (8, 16, 3) and before.std() > 5
    assert np.abs(before - after).max() <= 1


@pytest.mark.parametrize("use_ddim", [True, False])
def test_guided_diffusion_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_ddim: bool
) -> None:
    """Before it is the original restated; OpenAI's own is not on PyPI."""
    flags = {
        "image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2",
        "attention_resolutions": "8", "learn_sigma": True, "class_cond": True,
        "noise_schedule": "cosine", "timestep_respacing": "ddim5" if use_ddim else "5",
        "resblock_updown": True,
    }  # fmt: skip
    model, _ = create_model_and_diffusion(**defaults() | flags)
    torch.save(shaken(model).state_dict(), tmp_path / "model.pt")
    monkeypatch.syspath_prepend(RESTATED)
    for name in ("before", "after"):
        told = {**flags, "model_path": tmp_path / "model.pt", "out": tmp_path / f"{name}.npz",
                "num": 2, "use_ddim": use_ddim}  # fmt: skip
        run(f"guided_diffusion_{name}", *(x for k, v in told.items() for x in (f"--{k}", v)))
    for name in [name for name in sys.modules if name.split(".")[0] == "guided_diffusion"]:
        del sys.modules[name]
    before, after = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("before", "after"))
    assert before.shape == (2, 16, 16, 3) and before.dtype == np.uint8 and before.std() > 5
    assert np.abs(before.astype(int) - after.astype(int)).max() <= 1
