"""The plan against the plain UNet, and both against float64."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdiff import NoiseSchedule, sample
from fastdiff.engine import AcceleratedUNet, accelerate, blocks, convolution, planned
from fastdiff.engine.convolution import Own, Packed, Strided
from fastdiff.models import UNet
from fastdiff.models import blocks as plain
from fastdiff.ops import _library, pack_conv1x1, pack_conv3x3, use_reference
from fastdiff.ops.attention_block import composite
from tests.memory import flags_of_memory_at
from tests.models.unets import ADM, CIFAR10, SMALL, randomised, rms

CONFIGS: dict[str, dict[str, Any]] = {
    "small": SMALL,
    "adm": ADM,
    "cifar10": {k: v for k, v in CIFAR10.items() if not k.startswith("_")},
    "learned": SMALL | {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "fourier": SMALL | {"time_embedding_type": "fourier"},
    "centred": SMALL | {"center_input_sample": True, "downsample_padding": 0},
    "scaled": SMALL | {"residual_scale": 0.5**0.5, "mid_block_scale_factor": 2.0},
    "no middle": SMALL | {"mid_block_type": None},
    "class timestep": SMALL | {"class_embed_type": "timestep"},
    "grey": SMALL | {"in_channels": 1, "out_channels": 2},
}
NATIVE = _library.native_path() is not None
ATTENTIONS = (blocks.PackedAttention, blocks.FoldedAttention)


def made(name: str) -> UNet:
    torch.manual_seed(0)
    return randomised(UNet(**CONFIGS[name]))


def inputs(unet: UNet, batch: int) -> tuple[Tensor, Tensor, Tensor | None]:
    size = 32 if unet.config.sample_size == 32 else 12
    x = torch.randn(batch, unet.config.in_channels, size, size)
    t = torch.randint(1, 1000, (batch,))
    labels = torch.randint(0, 5, (batch,)) if unet.config.takes_classes else None
    return x, t, labels


def assert_as_exact(found: Tensor, plain: Tensor, truth: Tensor) -> None:
    """Law 4: at most twice the plain UNet's error."""
    assert found.dtype == plain.dtype and found.shape == plain.shape
    assert rms(found, truth) <= 2 * rms(plain, truth)
    errors = [float((y.double() - truth).abs().max()) for y in (found, plain)]
    assert errors[0] <= 2 * errors[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_every_config_by_law4(name: str, batch: int, dtype: torch.dtype) -> None:
    unet = made(name).to(dtype)
    x, t, labels = inputs(unet, batch)
    x = x.to(dtype)
    before = _library.native_calls("conv3x3", "CPU")
    fast = accelerate(unet)
    found = fast(x, t, labels)
    short = dtype == torch.bfloat16
    by_onednn = short and torch.cpu._is_amx_tile_supported() and not _library.has_matrix_unit()
    assert (_library.native_calls("conv3x3", "CPU") > before) == (NATIVE and not by_onednn)
    truth = copy.deepcopy(unet).double()(x.double(), t, labels)
    if not NATIVE:  # oneDNN's sums over channels-last images are longer
        unet, x = (a.to(memory_format=torch.channels_last) for a in (unet, x))  # type: ignore
    plain = unet(x, t, labels)
    assert_as_exact(found, plain, truth)
    for i in range(batch):  # each sample's step by itself, from what is computed ahead
        label = None if labels is None else labels[i : i + 1]
        row = fast(x[i : i + 1], torch.tensor([batch - 1 - i]), label, ahead=fast.ahead(t.flip(0)))
        assert_as_exact(row, plain[i : i + 1], truth[i : i + 1])


@torch.no_grad()
def test_one_step_for_all_samples() -> None:
    unet = made("small")
    fast, (x, _, _) = accelerate(unet), inputs(unet, 3)
    for t in (500, 501, torch.tensor(100), torch.tensor([900, 100, 7])):
        torch.testing.assert_close(fast(x, t), unet(x, t), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_scaled_timesteps() -> None:
    unet = made("fourier")
    x, t = torch.randn(2, 3, 12, 12), torch.tensor([3, 7])
    plans = [planned(unet, timestep_scale=scale) for scale in (2.5, 2.5, 1.0)]
    assert plans[0] is plans[1] is not plans[2]
    fast, wanted = plans[0], unet(x, 2.5 * t)
    torch.testing.assert_close(fast(x, t), wanted, rtol=1e-4, atol=1e-4)
    row = fast(x[1:], torch.tensor([1]), ahead=fast.ahead(t))
    torch.testing.assert_close(row, wanted[1:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_unet_is_left_alone_and_the_plan_keeps_its_weights() -> None:
    unet = made("adm")
    state = copy.deepcopy(unet.state_dict())
    fast, arguments = accelerate(unet), inputs(unet, 2)
    before = fast(*arguments)
    assert all(torch.equal(v, state[k]) for k, v in unet.state_dict().items())
    for parameter in unet.parameters():
        parameter.zero_()
    assert torch.equal(fast(*arguments), before)
    del unet
    assert torch.equal(copy.deepcopy(fast)(*arguments), before)
    assert torch.equal(pickle.loads(pickle.dumps(fast))(*arguments), before)


def test_gradients_are_refused() -> None:
    unet = made("small")
    x, t, _ = inputs(unet, 1)
    with pytest.raises(RuntimeError, match="gives no gradient"):
        accelerate(unet)(x.requires_grad_(), t)


def test_it_is_not_moved_or_converted() -> None:
    with pytest.raises(RuntimeError, match="accelerate that"):
        accelerate(made("small")).double()


@torch.no_grad()
def test_dropout_is_off() -> None:
    unet = randomised(UNet(**SMALL | {"dropout": 0.5}))
    x, t, _ = inputs(unet, 2)
    expected = unet(x, t)
    torch.testing.assert_close(accelerate(unet.train())(x, t), expected, rtol=1e-4, atol=1e-4)


def test_what_it_does_not_take() -> None:
    with pytest.raises(TypeError, match="got a Linear"):
        accelerate(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="float64"):
        accelerate(made("small").double())
    with pytest.raises(ValueError, match="on meta"):
        accelerate(made("small").to("meta"))

    class Lora(nn.Conv2d):
        pass

    unet = made("small")
    unet.conv_in = Lora(3, 16, 3, padding=1)
    with pytest.raises(TypeError, match=r"conv_in \(Lora\)"):
        accelerate(unet)


def test_bad_input_is_told_as_the_unet_tells_it() -> None:
    fast = accelerate(made("adm"))
    with pytest.raises(ValueError, match="class_labels are missing"):
        fast(torch.zeros(1, 3, 12, 12), 3)
    with pytest.raises(ValueError, match="multiples of 4"):
        fast(torch.zeros(1, 3, 11, 12), 3, torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_planned_is_kept_until_a_weight_changes(dtype: torch.dtype) -> None:
    unet = made("grey").to(dtype)  # some of its parameters are an odd number of bytes by eight
    unet.mid_block.to(memory_format=torch.channels_last)
    unet.conv_out.bias.data = torch.randn(4, dtype=dtype)[::2]
    plan = planned(unet)
    assert isinstance(plan, AcceleratedUNet) and planned(unet) is plan and planned(plan) is plan
    for parameter in (
        unet.conv_out.weight,
        unet.conv_out.bias,
        unet.mid_block.resnets[0].conv1.weight,
    ):
        parameter.data[-1] += 1  # which no version counts
        changed = planned(unet)
        assert changed is not plan and planned(unet) is changed
        plan = changed


def test_planned_leaves_alone_what_it_may_not_replace() -> None:
    unet = made("small")
    assert planned(unet.train()) is unet
    unet.eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert planned(unet) is unet
    with use_reference("group_norm_silu"):
        assert planned(unet) is unet
    handle = unet.mid_block.register_forward_hook(lambda *_: None)
    assert planned(unet) is unet
    handle.remove()
    assert planned(unet) is not unet
    compiled, function = torch.compile(unet), lambda x, t: x
    assert planned(compiled) is compiled and planned(function) is function


@pytest.mark.parametrize("name", ["small", "adm"])
def test_a_whole_run_stays_close(name: str) -> None:
    unet = made(name)
    for layer in (unet.conv_out,):  # outputs of about unit size, as noise is
        layer.weight.data.mul_(0.3)
    arguments: dict[str, Any] = {
        "schedule": NoiseSchedule.linear(1000),
        "sampler": "ddim",
        "steps": 50,
        "seed": 3,
    }
    if unet.config.takes_classes:
        arguments["class_labels"] = torch.tensor([0, 3, 4])
    shape = (3, 3, 12, 12)
    fast = sample(unet, shape, **arguments)
    plain = sample(lambda x, t, **labels: unet(x, t, **labels), shape, **arguments)
    assert not torch.equal(fast, plain)
    torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-3)


def test_which_convolutions_are_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    own, strided = (Own, Strided) if NATIVE else (Packed, nn.Sequential)

    def kinds(
        dtype: torch.dtype, avx512_bf16: bool, amx: bool = False, ours: bool = False
    ) -> tuple[type[nn.Module], ...]:
        """Of a block's convolution, of an upsampler's, of an attention's products and of a
        downsampler; `ours` if our kernels may use AMX."""
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(_library, "has_matrix_unit", lambda: ours)
        parts = [*accelerate(made("cifar10").to(dtype)).plan.parts]
        up = next(part for part in parts if getattr(part, "upsample", False))
        down = next(part for part in parts if isinstance(part, Strided | nn.Sequential))
        attention = next(part for part in parts if isinstance(part, ATTENTIONS))
        assert type(parts[0]) is type(parts[-1]) is type(parts[1].conv1)
        return type(parts[1].conv1), type(up), type(attention.proj), type(down)

    padded = nn.Sequential
    assert kinds(torch.float32, True, True, True) == (own, own, own, strided)
    assert kinds(torch.float16, True) == (own, own, own, strided)
    assert kinds(torch.bfloat16, False) == (own, own, own, strided)
    assert kinds(torch.bfloat16, True) == (Packed, own, Packed, padded)
    assert kinds(torch.bfloat16, True, True) == (Packed, Packed, Packed, padded)
    assert kinds(torch.bfloat16, True, True, True) == (own, own, own, strided)


@torch.no_grad()
def test_without_onednn_images_are_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that follow take channels-last images alone."""
    monkeypatch.setattr(convolution, "onednn_knows", lambda dtype: False)
    for kernel in (1, 3):
        conv = nn.Conv2d(6, 8, kernel, padding=kernel // 2).bfloat16()
        x = torch.randn(2, 6, 5, 4).bfloat16()
        with torch.backends.mkldnn.flags(enabled=False):
            y = Packed(conv, upsample=False)(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, conv(x))


@pytest.mark.skipif(not NATIVE, reason="without the native library attention is torch's")
@pytest.mark.parametrize(
    ("level", "dtypes"),
    [
        ("baseline", set()),
        ("v3", {torch.float32, torch.float16, torch.bfloat16}),
        ("v4", {torch.float32, torch.float16, torch.bfloat16}),
        ("v4_bf16", {torch.float32, torch.float16}),
        ("v4_amx", {torch.float32, torch.float16, torch.bfloat16}),
    ],
)
@torch.no_grad()
def test_which_attention_is_our_own(
    monkeypatch: pytest.MonkeyPatch, level: str, dtypes: set[torch.dtype]
) -> None:
    monkeypatch.setattr(_library, "cpu_level", lambda: level)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        fast = accelerate(made("cifar10").to(dtype))
        blocks_of = sum(isinstance(part, ATTENTIONS) for part in fast.plan.parts)
        before = _library.native_calls("self_attention", "CPU")
        fast(torch.randn(1, 3, 32, 32), 3)
        called = _library.native_calls("self_attention", "CPU") - before
        assert called == (blocks_of if dtype in dtypes else 0)


@torch.no_grad()
def test_single_heads_are_folded_in_float32() -> None:
    for name, dtype, kind in (
        ("cifar10", torch.float32, blocks.FoldedAttention),
        ("cifar10", torch.bfloat16, blocks.PackedAttention),
        ("cifar10", torch.float16, blocks.PackedAttention),
        ("adm", torch.float32, blocks.PackedAttention),
    ):
        parts = accelerate(made(name).to(dtype)).plan.parts
        assert {type(part) for part in parts if isinstance(part, ATTENTIONS)} == {kind}


@pytest.mark.parametrize("spread", [0.0, 3.0])
@pytest.mark.parametrize("groups", [4, None])
@pytest.mark.parametrize("own", [True, False])
@torch.no_grad()
def test_a_folded_block_by_law4(
    monkeypatch: pytest.MonkeyPatch, own: bool, groups: int | None, spread: float
) -> None:
    """Rows and columns of the weights differ by e to the `spread`, up and down."""
    if not own:
        monkeypatch.setattr(composite, "faster_than_sdpa", lambda x, of_head: False)
    torch.manual_seed(3)
    config = UNet(**SMALL | {"attention_head_dim": None}).config
    block = plain.Attention(config, 48, groups, residual_scale=2**-0.5).eval()
    for weight in block.parameters():
        scale = torch.exp(spread * torch.randn(weight.shape[0]))
        weight.copy_(
            torch.randn(weight.shape) / 7 * (scale if weight.dim() == 1 else scale[:, None])
        )
    folded = blocks.attention(block)
    assert isinstance(folded, blocks.FoldedAttention)
    x = torch.randn(2, 48, 9, 9).to(memory_format=torch.channels_last)
    exact = copy.deepcopy(block).double()
    assert_as_exact(folded(x), block(x), exact(x.double()))


@pytest.mark.skipif(not NATIVE, reason="without the native library no weight is packed")
def test_packed_weights_lie_in_huge_pages() -> None:
    """Asked for, that is: whether the system has some left is its matter."""
    fast = accelerate(made("cifar10"))
    own = [module for module in fast.plan.modules() if isinstance(module, Own)]
    for module in own:
        pack = pack_conv1x1 if module.pointwise else pack_conv3x3
        assert torch.equal(module.packed, pack(module.weight))
    if sys.platform == "linux":
        large = [module.packed for module in own if module.packed.nbytes >= 2**16]
        assert all("hg" in flags_of_memory_at(packed.data_ptr()) for packed in large)
        assert len(large) > 50
    copied = pickle.dumps(fast)
    assert len(copied) < 1.2 * sum(p.nbytes for m in own for p in (m.packed, m.weight)) + 2**25
