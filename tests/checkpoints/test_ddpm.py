"""The PyTorch conversion of Ho's DDPM, against its UNet restated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fastdiff.checkpoints import CheckpointError, load, save
from fastdiff.checkpoints.ddpm import load_unet, recognised
from fastdiff.schedules import NoiseSchedule
from tests.restated.ddpm_unet import Model
from tests.restated.weights import shaken

MODELS: dict[str, dict[str, Any]] = {
    "two levels": {},
    "three": {"ch_mult": (1, 2, 2), "num_res_blocks": 2, "attends": (1,)},
    "attention everywhere": {"attends": (0, 1), "image_channels": 1},
    "attention in the middle alone": {"attends": ()},
}


def original(name: str = "two levels") -> Model:
    torch.manual_seed(0)
    return shaken(Model(**MODELS[name]))


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_what_the_original_does(name: str) -> None:
    model = original(name)
    assert recognised(model.state_dict())
    unet = load_unet(model.state_dict())
    x, t = torch.randn(2, MODELS[name].get("image_channels", 3), 8, 8), torch.tensor([0, 999])
    with torch.no_grad():
        truth = model.double()(x.double(), t)
        assert (unet(x, t) - truth).abs().max() < 1e-5 * truth.abs().max()


@pytest.mark.parametrize("safe", [True, False])
def test_a_file_loads_and_goes_on_as_a_folder(tmp_path: Path, safe: bool) -> None:
    path = tmp_path / ("model.safetensors" if safe else "model.ckpt")
    weights = original().state_dict()
    save_file(weights, path) if safe else torch.save(weights, path)
    loaded = load(path, image_size=8)
    assert loaded.schedule == NoiseSchedule.linear(1000)
    assert (loaded.prediction_type, loaded.variance_type) == ("epsilon", "fixed_small")
    save(tmp_path / "folder", loaded)
    again = load(tmp_path / "folder")
    first, second = (m.sample(2, steps=3, seed=1) for m in (loaded, again))
    assert torch.equal(first, second) and first.isfinite().all()


def test_without_a_size_there_is_no_sampling(tmp_path: Path) -> None:
    torch.save(original().state_dict(), tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"image_size to fastdiff\.load"):
        load(tmp_path / "model.ckpt").sample(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mid.attn_1.q.bias": None}, r"mid\.attn_1\.q\.bias is missing, expected \[64\]"),
        ({"down.0.block.0.conv_shortcut.weight": torch.zeros(2)},
         r"down\.0\.block\.0\.conv_shortcut\.weight is \[2\], expected nothing"),
        ({"conv_in.weight": None}, r"conv_in\.weight is missing"),
        ({"up.1.attn.0.q.weight": torch.zeros(64, 64)},
         r"up\.1\.attn\.0\.q\.weight is \[64, 64\], expected \[64, 64, 1, 1\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    weights = {k: v for k, v in (original().state_dict() | change).items() if v is not None}
    with pytest.raises(CheckpointError, match=message):
        load_unet(weights)


def test_it_knows_no_heads(tmp_path: Path) -> None:
    torch.save(original().state_dict(), tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match="knows no num_heads, rescale_timesteps"):
        load(tmp_path / "model.ckpt", num_heads=1, rescale_timesteps=False)
