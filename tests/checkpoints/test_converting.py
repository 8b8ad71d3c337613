"""`fastdiff convert` in Python and from the shell: whole or not at all, and why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fastdiff
from fastdiff.checkpoints import CheckpointError, Pretrained, convert, load, save
from fastdiff.models import UNet
from fastdiff.schedules import NoiseSchedule
from tests.restated.ddpm_unet import Model
from tests.restated.guided_diffusion.unet import UNetModel
from tests.restated.weights import shaken

COSINE = NoiseSchedule.cosine(1000)


def guided(folder: Path, **config: Any) -> Path:
    torch.manual_seed(0)
    torch.save(shaken(UNetModel(**config)).state_dict(), folder / "guided.pt")
    return folder / "guided.pt"


def test_there_and_back_keeps_every_tensor(tmp_path: Path) -> None:
    source = guided(tmp_path, num_head_channels=32, use_scale_shift_norm=True, out_channels=6)
    flags = convert(source, tmp_path / "folder", "diffusers", schedule=COSINE, num_head_channels=32)
    assert flags == {}
    flags = convert(tmp_path / "folder", tmp_path / "back.pt", "guided-diffusion")
    before, after = (torch.load(p, weights_only=True) for p in (source, tmp_path / "back.pt"))
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert flags["num_head_channels"] == 32 and flags["learn_sigma"]
    assert flags["noise_schedule"] == "cosine" and flags["diffusion_steps"] == 1000


def test_the_new_attention_order_is_of_the_guided_diffusion_side(tmp_path: Path) -> None:
    source = guided(tmp_path, num_heads=2, use_new_attention_order=True)
    told = {"use_new_attention_order": True}
    convert(source, tmp_path / "folder", "diffusers", schedule=COSINE, num_heads=2, **told)
    convert(tmp_path / "folder", tmp_path / "back.pt", "guided-diffusion", **told)
    convert(tmp_path / "folder", tmp_path / "legacy.pt", "guided-diffusion")
    before, back, legacy = (
        torch.load(p, weights_only=True)["middle_block.1.qkv.weight"]
        for p in (source, tmp_path / "back.pt", tmp_path / "legacy.pt")
    )
    assert torch.equal(before, back) and not torch.equal(before, legacy)


CANNOT: dict[str, tuple[dict[str, Any], str, str]] = {
    "v": ({"prediction_type": "v"}, "guided-diffusion", "it predicts 'v'"),
    "schedule": ({"schedule": NoiseSchedule.sigmoid(1000)}, "guided-diffusion",
                 "its noise schedule is neither"),
    "heads": ({"unet": {"num_attention_heads": 4}}, "diffusers",
              "its num_attention_heads is 4, which UNet2DModel knows nothing of"),
    "timesteps": ({"timestep_scale": 0.25}, "diffusers", r"rescaled by 0\.25"),
    "groups": ({"unet": {"norm_num_groups": 8}}, "guided-diffusion",
               "its norm_num_groups is 8, there it is 32"),
}  # fmt: skip


@pytest.mark.parametrize("case", CANNOT)
def test_what_a_dialect_cannot_hold_is_said_and_nothing_written(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, to, message = CANNOT[case]
    unet = UNet(
        block_out_channels=(32, 64), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), layers_per_block=1,
        **changes.pop("unet", {}),
    )  # fmt: skip
    model = Pretrained(**{"unet": unet, "schedule": NoiseSchedule.linear(1000)} | changes)
    monkeypatch.setattr("fastdiff.checkpoints.converting.load", lambda *_, **__: model)
    with pytest.raises(CheckpointError, match=message):
        convert("anywhere", tmp_path / "new.pt", to)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["diffusers", "guided-diffusion"])
@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, to: str, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = guided(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr("fastdiff.checkpoints.diffusers._write_json", fail)
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(type(failure)):
        convert(source, tmp_path / "new.pt", to, schedule=COSINE, num_heads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["guided.pt"]


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    source = guided(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is there already"):
        convert(source, tmp_path / "full", "diffusers", schedule=COSINE, num_heads=1)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("target", "to", "message"),
    [
        ("new.txt", "guided-diffusion", "must end in"),
        ("new.pt", "keras", "unknown dialect 'keras'"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, target: str, to: str, message: str) -> None:
    source = guided(tmp_path)
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / target, to, schedule=COSINE, num_heads=1)


def test_hos_ddpm_becomes_a_folder_that_diffusers_samples_from(tmp_path: Path) -> None:
    from diffusers import DDPMPipeline

    torch.save(shaken(Model()).state_dict(), tmp_path / "ddpm.ckpt")
    convert(tmp_path / "ddpm.ckpt", tmp_path / "folder", "diffusers", image_size=8)
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "folder", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(generator=torch.manual_seed(0), num_inference_steps=2, output_type="np")
    assert images.images.shape == (1, 8, 8, 3)


def test_the_bundled_model_by_load() -> None:
    model = fastdiff.load()
    assert model.to(torch.float64) is model and model.unet.dtype == torch.float64
    model.to(torch.float32)
    images = model.sample(3, steps=2, seed=5, batch_size=2)
    labels = torch.arange(3)
    again = fastdiff.sample(
        model.unet, (3, *model.sample_shape), schedule=model.schedule, sampler="ddim", steps=2,
        seed=5, class_labels=labels, prediction_type=model.prediction_type, clip=model.clip,
    )  # fmt: skip
    assert (images - again).abs().max() < 1e-4  # batched otherwise
    assert model.sample(0).shape == (0, 1, 28, 28)
    ones = model.sample(2, steps=2, seed=5, class_labels=torch.tensor([1, 1]))
    assert not torch.equal(ones[0], images[0]) and (ones[1] - images[1]).abs().max() < 1e-4


def test_a_hub_id_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = UNet(block_out_channels=(32,), down_block_types=("DownBlock2D",),
                up_block_types=("UpBlock2D",), layers_per_block=1)  # fmt: skip
    save(tmp_path, Pretrained(unet, NoiseSchedule.linear(7)))
    asked = []

    def fetched(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    assert load("someone/ddpm-tiny").schedule == NoiseSchedule.linear(7)
    [(name, patterns)] = asked
    assert name == "someone/ddpm-tiny" and "scheduler/*.json" in patterns


def test_without_the_hub_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network\nand a long story")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"someone/it is no folder.*: no network$"):
        load("someone/it")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="pip install huggingface_hub"):
        load("someone/it")


def test_a_file_of_no_known_dialect_is_told(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"of no dialect.*it holds layer\.weight\."):
        load(tmp_path / "a.pt")
    torch.save({"time_embedding.linear_1.weight": torch.zeros(2)}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"config\.json belongs"):
        load(tmp_path / "b.pt")
