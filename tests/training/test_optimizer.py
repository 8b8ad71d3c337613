"""AdamW of training: torch's, with the clipping in the same pass."""

from __future__ import annotations

import copy

import torch
from torch import nn

from fastdiff.ops import _library
from fastdiff.training.optimizer import AdamW


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 16, 3), nn.SiLU(), nn.Conv2d(16, 8, 3), nn.Flatten())
    return layers.append(nn.Linear(32, 5)).to(memory_format=torch.channels_last)


def backward(model: nn.Module, seed: int) -> None:
    model.zero_grad()
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    x = x.to(next(model.parameters()).dtype, memory_format=torch.channels_last)
    model(x).square().sum().backward()


def test_it_is_the_clipped_step_of_torch_in_float64() -> None:
    model = network()
    exact = copy.deepcopy(model).double()
    optimizer = AdamW(model.parameters(), 1e-2, 0.1)
    plain = torch.optim.AdamW(exact.parameters(), lr=1e-2, weight_decay=0.1, foreach=False)
    calls = _library.native_calls("adamw_", "CPU")
    for seed in range(10):
        backward(model, seed)
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        optimizer.step_scaled(min(1.0, 0.5 / float(norm)))
        backward(exact, seed)
        torch.nn.utils.clip_grad_norm_(exact.parameters(), 0.5)
        plain.step()
    native = _library.native_path() is not None
    assert _library.native_calls("adamw_", "CPU") == calls + 10 * native
    for found, expected in zip(model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_its_state_is_torchs() -> None:
    """So that a state of either goes on with the other."""
    ours, theirs = network(), network()
    optimizers = (
        AdamW(ours.parameters(), 1e-2, 0.0),
        torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.0, fused=True),
    )
    for seed in range(3):
        backward(ours, seed)
        optimizers[0].step_scaled(1.0)
        backward(theirs, seed)
        optimizers[1].step()
    states = [optimizer.state_dict() for optimizer in optimizers]
    for found, expected in zip(*(state["state"].values() for state in states), strict=True):
        assert list(found) == list(expected)
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype and found[name].stride() == tensor.stride()
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)
    optimizers[0].load_state_dict(states[1])
    optimizers[1].load_state_dict(states[0])


def test_a_weight_without_a_gradient_stays_and_does_not_age() -> None:
    model = network()
    optimizer = AdamW(model.parameters(), 1e-2, 0.1)
    backward(model, 0)
    idle = next(model.parameters())
    idle.grad, before = None, idle.detach().clone()
    optimizer.step_scaled(1.0)
    assert torch.equal(idle, before) and idle not in optimizer.state
    backward(model, 1)
    optimizer.step_scaled(1.0)
    assert {float(state["step"]) for state in optimizer.state.values()} == {1.0, 2.0}
