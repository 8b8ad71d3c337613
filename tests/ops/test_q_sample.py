"""q_sample against its formula in float64, the papers' targets, and its reference's bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.diffusion import noising_table
from fastdiff.ops import _library, philox_normal
from fastdiff.ops.philox_normal import reference as philox_reference
from fastdiff.ops.q_sample import COLUMNS, q_sample, reference
from fastdiff.schedules import NoiseSchedule
from tests.judge import assert_close_by_law4

T = 9
NAMES = ("x_t", "noise", "target")


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


TABLE = normals(T, len(COLUMNS), seed=99)


def inputs(shape: tuple[int, ...] = (3, 2, 5, 3)) -> dict[str, Any]:
    t = (torch.arange(shape[0]) * 5 + 2) % T
    return {"x_start": normals(*shape, seed=1), "t": t, "table": TABLE}


@pytest.mark.parametrize("shape", [(3, 2, 5, 3), (1, 1, 3, 3), (2, 3, 7), (3, 4), (3,), (0, 3, 4)])
def test_formula(shape: tuple[int, ...]) -> None:
    arguments, z = inputs(shape), normals(*shape, seed=2)
    done = q_sample(**arguments, noise=z, return_noise=True, return_target=True)
    for at in np.ndindex(*shape):
        a_x, a_z, y_x, y_z = TABLE[arguments["t"][at[0]]].tolist()
        x, e = float(arguments["x_start"][at]), float(z[at])
        assert float(done.x_t[at]) == pytest.approx(a_x * x + a_z * e, rel=1e-12, abs=1e-13)
        assert float(done.target[at]) == pytest.approx(y_x * x + y_z * e, rel=1e-12, abs=1e-13)
    assert done.noise is z and done.x_t.shape == shape


@pytest.mark.parametrize("prediction_type", ["epsilon", "x_start", "v", "posterior_mean"])
def test_the_training_pair_is_the_papers(prediction_type: str) -> None:
    """By betas alone: Ho et al. 2020, eq. 4 and 7; Salimans and Ho 2022, appendix D."""
    betas = np.linspace(1e-4, 0.02, 100)
    abar, t = np.cumprod(1 - betas), torch.tensor([0, 33, 66, 99])
    before = np.append(1.0, abar[:-1])
    table = noising_table(NoiseSchedule.linear(100), torch.device("cpu"), prediction_type)
    x_start, index = normals(4, 3, 6, 6).float().clamp(-1, 1), torch.arange(4)
    done = q_sample(
        x_start, t, table, seed=4, sample_index=index, return_noise=True, return_target=True
    )
    assert done.noise is not None
    assert torch.equal(done.noise, philox_normal(x_start.shape, 4, sample_index=index))
    x, z = x_start.double().numpy(), done.noise.double().numpy()
    a, b, a_before = (c[t].reshape(4, 1, 1, 1) for c in (abar, betas, before))
    x_t = np.sqrt(a) * x + np.sqrt(1 - a) * z
    mean = (np.sqrt(a_before) * b * x + np.sqrt(1 - b) * (1 - a_before) * x_t) / (1 - a)
    v = np.sqrt(a) * z - np.sqrt(1 - a) * x
    wanted = {"epsilon": z, "x_start": x, "v": v, "posterior_mean": mean}[prediction_type]
    np.testing.assert_allclose(done.x_t, x_t, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(done.target, wanted, rtol=1e-6, atol=1e-6)


def test_only_what_is_asked_for_comes() -> None:
    done = q_sample(**inputs(), noise=normals(3, 2, 5, 3))
    assert done.noise is None and done.target is None


@settings(deadline=None)
@given(
    st.integers(-(2**63), 2**63 - 1),
    st.lists(st.integers(0, 2**48 - 1), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**16 - 1),
    st.lists(st.integers(1, 40), max_size=3),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_noise_bits(
    seed: int,
    samples: list[int],
    draw: int,
    stream: int,
    rest: list[int],
    layout: torch.memory_format,
) -> None:
    shape, index = (len(samples), *rest), torch.tensor(samples)
    x = torch.ones(shape)
    if x.ndim == 4:
        x = x.to(memory_format=layout)
    table = torch.tensor([[0.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    calls = _library.native_calls("q_sample", "CPU")
    done = q_sample(
        x, torch.zeros_like(index), table, seed=torch.tensor(seed), sample_index=index, draw=draw,
        stream=stream, return_noise=True, return_target=True,
    )  # fmt: skip
    assert _library.native_calls("q_sample", "CPU") == calls + 1
    draws = torch.full_like(index, draw)
    z = philox_reference.philox_normal(list(shape), seed, index, draws, stream, torch.float32)
    for got in (done.x_t, done.noise, -done.target):
        assert torch.equal(got.view(torch.int32), z.view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("drawn", [False, True])
def test_the_native_kernel_by_law_4(drawn: bool, dtype: torch.dtype) -> None:
    a = inputs((3, 5, 33, 7))
    x_start, index = a["x_start"].to(dtype), torch.tensor([5, 0, 2**33])
    noise = None if drawn else normals(3, 5, 33, 7, seed=2).to(dtype)
    source = (torch.tensor(-3), index, index * 0 + 8) if drawn else (None, None, None)
    assert _library.native_kernel("q_sample", "CPU")
    calls = _library.native_calls("q_sample", "CPU")
    done = torch.ops.fastdiff.q_sample(x_start, a["t"], TABLE, noise, *source, 4, drawn, True)
    assert _library.native_calls("q_sample", "CPU") == calls + 1
    for which in (0, 1, 2) if drawn else (0, 2):

        def plain(x: Tensor, z: Tensor | None, which: int = which) -> Tensor:
            return reference.q_sample(x, a["t"], TABLE, z, *source, 4, True, True)[which]

        assert_close_by_law4(done[which], plain, x_start, noise)


def strided(x: Tensor) -> Tensor:
    return torch.stack([x] * 2, -1)[..., 0]


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


LAYOUTS = [Tensor.contiguous, channels_last, strided]


@pytest.mark.parametrize("of_x", LAYOUTS)
@pytest.mark.parametrize("of_noise", [*LAYOUTS, None])
def test_layouts_change_no_bit(
    of_x: Callable[[Tensor], Tensor], of_noise: Callable[[Tensor], Tensor] | None
) -> None:
    a, index = inputs((3, 5, 33, 35)), torch.arange(3)
    x, z = a["x_start"].float(), philox_normal((3, 5, 33, 35), 6, sample_index=index)
    noise = of_noise(z) if of_noise else None
    options = {"return_noise": True, "return_target": True}
    plain = q_sample(x, a["t"], TABLE, noise=z, **options)
    other = q_sample(of_x(x), a["t"], TABLE, noise=noise, seed=6, sample_index=index, **options)
    for name, one, two in zip(NAMES, plain, other, strict=True):
        assert torch.equal(one, two)
        if name != "noise" or noise is None:
            assert two.stride() == torch.empty_like(of_x(x)).stride()


def test_compiles_whole() -> None:
    a, index = inputs(), torch.arange(3)

    def run(x: Tensor) -> Tensor:
        done = q_sample(x * 1, a["t"], TABLE, seed=2, sample_index=index, return_target=True)
        return done.x_t + done.target

    x = a["x_start"].float()
    assert torch.equal(torch.compile(run, fullgraph=True)(x), run(x))


@pytest.mark.parametrize("return_target", [False, True])
@pytest.mark.parametrize("shape", [(3, 2, 5, 3), (3,)])
def test_gradients(shape: tuple[int, ...], return_target: bool) -> None:
    """Of x_start and a noise handed in, against finite differences in float64."""
    a = inputs(shape)
    t = a["t"]

    def noised(x_start: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        done = q_sample(x_start, t, TABLE, noise=noise, return_target=return_target)
        return tuple(part for part in done if part is not None)

    given = [a["x_start"].requires_grad_(), normals(*shape, seed=2).requires_grad_()]
    assert torch.autograd.gradcheck(noised, given)
    assert torch.autograd.gradgradcheck(noised, given)


def test_gradients_beside_drawn_noise_and_in_low_precision() -> None:
    x = inputs()["x_start"].bfloat16().requires_grad_()
    t, index = inputs()["t"], torch.arange(3)
    done = q_sample(x, t, TABLE, seed=1, sample_index=index, return_noise=True, return_target=True)
    assert done.target is not None
    (2 * done.x_t + 3 * done.target).sum().backward()
    row = TABLE[t].view(3, len(COLUMNS), 1, 1, 1)
    wanted = (2 * row[:, 0] + 3 * row[:, 2]).expand(x.shape)
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(x.grad.double(), wanted, rtol=2**-8, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"t": torch.tensor([0, 1])}, ValueError, r"t must be \[3\], one for each sa.*got \[2\]"),
        ({"t": torch.tensor([0, 1, T])}, ValueError, r"t must lie in 0..8, got 0..9"),
        ({"t": torch.zeros(3)}, TypeError, "t must be int64"),
        ({"table": TABLE.float()}, ValueError, r"table must be float64 \[T, 4\]"),
        ({"table": TABLE.to("meta")}, ValueError, "table must share x_start's device"),
        ({"noise": normals(3, 2)}, ValueError, "noise must have x_start's shape"),
        ({"noise": torch.zeros(3, 2, 5, 3, dtype=torch.int64)}, TypeError, "noise must be float"),
        ({"noise": None}, ValueError, "takes noise, or sample_index to draw it by"),
        ({"noise": None, "sample_index": torch.arange(2)}, ValueError, r"sample_index must be \["),
        ({"noise": None, "sample_index": torch.arange(3), "seed": -1}, ValueError, "seed must lie"),
        ({"x_start": torch.zeros(3, 2, dtype=torch.int64)}, ValueError, "x_start must be floating"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(
    change: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        q_sample(**(inputs() | {"noise": normals(3, 2, 5, 3)} | change))


@pytest.mark.parametrize("of_x", LAYOUTS)
def test_opcheck(of_x: Callable[[Tensor], Tensor]) -> None:
    a, index = inputs(), torch.arange(3)
    x, op = of_x(a["x_start"].float()), torch.ops.fastdiff.q_sample.default
    drawn = (x, a["t"], TABLE, None, torch.tensor(7), index, index, 0, True, True)
    given = (x, a["t"], TABLE, x + 1, None, None, None, 0, False, False)
    torch.library.opcheck(op, drawn)
    torch.library.opcheck(op, given)
