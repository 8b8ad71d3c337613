"""guided-diffusion's and improved-diffusion's state dicts, against UNetModel restated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.checkpoints import CheckpointError, Pretrained, load, save
from fastdiff.checkpoints.guided_diffusion import (
    flags_of,
    load_unet,
    recognised,
    schedule_of,
    state_dict_of,
)
from fastdiff.models import UNet
from fastdiff.schedules import NoiseSchedule
from tests.restated.guided_diffusion.unet import UNetModel
from tests.restated.weights import shaken

ADM = {"use_scale_shift_norm": True, "resblock_updown": True}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "improved-diffusion": ({"num_heads": 4, "use_scale_shift_norm": True}, {"num_heads": 4}),
    "plain": ({"num_res_blocks": 2}, {"num_heads": 1}),
    "adm": (
        {**ADM, "num_head_channels": 16, "num_classes": 5, "out_channels": 6,
         "num_res_blocks": 2, "channel_mult": (1, 1, 2), "attention_resolutions": (2, 4)},
        {"num_head_channels": 16},
    ),
    "new order": (
        {**ADM, "num_heads": 4, "use_new_attention_order": True},
        {"num_heads": 4, "use_new_attention_order": True},
    ),
    "attention at the top": (
        {"attention_resolutions": (1,), "num_heads": 2, "channel_mult": (1, 3)}, {"num_heads": 2},
    ),
    "half as wide as its time embedding": (
        {**ADM, "model_channels": 64, "channel_mult": (0.5, 1), "num_head_channels": 32},
        {"num_head_channels": 32},
    ),
    "one level": (
        {"channel_mult": (1,), "attention_resolutions": (1,)}, {"num_heads": 1},
    ),
}  # fmt: skip


def original(name: str) -> UNetModel:
    torch.manual_seed(0)
    return shaken(UNetModel(**MODELS[name][0]))


def outputs(model: torch.nn.Module, config: dict[str, Any]) -> Tensor:
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 37, 999])
    labels = [torch.tensor([4, 0, 2])] if config.get("num_classes") else []
    with torch.no_grad():
        return model(x, t, *labels)


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_what_the_original_does(name: str) -> None:
    config, told = MODELS[name]
    model = original(name)
    assert recognised(model.state_dict())
    unet = load_unet(model.state_dict(), **told)
    assert not unet.training
    truth = outputs(model.double(), config)
    assert (outputs(unet, config) - truth).abs().max() < 1e-5 * truth.abs().max()


def test_the_order_of_the_heads_matters() -> None:
    config, told = MODELS["new order"]
    model = original("new order")
    unet = load_unet(model.state_dict(), **told | {"use_new_attention_order": False})
    truth = outputs(model, config)
    assert (outputs(unet, config) - truth).abs().max() > 1e-3 * truth.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_keeps_every_tensor(name: str) -> None:
    config, told = MODELS[name]
    weights = original(name).state_dict()
    order = bool(config.get("use_new_attention_order"))
    back = state_dict_of(load_unet(weights, **told), use_new_attention_order=order)
    assert list(back) and set(back) == set(weights)
    for key, tensor in weights.items():
        assert torch.equal(back[key], tensor), key


@pytest.mark.parametrize("name", ["improved-diffusion", "plain", "adm", "new order"])
def test_by_way_of_diffusers_too(name: str, tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    config, told = MODELS[name]
    weights = original(name).state_dict()
    unet = load_unet(weights, **told)
    unet.save_pretrained(tmp_path)
    model = UNet2DModel.from_pretrained(tmp_path, local_files_only=True).eval()
    truth = outputs(original(name), config)
    with torch.no_grad():
        theirs = outputs(lambda *inputs: model(*inputs).sample, config)  # type: ignore[arg-type]
    assert (theirs - truth).abs().max() < 1e-5 * truth.abs().max()
    again = UNet.from_pretrained(tmp_path)
    back = state_dict_of(again, use_new_attention_order=bool(told.get("use_new_attention_order")))
    assert all(torch.equal(back[key], tensor) for key, tensor in weights.items())


@pytest.mark.parametrize("name", MODELS)
def test_the_flags_build_the_same_model(name: str) -> None:
    config, told = MODELS[name]
    unet = load_unet(original(name).state_dict(), image_size=16, **told)
    flags = flags_of(unet, use_new_attention_order=bool(config.get("use_new_attention_order")))
    rebuilt = UNetModel(
        model_channels=flags["num_channels"],
        out_channels=6 if flags["learn_sigma"] else 3,
        num_res_blocks=flags["num_res_blocks"],
        attention_resolutions=[16 // int(r) for r in flags["attention_resolutions"].split(",")],
        channel_mult=[float(m) for m in flags["channel_mult"].split(",")],
        num_classes=5 if flags["class_cond"] else None,
        num_heads=flags.get("num_heads", 1),
        num_head_channels=flags.get("num_head_channels") or -1,
        use_scale_shift_norm=flags["use_scale_shift_norm"],
        resblock_updown=flags["resblock_updown"],
        use_new_attention_order=flags["use_new_attention_order"],
    )
    rebuilt.load_state_dict(original(name).state_dict())
    truth = outputs(original(name), config)
    assert torch.equal(outputs(rebuilt.eval(), config), truth)


def file_of(folder: Path, name: str = "adm", prefix: str = "", **changes: Any) -> Path:
    weights = {prefix + key: tensor for key, tensor in original(name).state_dict().items()}
    for key, value in changes.items():
        key = key.replace("__", ".")
        if value is None:
            del weights[key]
        else:
            weights[key] = value
    torch.save(weights, folder / "model.pt")
    return folder / "model.pt"


TOLD: dict[str, Any] = {"num_head_channels": 16, "schedule": NoiseSchedule.cosine(1000)}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_loads_whole(tmp_path: Path, prefix: str) -> None:
    loaded = load(file_of(tmp_path, prefix=prefix), image_size=8, **TOLD)
    assert (loaded.prediction_type, loaded.variance_type) == ("epsilon", "learned_range")
    assert loaded.schedule == NoiseSchedule.cosine(1000)
    assert loaded.num_classes == 5 and loaded.sample_shape == (3, 8, 8)
    images = loaded.sample(3, sampler="ddpm", steps=3, seed=7)
    assert images.shape == (3, 3, 8, 8) and images.isfinite().all()


def test_timesteps_are_rescaled_where_they_were(tmp_path: Path) -> None:
    path, told = file_of(tmp_path), TOLD | {"schedule": NoiseSchedule.cosine(4000)}
    rescaled = load(path, rescale_timesteps=True, **told)
    x, t, y = torch.randn(1, 3, 8, 8), torch.tensor([3001]), torch.tensor([1])
    with torch.no_grad():
        expected = original("adm")(x, t.float() / 4, y)
        found = rescaled.model(x, t, class_labels=y)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert load(path, rescale_timesteps=False, **told).timestep_scale == 1
    with pytest.raises(CheckpointError, match=r"rescaled by 0\.25"):
        save(tmp_path / "folder", rescaled)


WHOLE = {"schedule": NoiseSchedule.linear(1000), "num_head_channels": 16}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "heads not told": ({}, {"num_head_channels": None}, "give num_heads or num_head_channels"),
    "heads told twice": ({}, {"num_heads": 2}, "one of them"),
    "heads that do not divide": ({}, {"num_head_channels": 17}, "cannot be split into whole heads"),
    "no schedule": ({}, {"schedule": None}, "does not tell its noise schedule: give schedule"),
    "timesteps rescaled or not": ({}, {"schedule": NoiseSchedule.cosine(4000)},
                                  "give rescale_timesteps"),
    "a missing tensor": ({"middle_block__0__in_layers__0__bias": None}, {},
                         r"middle_block\.0\.in_layers\.0\.bias is missing, expected \[64\]"),
    "a missing first tensor": ({"out__2__weight": None}, {}, r"out\.2\.weight is missing"),
    "an unknown tensor": ({"input_blocks__1__2__proj": torch.zeros(1)}, {},
                          r"input_blocks\.1\.2\.proj is \[1\], expected nothing"),
    "a misshapen tensor": ({"label_emb__weight": torch.zeros(7, 3)}, {},
                           r"label_emb\.weight is \[7, 3\], expected \[7, 128\]"),
    "no tensor at all": ({"time_embed__0__weight": torch.zeros(())}, {},
                         r"time_embed\.0\.weight has the shape \[\]"),
    "a broken number": ({"input_blocks__x__0__weight": torch.zeros(1)}, {},
                        r"input_blocks\.x\.0\.weight is \[1\], expected nothing"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_told_or_does_not_fit_is_named(tmp_path: Path, case: str) -> None:
    changes, told, message = REFUSED[case]
    load(file_of(tmp_path), **WHOLE)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(file_of(tmp_path, **changes), **WHOLE | told)
    assert "\n" not in str(caught.value) and str(tmp_path / "model.pt") in str(caught.value)


def test_resampling_without_convolutions_is_refused(tmp_path: Path) -> None:
    path = file_of(
        tmp_path, "plain",
        input_blocks__3__0__op__weight=None, input_blocks__3__0__op__bias=None,
        output_blocks__2__2__conv__weight=None, output_blocks__2__2__conv__bias=None,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="conv_resample=False is not known"):
        load(path, schedule=NoiseSchedule.linear(1000), num_heads=1)


def test_a_classifier_is_no_unet(tmp_path: Path) -> None:
    weights = {k: v for k, v in original("plain").state_dict().items() if "output" not in k}
    with pytest.raises(CheckpointError, match="classifier"):
        load_unet(weights, num_heads=1)


@pytest.mark.parametrize("outputs", [3, 6])
def test_a_super_resolution_model_is_not_sampled_alone(tmp_path: Path, outputs: int) -> None:
    model = UNetModel(in_channels=6, out_channels=outputs)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="super-resolution"):
        load(tmp_path / "model.pt", schedule=NoiseSchedule.linear(1000), num_heads=1)
    assert load_unet(model.state_dict(), num_heads=1).config.in_channels == 6


FITS = {
    "norm_num_groups": 16, "norm_eps": 1e-6, "freq_shift": 1, "flip_sin_to_cos": False,
    "downsample_padding": 0, "residual_scale": 0.5, "mid_block_scale_factor": 2.0,
    "add_attention": False, "center_input_sample": True, "time_embedding_type": "fourier",
    "class_embed_type": "timestep", "time_embedding_dim": 64, "attn_norm_num_groups": 8,
    "mid_block_type": None,
}  # fmt: skip


@pytest.mark.parametrize("key", FITS)
def test_a_unet_that_the_original_cannot_be_is_refused(key: str) -> None:
    config: dict[str, Any] = {
        "block_out_channels": (32, 64), "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "layers_per_block": 1,
    }  # fmt: skip
    assert state_dict_of(UNet(**config))
    with pytest.raises(CheckpointError, match=f"its {key} is {FITS[key]!r}, there it is"):
        state_dict_of(UNet(**config | {key: FITS[key]}))


@pytest.mark.parametrize(
    "changes",
    [
        {"up_block_types": ("UpBlock2D", "UpBlock2D")},
        {"up_block_types": ("ResnetUpsampleBlock2D", "UpBlock2D")},
    ],
)
def test_a_lopsided_unet_is_refused(changes: dict[str, Any]) -> None:
    down = "AttnDownBlock2D" if "UpBlock2D" == changes["up_block_types"][0] else "DownBlock2D"
    unet = UNet(
        block_out_channels=(32, 64), down_block_types=("DownBlock2D", down), layers_per_block=1,
        **changes,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="its up_block_types is"):
        state_dict_of(unet)


def test_named_schedules() -> None:
    assert schedule_of("linear", 1000) == NoiseSchedule.linear(1000)
    assert schedule_of("linear", 250).betas[[0, -1]] == pytest.approx([4e-4, 0.08])
    assert schedule_of("cosine", 4000) == NoiseSchedule.cosine(4000)
    with pytest.raises(ValueError, match="'sqrt'"):
        schedule_of("sqrt", 10)


def test_a_folder_needs_no_telling(tmp_path: Path) -> None:
    unet = load_unet(original("plain").state_dict(), num_heads=1)
    save(tmp_path, Pretrained(unet, NoiseSchedule.linear(10)))
    with pytest.raises(CheckpointError, match="num_heads can be told"):
        load(tmp_path, num_heads=4)
