"""diffusers' folder format: what they write we read, what we write they read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fastdiff
from fastdiff.checkpoints import Pretrained, load, save
from fastdiff.diffusion import DynamicThresholding
from fastdiff.models import UNet
from fastdiff.schedules import NoiseSchedule

CONFIG: dict[str, Any] = {
    "sample_size": (12, 8),
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 24),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "num_class_embeds": 3,
}
WEIGHTS = "diffusion_pytorch_model"
X, T, LABELS = torch.randn(2, 1, 12, 8), torch.tensor([4, 900]), torch.tensor([0, 2])


def theirs() -> diffusers.UNet2DModel:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**CONFIG).eval()


def ours() -> UNet:
    unet = UNet(**CONFIG)
    unet.load_state_dict(theirs().state_dict())
    return unet.eval()


def run(unet: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        out = unet(X, T, LABELS)
    return out if isinstance(out, Tensor) else out.sample


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() < 1e-5 * expected.abs().max())


@pytest.mark.parametrize("safe", [True, False])
def test_we_read_the_unet_that_diffusers_writes(tmp_path: Path, safe: bool) -> None:
    theirs().save_pretrained(tmp_path, safe_serialization=safe)
    unet = UNet.from_pretrained(tmp_path)
    assert not unet.training
    assert close(run(unet), run(theirs()))


@pytest.mark.parametrize("safe", [True, False])
def test_we_read_variants_and_shards(tmp_path: Path, safe: bool) -> None:
    half = theirs().half()
    half.save_pretrained(tmp_path, variant="fp16", max_shard_size="100KB", safe_serialization=safe)
    assert len(list(tmp_path.glob(f"{WEIGHTS}*-of-*"))) > 1
    unet = UNet.from_pretrained(tmp_path)
    assert unet.dtype == torch.float32
    for name, tensor in half.state_dict().items():
        assert torch.equal(unet.state_dict()[name], tensor.float()), name
    assert UNet.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_one_fp16_variant_is_enough(tmp_path: Path) -> None:
    theirs().half().save_pretrained(tmp_path, variant="fp16")
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [f"{WEIGHTS}.fp16.safetensors"]
    assert close(run(UNet.from_pretrained(tmp_path)), run(theirs().half().float()))


def test_legacy_attention_names_are_mapped(tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path)
    path = tmp_path / f"{WEIGHTS}.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, tensor in load_file(path).items():
        for new, legacy in old.items():
            name = name.replace(f".{new}.", f".{legacy}.")
        weights[name] = tensor
    assert "mid_block.attentions.0.proj_attn.weight" in weights
    save_file(weights, path)
    assert close(run(UNet.from_pretrained(tmp_path)), run(theirs()))


def test_diffusers_reads_the_unet_we_write(tmp_path: Path) -> None:
    unet = ours()
    unet.save_pretrained(tmp_path)
    model = diffusers.UNet2DModel.from_pretrained(tmp_path, local_files_only=True)
    assert close(run(model), run(unet))
    for name, tensor in unet.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_pipeline_goes_there_and_back(tmp_path: Path) -> None:
    written = Pretrained(
        ours(), NoiseSchedule.cosine(50), "v", "fixed_large", clip=0.9, class_names=("a", "b", "c")
    )
    save(tmp_path / "new" / "folder", written)
    pipeline = diffusers.DDPMPipeline.from_pretrained(
        tmp_path / "new/folder", local_files_only=True
    )
    assert close(run(pipeline.unet), run(written.unet))
    settings = pipeline.scheduler.config
    assert settings.prediction_type == "v_prediction"
    assert settings.variance_type == "fixed_large"
    assert settings.clip_sample and settings.clip_sample_range == 0.9
    np.testing.assert_allclose(pipeline.scheduler.betas, written.schedule.betas, rtol=2e-5)

    read = load(tmp_path / "new" / "folder")
    assert torch.equal(run(read.unet), run(written.unet))
    assert read.schedule == written.schedule
    assert (read.prediction_type, read.variance_type, read.clip) == ("v", "fixed_large", 0.9)
    assert read.class_names == ("a", "b", "c")
    assert read.num_classes == 3
    assert read.sample_shape == (1, 12, 8)


def test_we_read_the_pipeline_that_diffusers_writes(tmp_path: Path) -> None:
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=40, beta_schedule="scaled_linear", beta_start=0.001, beta_end=0.03,
        prediction_type="sample", variance_type="fixed_large_log", clip_sample=False,
        rescale_betas_zero_snr=True,
    )  # fmt: skip
    diffusers.DDPMPipeline(theirs(), scheduler).save_pretrained(tmp_path)
    read = load(tmp_path)
    assert close(run(read.unet), run(theirs()))
    np.testing.assert_allclose(
        read.schedule.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-3, atol=1e-6
    )
    assert (read.prediction_type, read.variance_type, read.clip) == (
        "x_start",
        "fixed_large",
        False,
    )
    assert read.class_names is None
    assert close(run(UNet.from_pretrained(tmp_path)), run(theirs()))


def test_every_clipping_goes_there_and_back(tmp_path: Path) -> None:
    for clip in (True, False, 0.5, DynamicThresholding(0.9, max_value=3.0)):
        save(tmp_path, Pretrained(ours(), NoiseSchedule.linear(10), clip=clip))
        assert load(tmp_path).clip == clip
    read = diffusers.DDPMScheduler.from_pretrained(tmp_path / "scheduler", local_files_only=True)
    assert read.config.thresholding
    assert read.config.dynamic_thresholding_ratio == 0.9
    assert read.config.sample_max_value == 3.0


def test_the_oldest_pipelines_lie_flat(tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path, safe_serialization=False)
    diffusers.DDPMScheduler(num_train_timesteps=30).save_pretrained(tmp_path)
    read = load(tmp_path)
    assert close(run(read.unet), run(theirs()))
    assert read.schedule == NoiseSchedule.linear(30)


def test_learned_variance_goes_there_and_back(tmp_path: Path) -> None:
    unet = UNet.adm(8, channels=16, multipliers=(1,), blocks=1, attention_resolutions=(),
                    head_channels=8, groups=8)  # fmt: skip
    save(tmp_path, Pretrained(unet, NoiseSchedule.linear(10), variance_type="learned_range"))
    assert load(tmp_path).variance_type == "learned_range"


def test_weights_can_be_written_in_half(tmp_path: Path) -> None:
    unet = ours()
    save(tmp_path, Pretrained(unet, NoiseSchedule.linear(10)), dtype=torch.float16)
    stored = load_file(tmp_path / "unet" / f"{WEIGHTS}.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert unet.dtype == torch.float32
    expected = unet.conv_in.weight.detach().half().float()
    assert torch.equal(load(tmp_path).unet.conv_in.weight, expected)


def test_a_channels_last_unet_is_written_as_it_is(tmp_path: Path) -> None:
    unet = ours().to(memory_format=torch.channels_last)
    unet.save_pretrained(tmp_path)
    assert torch.equal(UNet.from_pretrained(tmp_path).conv_in.weight, unet.conv_in.weight)


def test_a_loaded_unet_trains(tmp_path: Path) -> None:
    ours().save_pretrained(tmp_path)
    unet = UNet.from_pretrained(tmp_path)
    assert all(parameter.requires_grad for parameter in unet.parameters())
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.zero_()
    assert UNet.from_pretrained(tmp_path).conv_in.weight.any()


@pytest.mark.parametrize("fourier", [False, True])
def test_our_own_keys_go_there_and_back(tmp_path: Path, fourier: bool) -> None:
    config = CONFIG | {"residual_scale": 0.5, "num_attention_heads": 4}
    if fourier:
        config |= {"time_embedding_type": "fourier"}
    unet = UNet(**config)
    unet.save_pretrained(tmp_path)
    read = UNet.from_pretrained(tmp_path)
    assert read.config == unet.config
    assert {n: p.requires_grad for n, p in read.named_parameters()} == {
        n: p.requires_grad for n, p in unet.named_parameters()
    }
    plain = json.loads((tmp_path / "config.json").read_text())
    assert plain["residual_scale"] == 0.5
    UNet(**CONFIG).save_pretrained(tmp_path)
    assert "residual_scale" not in json.loads((tmp_path / "config.json").read_text())


SCHEDULES = {
    "linear": NoiseSchedule.linear(60),
    "other ends": NoiseSchedule.linear(60, 0.003, 0.11),
    "scaled_linear": NoiseSchedule.scaled_linear(60),
    "squaredcos_cap_v2": NoiseSchedule.cosine(60),
    "sigmoid": NoiseSchedule.sigmoid(60),
    "laplace": NoiseSchedule.laplace(60),
    "given": NoiseSchedule.from_betas(np.linspace(0.1, 0.2, 60) ** 3),
    "zero snr": NoiseSchedule.linear(60).rescale_zero_terminal_snr(),
    "one step": NoiseSchedule.from_betas([0.25]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_goes_there_and_back(tmp_path: Path, name: str) -> None:
    schedule = SCHEDULES[name]
    save(tmp_path, Pretrained(ours(), schedule))
    np.testing.assert_allclose(load(tmp_path).schedule.betas, schedule.betas, rtol=1e-10)
    config = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    if name in ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace"):
        assert config["beta_schedule"] == name
    read = diffusers.DDPMScheduler.from_pretrained(tmp_path / "scheduler", local_files_only=True)
    # diffusers keeps its tables in float32.
    np.testing.assert_allclose(read.betas, schedule.betas, rtol=1e-4)


@pytest.mark.parametrize(
    "kind", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"]
)
def test_every_beta_schedule_is_diffusers(tmp_path: Path, kind: str) -> None:
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100, beta_schedule=kind)
    diffusers.DDPMPipeline(theirs(), scheduler).save_pretrained(tmp_path)
    np.testing.assert_allclose(load(tmp_path).schedule.betas, scheduler.betas, rtol=1e-4)


def test_a_label_for_no_class_is_kept_and_guides(tmp_path: Path) -> None:
    kept = Pretrained(
        ours(), NoiseSchedule.linear(20), class_names=("cat", "dog"), no_class_label=2
    )
    save(tmp_path, kept)
    loaded = load(tmp_path)
    assert (loaded.num_classes, loaded.no_class_label) == (2, 2)
    assert loaded.class_names == ("cat", "dog")
    diffusers.DDPMPipeline.from_pretrained(tmp_path)
    common: dict[str, Any] = {"schedule": loaded.schedule, "sampler": "ddim", "steps": 20}
    expected = fastdiff.sample(
        theirs_as_ours(), (3, *loaded.sample_shape), class_labels=torch.tensor([0, 1, 0]),
        uncond_labels=torch.tensor([2, 2, 2]), guidance_scale=3.0, **common,
    )  # fmt: skip
    got = loaded.sample(3, guidance_scale=3.0, steps=20)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def theirs_as_ours() -> Any:
    unet = theirs()
    return lambda x, t, class_labels: unet(x, t, class_labels).sample


@pytest.mark.parametrize("label", [0, 3, "2"])
def test_a_label_for_no_class_that_is_not_the_last_is_refused(tmp_path: Path, label: Any) -> None:
    save(tmp_path, Pretrained(ours(), NoiseSchedule.linear(20), no_class_label=2))
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"_no_class_label": label}))
    with pytest.raises(ValueError, match="_no_class_label"):
        load(tmp_path)


def test_guidance_without_a_label_for_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="no class"):
        Pretrained(ours(), NoiseSchedule.linear(20)).sample(2, guidance_scale=2.0)
