"""UNetModel, SuperResModel and EncoderUNetModel by the original's flags and state dicts."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastdiff.checkpoints.guided_diffusion import load_unet
from fastdiff.compat.guided_diffusion import script_util
from fastdiff.compat.guided_diffusion.unet import EncoderUNetModel, SuperResModel, UNetModel
from tests.restated.guided_diffusion import script_util as restated
from tests.restated.guided_diffusion.unet import AttentionBlock, ResBlock, angles
from tests.restated.guided_diffusion.unet import UNetModel as Original
from tests.restated.weights import shaken

SMALL: dict[str, Any] = script_util.model_and_diffusion_defaults() | {
    "image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2",
    "attention_resolutions": "8", "diffusion_steps": 20,
}  # fmt: skip
X, T, Y = torch.randn(2, 3, 16, 16), torch.tensor([0, 17]), torch.tensor([3, 999])


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"class_cond": True, "learn_sigma": True, "resblock_updown": True},
        {"num_head_channels": 16, "use_new_attention_order": True},
        {"use_scale_shift_norm": False, "num_heads": 1},
    ],
)
def test_flags_and_weights_make_the_original(flags: dict[str, Any]) -> None:
    original, _ = restated.create_model_and_diffusion(**SMALL | flags)
    model, diffusion = script_util.create_model_and_diffusion(**SMALL | flags)
    weights = shaken(original).state_dict()
    model.load_state_dict(weights)
    assert set(model.state_dict()) == set(weights)
    assert all(torch.equal(model.state_dict()[name], t) for name, t in weights.items())
    labels = [Y] if flags.get("class_cond") else []
    with torch.no_grad():
        found, expected = model.eval()(X, T, *labels), original(X, T, *labels)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert diffusion.num_timesteps == 20


def test_a_state_dict_that_does_not_fit_is_told() -> None:
    model, _ = script_util.create_model_and_diffusion(**SMALL)
    weights = model.state_dict()
    with pytest.raises(RuntimeError, match=r"missing out\.2\.bias"):
        model.load_state_dict({k: v for k, v in weights.items() if k != "out.2.bias"})
    with pytest.raises(RuntimeError, match=r"of another shape out\.2\.bias"):
        model.load_state_dict(weights | {"out.2.bias": torch.zeros(5)})
    with pytest.raises(RuntimeError, match="extra"):
        model.load_state_dict(weights | {"extra": torch.zeros(5)})
    around = torch.nn.Sequential(model)
    again = torch.nn.Sequential(script_util.create_model_and_diffusion(**SMALL)[0])
    again.load_state_dict(around.state_dict())
    assert "0.out.2.bias" in around.state_dict()


def test_half_precision_and_checkpointing() -> None:
    model, _ = script_util.create_model_and_diffusion(**SMALL | {"use_checkpoint": True})
    model = shaken(model)
    plain = model(X, T)
    gradient = torch.autograd.grad(plain.square().sum(), list(model.parameters()))
    model.use_checkpoint = False
    again = torch.autograd.grad(model(X, T).square().sum(), list(model.parameters()))
    for a, b in zip(gradient, again, strict=True):
        torch.testing.assert_close(a, b)
    model.convert_to_fp16()
    with torch.no_grad():
        half = model(X, T)
    assert half.dtype == torch.float32 and model.dtype == torch.float16
    assert (half - plain).abs().max() < 0.05 * plain.abs().max()
    model.convert_to_fp32()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_super_resolution_sees_the_small_image_enlarged() -> None:
    flags = script_util.sr_model_and_diffusion_defaults() | {
        "large_size": 64, "small_size": 16, "num_channels": 32, "num_res_blocks": 1,
    }  # fmt: skip
    model, _ = script_util.sr_create_model_and_diffusion(**flags)
    model = shaken(model)
    assert isinstance(model, SuperResModel)
    small, x = torch.randn(1, 3, 16, 16), torch.randn(1, 3, 64, 64)
    enlarged = F.interpolate(small, size=64, mode="bilinear", align_corners=False)
    unet = load_unet(model.state_dict(), num_heads=4)
    with torch.no_grad():
        found = model(x, T[1:], low_res=small)
        torch.testing.assert_close(found, unet(torch.cat([x, enlarged], 1), T[1:]))
    with pytest.raises(ValueError, match="needs low_res"):
        model(x, T[1:])


class Encoder(torch.nn.Module):
    """The classifier restated: the way down of UNetModel, and its four heads."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        base = Original(
            num_head_channels=16, attention_resolutions=(2,), use_scale_shift_norm=True,
            resblock_updown=True,
        )  # fmt: skip
        self.time_embed, self.input_blocks = base.time_embed, base.input_blocks
        self.middle_block, self.pool = base.middle_block, pool
        norm = torch.nn.GroupNorm(32, 64)
        features = 32 + 32 + 32 + 64 + 64  # the first map, level, halved, level, middle
        nn = torch.nn
        self.out = {
            "adaptive": lambda: nn.Sequential(
                norm, nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(64, 7, 1), nn.Flatten()
            ),
            "attention": lambda: nn.Sequential(norm, nn.SiLU(), Pool()),
            "spatial": lambda: nn.Sequential(
                nn.Linear(features, 2048), nn.ReLU(), nn.Linear(2048, 7)
            ),
            "spatial_v2": lambda: nn.Sequential(
                nn.Linear(features, 2048), nn.GroupNorm(32, 2048), nn.SiLU(), nn.Linear(2048, 7)
            ),
        }[pool]()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        emb = self.time_embed(angles(t, 32))
        maps = [self.input_blocks[0][0](x)]
        for block in self.input_blocks[1:]:
            maps.append(block(maps[-1], emb))
        maps.append(self.middle_block(maps[-1], emb))
        if self.pool.startswith("spatial"):
            return self.out(torch.cat([m.mean((2, 3)) for m in maps], 1))
        return self.out(maps[-1])


class Pool(torch.nn.Module):
    """Attention of the mean and 64 positions among themselves; the mean's result counts."""

    def __init__(self) -> None:
        super().__init__()
        self.positional_embedding = torch.nn.Parameter(torch.randn(64, 65))
        self.qkv_proj, self.c_proj = torch.nn.Conv1d(64, 192, 1), torch.nn.Conv1d(64, 7, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2)
        x = torch.cat([x.mean(-1, keepdim=True), x], -1) + self.positional_embedding
        q, k, v = self.qkv_proj(x).reshape(len(x), 3, 4, 16, 65).unbind(1)
        weights = (q.transpose(2, 3) @ k / 4).softmax(-1)
        return self.c_proj((v @ weights.transpose(2, 3)).reshape(len(x), 64, 65))[:, :, 0]


@pytest.mark.parametrize("pool", ["adaptive", "attention", "spatial", "spatial_v2"])
def test_the_classifier_and_its_gradient(pool: str) -> None:
    assert ResBlock and AttentionBlock
    original = shaken(Encoder(pool))
    model = EncoderUNetModel(
        image_size=16, in_channels=3, model_channels=32, out_channels=7, num_res_blocks=1,
        attention_resolutions=(2,), channel_mult=(1, 2), num_head_channels=16,
        use_scale_shift_norm=True, resblock_updown=True, pool=pool,
    ).eval()  # fmt: skip
    model.load_state_dict(original.state_dict())
    assert set(model.state_dict()) == set(original.state_dict())
    results = []
    for network in (model, original):
        x = X.clone().requires_grad_()
        logits = network(x, T)
        chosen = logits.log_softmax(-1)[:, 3].sum()
        results.append((logits, torch.autograd.grad(chosen, x)[0]))
    for found, expected in zip(*results, strict=True):
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_classifier_of_flags_guides() -> None:
    flags = script_util.classifier_and_diffusion_defaults() | {
        "classifier_width": 64, "classifier_depth": 1, "diffusion_steps": 2,
        "noise_schedule": "cosine",
    }  # fmt: skip
    classifier, diffusion = script_util.create_classifier_and_diffusion(**flags)
    assert isinstance(classifier, EncoderUNetModel)

    def towards(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            chosen = classifier(x, t).log_softmax(-1)[range(len(y)), y]
            return torch.autograd.grad(chosen.sum(), x)[0]

    out = diffusion.p_sample_loop(
        lambda x, t, y: 0.1 * x, (1, 3, 64, 64), cond_fn=towards, device="cpu",
        model_kwargs={"y": torch.tensor([5])},
    )  # fmt: skip
    assert out.isfinite().all()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "3D": ({"dims": 3}, "have 2 dimensions, not 3"),
    "pooling": ({"conv_resample": False}, "conv_resample must be True"),
    "heads": ({"num_heads": 2, "num_heads_upsample": 4}, "as many heads on the way up as down"),
    "pool": ({"pool": "max"}, "unknown pool 'max'"),
    "attention pool": ({"pool": "attention"}, "needs attention_head_dim"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_networks_are_not_is_refused(case: str) -> None:
    options, message = REFUSED[case]
    kind = EncoderUNetModel if "pool" in options else UNetModel
    with pytest.raises(ValueError, match=message):
        kind(16, 3, 32, 3, 1, (2,), channel_mult=(1, 2), **options)
    with pytest.raises(ValueError, match="unsupported image size: 48; there are multipliers for"):
        script_util.create_model(48, 32, 1)


def test_512_is_half_as_wide_as_its_time_embedding() -> None:
    with torch.device("meta"):
        model = script_util.create_model(512, 64, 1, num_head_channels=32)
    shapes = {name: list(t.shape) for name, t in model.state_dict().items()}
    assert shapes["time_embed.0.weight"] == [256, 64]
    assert shapes["input_blocks.0.0.weight"] == [32, 3, 3, 3]


def test_defaults_are_the_originals() -> None:
    assert script_util.model_and_diffusion_defaults() == restated.model_and_diffusion_defaults()
    for defaults, create in (
        (script_util.model_and_diffusion_defaults, script_util.create_model_and_diffusion),
        (script_util.sr_model_and_diffusion_defaults, script_util.sr_create_model_and_diffusion),
        (script_util.classifier_and_diffusion_defaults,
         script_util.create_classifier_and_diffusion),
    ):  # fmt: skip
        assert set(defaults()) == set(inspect.signature(create).parameters)


def test_flags_from_a_command_line() -> None:
    parser = argparse.ArgumentParser()
    script_util.add_dict_to_argparser(parser, {"a": 1, "b": False, "c": None, "d": 0.5})
    args = parser.parse_args(["--a", "3", "--b", "yes", "--c", "x"])
    assert script_util.args_to_dict(args, "abcd") == {"a": 3, "b": True, "c": "x", "d": 0.5}
    with pytest.raises(SystemExit):
        parser.parse_args(["--b", "perhaps"])


def test_processes_from_flags() -> None:
    make = script_util.create_gaussian_diffusion
    kinds = [
        (d.model_mean_type.name, d.model_var_type.name, d.loss_type.name)
        for d in (
            make(steps=50),
            make(steps=50, learn_sigma=True, rescale_learned_sigmas=True),
            make(steps=50, sigma_small=True, use_kl=True, predict_xstart=True),
        )
    ]
    assert kinds == [
        ("EPSILON", "FIXED_LARGE", "MSE"),
        ("EPSILON", "LEARNED_RANGE", "RESCALED_MSE"),
        ("START_X", "FIXED_SMALL", "RESCALED_KL"),
    ]
    assert make(steps=100, timestep_respacing="ddim20").timestep_map == list(range(0, 100, 5))
