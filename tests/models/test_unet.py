"""The UNet against diffusers' UNet2DModel: outputs, gradients, memory formats, precisions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff.models import UNet
from fastdiff.ops import _library, use_reference
from tests.judge import assert_close_by_law4

from .unets import ADM, CIFAR10, SMALL, distance, peer, randomised, rms

CONFIGS: dict[str, dict[str, Any]] = {
    "cifar10": CIFAR10,
    "classes": SMALL | {"num_class_embeds": 10, "in_channels": 1, "out_channels": 1},
    "adm": ADM,
    "adm, no norm in the middle": ADM | {"attn_norm_num_groups": None},
    "sqrt(2) in the middle": SMALL | {"mid_block_scale_factor": math.sqrt(2)},
    "class as time": SMALL | {"class_embed_type": "timestep"},
    "learned time": SMALL | {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "fourier time": SMALL | {"time_embedding_type": "fourier"},
    "images in [0, 1]": SMALL | {"center_input_sample": True},
    "odd time channels": SMALL | {"block_out_channels": (15, 25), "norm_num_groups": 5,
                                  "attention_head_dim": 5, "time_embedding_dim": 22},
    "no attention in the middle": SMALL | {"add_attention": False},
    "no middle": SMALL | {"mid_block_type": None},
}  # fmt: skip


def inputs(unet: UNet, batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    size = unet.config.sample_size
    x = torch.randn(batch, unet.config.in_channels, size, size, generator=generator, dtype=dtype)
    t = torch.tensor([3, 977, 500, 999])[:batch]
    if unet.config.time_embedding_type == "fourier":
        t = torch.tensor([0.02, 31.0])[:batch].to(dtype)
    labels = None
    if unet.class_embedding is not None:
        labels = torch.tensor([4, 1, 0, 3])[:batch]
    return x, t, labels


@pytest.mark.parametrize("name", CONFIGS)
def test_it_equals_diffusers_in_float32(name: str) -> None:
    unet = randomised(UNet(**CONFIGS[name]))
    theirs = peer(unet)
    x, t, labels = inputs(unet)
    with torch.no_grad():
        expected = theirs(x, t, labels).sample
        assert distance(unet(x, t, labels), expected) < 1e-5
        unet.to(memory_format=torch.channels_last)
        last = unet(x.to(memory_format=torch.channels_last), t, labels)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert distance(last, expected) < 1e-5


# diffusers does not cast the features of "class as time" to the weights' float64.
@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"class as time"}))
def test_float64_judges_it_as_exact_as_diffusers(name: str) -> None:
    unet = randomised(UNet(**CONFIGS[name]))
    theirs = peer(unet)
    x, t, labels = inputs(unet, batch=1 if name == "cifar10" else 2)
    with torch.no_grad():
        ours_single, theirs_single = unet(x, t, labels), theirs(x, t, labels).sample
        # Noise levels in float64 as well: diffusers takes their logarithm in the dtype they have.
        t = t.double() if t.is_floating_point() else t
        truth = theirs.double()(x.double(), t, labels).sample
        # Both make the sines of t in float32, where the order of operations differs by an ulp.
        assert distance(unet.double()(x.double(), t, labels), truth) < 1e-7
    assert rms(ours_single, truth) <= 2 * rms(theirs_single, truth)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["cifar10", "adm"])
def test_fused_ops_are_as_exact_as_their_references(
    name: str, memory_format: torch.memory_format
) -> None:
    unet = randomised(UNet(**CONFIGS[name])).to(memory_format=memory_format)
    x, t, labels = inputs(unet, batch=1)
    x = x.contiguous(memory_format=memory_format)

    def plain(x: Tensor) -> Tensor:
        with use_reference():
            return unet.to(x.dtype)(x, t, labels)

    with torch.no_grad():
        before = _library.native_calls("group_norm_silu", "CPU")
        fused = unet(x, t, labels)
        calls = _library.native_calls("group_norm_silu", "CPU") - before
        assert_close_by_law4(fused, plain, x)
        assert (calls > 0) == _library.native_kernel("group_norm_silu", "CPU")
        assert _library.native_calls("group_norm_silu", "CPU") == before + calls


def test_embedded_classes_can_be_handed_in() -> None:
    unet = randomised(UNet(**SMALL, class_embed_type="identity"))
    x, t, _ = inputs(unet)
    labels = torch.randn(2, unet.config.time_embed_dim)
    with torch.no_grad():
        assert distance(unet(x, t, labels), peer(unet)(x, t, labels).sample) < 1e-5


@pytest.mark.parametrize("name", ["classes", "adm", "sqrt(2) in the middle"])
def test_gradients_equal_diffusers(name: str) -> None:
    unet = randomised(UNet(**CONFIGS[name]).double())
    theirs = peer(unet)
    x, t, labels = inputs(unet, dtype=torch.float64)
    theirs_x, ours_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    theirs(theirs_x, t, labels).sample.square().sum().backward()
    unet(ours_x, t, labels).square().sum().backward()
    assert distance(ours_x.grad, theirs_x.grad) < 1e-6
    expected = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    greatest = max(float(grad.abs().max()) for grad in expected.values())
    for key, parameter in unet.named_parameters():
        if key.endswith("to_k.bias"):  # softmax does not see it: its gradient is zero
            assert parameter.grad.abs().max() < 1e-12 * greatest, key
        else:
            assert distance(parameter.grad, expected[key]) < 1e-6, key


@given(
    levels=st.lists(
        st.tuples(st.sampled_from([8, 16, 24]), st.integers(0, 2)), min_size=1, max_size=3
    ),
    layers=st.integers(1, 2),
    scale_shift=st.booleans(),
    down=st.sampled_from(["conv", "resnet"]),
    up=st.sampled_from(["conv", "resnet"]),
    padding=st.integers(0, 1),
    head_dim=st.sampled_from([None, 4, 8]),
    classes=st.sampled_from([None, 5]),
    freq=st.tuples(st.integers(0, 1), st.booleans()),
    middle=st.floats(0.5, 2.0),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_any_config_equals_diffusers(
    levels: list[tuple[int, int]], layers: int, scale_shift: bool, down: str, up: str, padding: int,
    head_dim: int | None, classes: int | None, freq: tuple[int, bool], middle: float,
) -> None:  # fmt: skip
    kinds = [kind for _, kind in levels]
    down_types = [("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")[k] for k in kinds]
    up_types = [("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")[k] for k in kinds[::-1]]
    unet = randomised(UNet(
        sample_size=8, norm_num_groups=4, block_out_channels=[c for c, _ in levels],
        down_block_types=down_types, up_block_types=up_types, layers_per_block=layers,
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
        downsample_type=down, upsample_type=up, downsample_padding=padding,
        attention_head_dim=head_dim, num_class_embeds=classes, freq_shift=freq[0],
        flip_sin_to_cos=freq[1], mid_block_scale_factor=middle,
    ).double())  # fmt: skip
    x, t, labels = inputs(unet, dtype=torch.float64)
    with torch.no_grad():
        assert distance(unet(x, t, labels), peer(unet)(x, t, labels).sample) < 1e-6


def test_residual_scale_is_on_every_sum() -> None:
    unet = randomised(UNet(**ADM, residual_scale=1 / math.sqrt(2)).double())
    theirs = peer(unet)
    for module in theirs.modules():
        for factor in ("output_scale_factor", "rescale_output_factor"):
            if hasattr(module, factor):
                setattr(module, factor, math.sqrt(2))
    x, t, labels = inputs(unet, dtype=torch.float64)
    with torch.no_grad():
        assert distance(unet(x, t, labels), theirs(x, t, labels).sample) < 1e-6


def test_a_number_of_heads_stands_for_their_width() -> None:
    config = SMALL | {"add_attention": False}
    by_width = randomised(UNet(**config, attention_head_dim=6))
    by_number = UNet(**config, num_attention_heads=4).eval()
    by_number.load_state_dict(by_width.state_dict())
    x, t, _ = inputs(by_width)
    with torch.no_grad():
        assert torch.equal(by_width(x, t), by_number(x, t))


@pytest.mark.parametrize("name", ["classes", "adm"])
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_as_exact_as_diffusers(name: str, autocast: bool) -> None:
    unet = randomised(UNet(**CONFIGS[name]))
    theirs = peer(unet)
    x, t, labels = inputs(unet, batch=4)
    with torch.no_grad():
        truth = peer(unet).double()(x.double(), t, labels).sample
        if autocast:
            with torch.autocast("cpu", torch.bfloat16):
                ours_half, theirs_half = unet(x, t, labels), theirs(x, t, labels).sample
        else:
            half = x.bfloat16()
            ours_half = unet.bfloat16()(x, t, labels)
            theirs_half = theirs.bfloat16()(half, t, labels).sample
    assert ours_half.dtype == torch.bfloat16
    assert rms(ours_half, truth) <= 2 * rms(theirs_half, truth)


def test_one_step_serves_the_whole_batch() -> None:
    unet = randomised(UNet(**SMALL))
    x, _, _ = inputs(unet)
    with torch.no_grad():
        expected = unet(x, torch.tensor([500, 500]))
        for t in (500, torch.tensor(500), torch.tensor([500]), torch.tensor(500.0)):
            assert torch.equal(unet(x, t), expected)


def test_28_pixels_go_down_to_7_and_up_again() -> None:
    unet = randomised(
        UNet.ddpm(28, image_channels=1, channels=32, multipliers=(1, 2, 2), num_classes=10)
    )
    x, labels = torch.randn(2, 1, 28, 28), torch.tensor([0, 9])
    with torch.no_grad():
        assert distance(unet(x, 10, labels), peer(unet)(x, 10, labels).sample) < 1e-5


def test_dropout_acts_in_training_alone() -> None:
    unet = randomised(UNet(**SMALL, dropout=0.5))
    x, t, _ = inputs(unet)
    with torch.no_grad():
        assert torch.equal(unet(x, t), unet(x, t))
        unet.train()
        assert not torch.equal(unet(x, t), unet(x, t))


def test_new_weights_are_hos() -> None:
    unet = UNet.ddpm(32)
    assert sum(p.numel() for p in unet.parameters()) == 35_746_307  # as google/ddpm-cifar10-32
    with torch.no_grad():
        assert not unet.eval()(torch.randn(1, 3, 32, 32), 5).any()
    weight = unet.down_blocks[1].resnets[1].conv1.weight
    bound = math.sqrt(6 / (2 * 9 * 256))  # uniform of variance 1 / mean(fan_in, fan_out)
    assert 0.99 * bound < float(weight.detach().abs().max()) <= bound
    block = unet.down_blocks[1].resnets[0]
    h = torch.randn(1, 128, 4, 4)
    assert torch.equal(block(h, torch.randn(1, 512)), block.conv_shortcut(h))


def test_a_step_of_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    unet = UNet(**ADM).train()
    x, t, labels = inputs(unet, batch=4)
    target = torch.cat((x, x), dim=1)
    optimizer = torch.optim.Adam(unet.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        loss = (unet(x, t, labels) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_it_is_one_graph_to_the_compiler() -> None:
    unet = randomised(UNet(**ADM))
    x, t, labels = inputs(unet)
    with torch.no_grad():
        compiled = torch.compile(unet, backend="eager", fullgraph=True)
        assert distance(compiled(x, t, labels), unet(x, t, labels)) < 1e-6


def _small(**config: Any) -> UNet:
    return UNet(**SMALL, **config)


X = torch.zeros(2, 3, 12, 12)
BAD_CALLS: dict[str, tuple[dict[str, Any], tuple[Any, ...], str]] = {
    "no batch": ({}, (X[0], 0), r"shape \[3, 12, 12\].*\[N, 3, H, W\]"),
    "channels": ({}, (X[:, :1], 0), r"shape \[2, 1, 12, 12\].*\[N, 3, H, W\]"),
    "size": ({}, (X[..., :11], 0), "12x11.*multiples of 2"),
    "steps": ({}, (X, torch.zeros(3)), r"t has the shape \[3\].*2 samples"),
    "labels missing": ({"num_class_embeds": 4}, (X, 0), "class_labels are missing"),
    "labels too many": ({}, (X, 0, torch.zeros(2, dtype=torch.long)), "made without classes"),
    "labels of another batch": (
        {"num_class_embeds": 4},
        (X, 0, torch.zeros(3, dtype=torch.long)),
        r"shape \[3\].*2 samples",
    ),
    "label out of range": (
        {"num_class_embeds": 4}, (X, 0, torch.tensor([0, 4])), "from 0 to 4.*classes are 0 to 3",
    ),
    "label below zero": (
        {"num_class_embeds": 4}, (X, 0, torch.tensor([-1, 3])), "from -1 to 3.*classes are 0 to 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call_is_told_in_one_sentence(name: str) -> None:
    config, call, message = BAD_CALLS[name]
    with pytest.raises(ValueError, match=message):
        _small(**config)(*call)


def _no_values(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def test_labels_on_an_accelerator_are_not_read_back() -> None:
    # A meta tensor has no values: reading one would raise, as reading a GPU's would wait.
    unet = _small(num_class_embeds=4).to("meta")
    labels = torch.empty(2, dtype=torch.long, device="meta")
    assert unet(_no_values(2, 3, 12, 12), 7, labels).shape == (2, 3, 12, 12)


def test_channels_last_runs_without_copies() -> None:
    class Names(TorchDispatchMode):
        def __torch_dispatch__(
            self, op: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(op))
            return op(*args, **(kwargs or {}))

    seen: list[str] = []
    unet = randomised(UNet(**ADM)).to(memory_format=torch.channels_last)
    x, t, labels = inputs(unet)
    with torch.no_grad(), Names():
        unet(x.to(memory_format=torch.channels_last), t, labels)
    assert seen.count("fastdiff.group_norm_silu.default") > 20
    copies = [name for name in seen if "clone" in name or "contiguous" in name or "copy_" in name]
    assert not copies
