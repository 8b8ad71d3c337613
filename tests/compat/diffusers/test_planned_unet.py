"""accelerate puts a UNet2DModel on the engine's plan, and keeps to the model as it changes."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import fastdiff
from fastdiff.compat.diffusers._unet import plan_of
from fastdiff.ops import _library
from tests.compat.diffusers.test_accelerate import noise, unet

NATIVE = _library.native_path() is not None


def pair(**config: Any) -> tuple[Any, Any]:
    return unet(**config), fastdiff.accelerate(unet(**config))


@torch.no_grad()
def assert_planned(model: Any, plain: Any, x: Tensor, *rest: Any) -> None:
    before = _library.native_calls("conv3x3", "CPU")
    found = model(x, *rest)
    assert (_library.native_calls("conv3x3", "CPU") > before) == NATIVE
    expected = plain(x, *rest)
    assert type(found) is type(expected) and found.sample.stride() == expected.sample.stride()
    torch.testing.assert_close(found.sample, expected.sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("t", [7, torch.tensor(7), torch.tensor([7, 900])])
def test_it_answers_as_the_original(t: Any) -> None:
    plain, model = pair()
    assert_planned(model, plain, noise(2, 3, 8, 8), t)
    with torch.no_grad():
        assert isinstance(model(noise(2, 3, 8, 8), t, return_dict=False), tuple)


def test_classes() -> None:
    plain, model = pair(num_class_embeds=5)
    assert_planned(model, plain, noise(2, 3, 8, 8), 7, torch.tensor([4, 0]))


def test_it_follows_the_weights_and_restore_takes_it_off() -> None:
    plain, model = pair()
    x = noise(2, 3, 8, 8)
    assert_planned(model, plain, x, 7)
    with torch.no_grad():
        for one in (plain, model):
            one.conv_out.weight.mul_(3)
    assert_planned(model, plain, x, 7)
    fastdiff.restore(model)
    assert type(model) is diffusers.UNet2DModel
    with torch.no_grad():
        assert torch.equal(model(x, 7).sample, plain(x, 7).sample)


def test_gradients_training_and_hooks_go_by_the_parts() -> None:
    plain, model = pair()
    x = noise(2, 3, 8, 8)
    for one in (plain, model):
        one(x, 7).sample.square().mean().backward()
    torch.testing.assert_close(
        model.conv_in.weight.grad, plain.conv_in.weight.grad, rtol=1e-4, atol=1e-5
    )
    with torch.no_grad():
        assert plan_of(model) is not None
        assert plan_of(model.train()) is None
        seen: list[Any] = []
        model.eval().mid_block.register_forward_hook(lambda *_: seen.append(1))
        model(x, 7)
        assert plan_of(model) is None and seen


def test_a_whole_pipeline() -> None:
    plain, model = pair()
    images = []
    for one in (plain, model):
        pipe = diffusers.DDIMPipeline(one, diffusers.DDIMScheduler())
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images.append(pipe(2, generator, num_inference_steps=5, output_type="np").images)
    assert abs(images[0] - images[1]).max() < 1e-3
