"""accelerate and restore: diffusers' models compute the same on fastdiff's ops, and go back."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastdiff
from fastdiff.ops import _library
from fastdiff.ops.self_attention import faster_than_sdpa
from tests.restated.weights import shaken


def unet(**config: Any) -> Any:
    """DDPM's, with attention among pixels."""
    return made(
        diffusers.UNet2DModel, sample_size=8, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), norm_num_groups=4,
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), **{"attention_head_dim": 8} | config,
    )  # fmt: skip


def conditioned(**config: Any) -> Any:
    """Stable Diffusion's."""
    return made(
        diffusers.UNet2DConditionModel, sample_size=8, in_channels=4, out_channels=4,
        block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=12,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=2,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=4, **config,
    )  # fmt: skip


def autoencoder() -> Any:
    return made(
        diffusers.AutoencoderKL, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4, sample_size=16,
    )  # fmt: skip


def made(kind: Any, **config: Any) -> Any:
    torch.manual_seed(0)
    model: Any = shaken(kind(**config))
    return model.eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


MODELS: dict[str, tuple[Any, dict[str, Any], tuple[Tensor, ...]]] = {
    "ddpm": (unet, {}, (noise(3, 3, 8, 8), torch.tensor([7, 500, 999]))),
    "one head": (unet, {"attention_head_dim": None}, (noise(3, 3, 8, 8), torch.tensor(5))),
    "scale and shift": (
        unet,
        {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet",
         "upsample_type": "resnet"},
        (noise(2, 3, 8, 8), torch.tensor(5)),
    ),
    "scaled middle": (unet, {"mid_block_scale_factor": 2.0}, (noise(2, 3, 8, 8), torch.tensor(5))),
    "stable diffusion": (
        conditioned, {}, (noise(3, 4, 8, 8), torch.tensor([7, 500, 999]), noise(3, 5, 12)),
    ),
    "autoencoder": (autoencoder, {}, (noise(2, 3, 16, 16),)),
}  # fmt: skip


def kinds(model: nn.Module) -> Counter[str]:
    return Counter(type(module).__name__ for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_output_and_back(name: str, dtype: torch.dtype) -> None:
    build, config, inputs = MODELS[name]
    model = build(**config).to(dtype)
    given = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    before, weights = kinds(model), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(*given)
        assert fastdiff.accelerate(model) is model
        found = model(*given)
    assert type(found) is type(expected)
    assert found.sample.dtype == dtype and expected.sample.std() > 0.1
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found.sample, expected.sample, rtol=tolerance, atol=tolerance)
    after = kinds(model)
    for kind in ("ResnetBlock2D", "GroupNorm"):
        assert before[kind] and not after[kind]
    assert after["FusedResnetBlock2D"] == before["ResnetBlock2D"]
    assert after["FusedGroupNormSiLU"] == after["Passed"] == (2 if name == "autoencoder" else 1)
    state = model.state_dict()
    assert list(state) == list(weights)
    assert all(torch.equal(state[key], weights[key]) for key in weights)
    assert fastdiff.restore(model) is model
    assert kinds(model) == before
    with torch.no_grad():
        assert torch.equal(model(*given).sample, expected.sample)


@pytest.mark.parametrize(("build", "attends"), [(unet, True), (conditioned, False)])
def test_it_runs_on_the_ops(build: Any, attends: bool) -> None:
    if not _library.native_kernel("group_norm_silu", "CPU"):
        pytest.fail("the native library is not built")
    model = build()
    given = next(inputs for b, _, inputs in MODELS.values() if b is build)
    blocks = kinds(model)
    fastdiff.accelerate(model)
    ops = ("group_norm_silu", "conv1x1", "self_attention")
    before = {op: _library.native_calls(op, "CPU") for op in ops}
    composed = _library.composite_calls("attention_block", "CPU")
    with torch.no_grad():
        model(*given)
    assert _library.composite_calls("attention_block", "CPU") == composed
    norms, products, mixed = (_library.native_calls(op, "CPU") - n for op, n in before.items())
    attentions = blocks["Attention"] if attends else 0
    # Two in a residual block, one in an attention block, and the last.
    assert norms == 2 * blocks["ResnetBlock2D"] + blocks["Transformer2DModel"] + 1 + attentions
    # Of q, k and v together and the projection, beside the residual blocks' shortcuts.
    assert products - blocks["ResnetBlock2D"] < 2 * attentions <= products
    assert mixed == (attentions if faster_than_sdpa(torch.empty(0), of_head=0) else 0)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("build", [unet, conditioned])
def test_forward_mode_derivatives(build: Any, recorded: bool) -> None:
    x, *rest = next(inputs for b, _, inputs in MODELS.values() if b is build)
    model = build()

    precise, h = copy.deepcopy(model).double(), 1e-4 * x.cos().double()
    given = [r.double() if r.is_floating_point() else r for r in rest]
    with torch.no_grad():
        ahead, behind = (precise(x.double() + s * h, *given).sample for s in (1, -1))
    expected = ((ahead - behind) / 2e-4).float()
    fastdiff.accelerate(model)
    with torch.set_grad_enabled(recorded), sdpa_kernel(SDPBackend.MATH):
        _, tangent = torch.func.jvp(lambda x: model(x, *rest).sample, (x,), (x.cos(),))
    torch.testing.assert_close(tangent, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("build", [unet, conditioned])
def test_training_goes_on(build: Any) -> None:
    given = next(inputs for b, _, inputs in MODELS.values() if b is build)
    gradients = []
    for change in (lambda model: model, fastdiff.accelerate):
        model = change(build().double()).train()
        inputs = [x.double() if x.is_floating_point() else x for x in given]
        model(*inputs).sample.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("build", [unet, conditioned])
def test_under_autocast(build: Any) -> None:
    given = next(inputs for b, _, inputs in MODELS.values() if b is build)
    model = build()
    with torch.no_grad():
        exact = model(*given).sample
        with torch.autocast("cpu", torch.bfloat16):
            theirs, ours = (
                change(model)(*given).sample for change in (nn.Module.eval, fastdiff.accelerate)
            )
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert (ours - exact).abs().max() < 2 * (theirs - exact).abs().max()


def test_the_compiler_sees_one_graph() -> None:
    model = fastdiff.accelerate(unet())
    x, t = MODELS["ddpm"][2]
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, t).sample, model(x, t).sample, rtol=2e-5, atol=2e-5)


def test_again_changes_nothing_and_copies_are_as_fast() -> None:
    model = fastdiff.accelerate(unet())
    once = kinds(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kinds(fastdiff.accelerate(model)) == once
    x, t = MODELS["ddpm"][2]
    with torch.no_grad():
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert kinds(again) == once
            assert torch.equal(again(x, t).sample, model(x, t).sample)


def test_what_is_saved_opens_without_fastdiff(tmp_path: Path) -> None:
    model = fastdiff.accelerate(unet())
    model.save_pretrained(tmp_path)
    again = diffusers.UNet2DModel.from_pretrained(tmp_path, local_files_only=True)
    assert "fastdiff" not in (tmp_path / "config.json").read_text()
    x, t = MODELS["ddpm"][2]
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x, t).sample, model(x, t).sample)


def test_what_is_changed_later_is_heeded() -> None:
    """Another processor, an adapter in a layer's place, other states to attend to."""
    model, original = (change(unet()) for change in (fastdiff.accelerate, lambda model: model))
    x, t = MODELS["ddpm"][2]
    for changed in (model, original):
        attention = changed.mid_block.attentions[0]
        attention.to_q = nn.Sequential(attention.to_q, nn.Tanh())
        changed.down_blocks[1].attentions[0].set_processor(AttnProcessor())
    states = noise(3, 7, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x, t).sample, original(x, t).sample, rtol=2e-5, atol=2e-5)
        found, expected = (
            m.up_blocks[0].attentions[0](noise(3, 32, 4, 4), encoder_hidden_states=states)
            for m in (model, original)
        )
    torch.testing.assert_close(found, expected)


def with_processor(model: Any, processor: Any) -> Any:
    for module in model.modules():
        if isinstance(module, Attention):
            module.set_processor(processor)
    return model


def spatial() -> Any:
    return made(
        diffusers.VQModel, block_out_channels=(32,), norm_type="spatial",
        num_vq_embeddings=8,
    )  # fmt: skip


UNKNOWN: dict[str, tuple[Any, str]] = {
    "ResnetBlock2D with GELU": (lambda: conditioned(act_fn="gelu"), "stable diffusion"),
    "Attention by AttnProcessor": (lambda: with_processor(unet(), AttnProcessor()), "ddpm"),
    "ResnetBlockCondNorm2D, SpatialNorm": (spatial, "autoencoder"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_kept_and_said_once(name: str) -> None:
    build, takes = UNKNOWN[name]
    model = build().double()
    given = [x.double() if x.is_floating_point() else x for x in MODELS[takes][2]]
    with torch.no_grad():
        expected = model(*given).sample
        with pytest.warns(UserWarning, match=f"them as they are: {name}.$") as said:
            fastdiff.accelerate(model)
        assert len(said) == 1
        assert kinds(model)["FusedGroupNorm"]
        torch.testing.assert_close(model(*given).sample, expected, rtol=1e-10, atol=1e-10)


def test_a_forward_of_its_own_is_left_alone() -> None:
    """As offloading hooks put it: they call the forward that they found."""
    model = unet()
    x, t = MODELS["ddpm"][2]
    with torch.no_grad():
        expected = model(x, t).sample
        model.conv_act.forward = model.conv_act.forward
        with pytest.warns(UserWarning, match="SiLU with a forward of its own"):
            fastdiff.accelerate(model)
        assert type(model.conv_act) is nn.SiLU
        torch.testing.assert_close(model(x, t).sample, expected, rtol=2e-5, atol=2e-5)


def pipeline(kind: str, **config: Any) -> Any:
    built = getattr(diffusers, f"{kind}Pipeline")(
        unet(), getattr(diffusers, f"{kind}Scheduler")(**config)
    )
    built.set_progress_bar_config(disable=True)
    return built


@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_pipelines(kind: str, tmp_path: Path) -> None:
    pipe = pipeline(kind)
    run = {"batch_size": 2, "num_inference_steps": 5, "output_type": "np"}
    expected = pipe(generator=torch.manual_seed(3), **run)
    scheduler = pipe.scheduler
    assert fastdiff.accelerate(pipe) is pipe
    assert pipe.scheduler is scheduler and type(scheduler) is getattr(fastdiff, f"{kind}Scheduler")
    found = pipe(generator=torch.manual_seed(3), **run)
    assert type(found) is type(expected) and expected.images.std() > 0.1
    assert abs(found.images - expected.images).max() < 2e-3
    pipe.save_pretrained(tmp_path)
    assert "fastdiff" not in "".join(f.read_text() for f in tmp_path.rglob("*.json"))
    fastdiff.restore(pipe)
    assert type(pipe.scheduler) is getattr(diffusers, f"{kind}Scheduler")
    untouched = pipeline(kind)
    untouched(**run)
    assert vars(scheduler).keys() == vars(untouched.scheduler).keys()
    again = pipe(generator=torch.manual_seed(3), **run)
    assert (again.images == expected.images).all()


def test_a_scheduler_of_ones_own_choice_stays() -> None:
    pipe = pipeline("DDIM")
    pipe.scheduler = fastdiff.DDIMScheduler.from_config(pipe.scheduler.config, seed=4)
    fastdiff.restore(fastdiff.accelerate(pipe))
    assert type(pipe.scheduler) is fastdiff.DDIMScheduler and pipe.scheduler.seed == 4
    pipe.scheduler = diffusers.EulerDiscreteScheduler()
    with pytest.warns(UserWarning, match="parts of DDIMPipeline.*: EulerDiscreteScheduler"):
        fastdiff.accelerate(pipe)
    assert type(pipe.scheduler) is diffusers.EulerDiscreteScheduler


def test_all_models_of_a_pipeline() -> None:
    class Latent(diffusers.DiffusionPipeline):
        def __init__(self, unet: Any, vae: Any, scheduler: Any) -> None:
            super().__init__()
            self.register_modules(unet=unet, vae=vae, scheduler=scheduler)

    pipe = Latent(conditioned(), autoencoder(), diffusers.DPMSolverMultistepScheduler())
    fastdiff.accelerate(pipe)
    assert all(kinds(model)["FusedResnetBlock2D"] for model in (pipe.unet, pipe.vae))
    assert type(pipe.scheduler) is fastdiff.DPMSolverMultistepScheduler


def test_anything_else_is_refused() -> None:
    for function in (fastdiff.accelerate, fastdiff.restore):
        with pytest.raises(TypeError, match="got a Linear; give a diffusers pipeline"):
            function(nn.Linear(2, 2))
