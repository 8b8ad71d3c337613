"""The Triton kernels against their references; test_triton_kernels.py runs this file.

In a process of its own, since triton reads TRITON_INTERPRET as it is imported: where that is 1 the
kernels run through Triton's interpreter on CPU tensors, else on the GPU.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton.runtime import interpreter

from fastdiff.ops.biased_sum import reference as sum_reference
from fastdiff.ops.biased_sum import triton as sum_triton
from fastdiff.ops.denoise_step import reference as denoise_reference
from fastdiff.ops.denoise_step import triton as denoise_triton
from fastdiff.ops.philox_normal import reference as philox_reference
from fastdiff.ops.philox_normal import triton as philox_triton
from fastdiff.ops.q_sample import reference as q_sample_reference
from fastdiff.ops.q_sample import triton as q_sample_triton
from fastdiff.samplers import sample
from fastdiff.schedules import NoiseSchedule
from tests.judge import assert_close_by_law4

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
MODULES: dict[str, tuple[Any, Any]] = {
    "biased_sum_": (sum_triton, sum_reference),
    "philox_normal": (philox_triton, philox_reference),
    "q_sample": (q_sample_triton, q_sample_reference),
    "denoise_step": (denoise_triton, denoise_reference),
}
f32, f16, bf16 = torch.float32, torch.float16, torch.bfloat16
launches: Counter[str] = Counter()
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")


@pytest.fixture(autouse=True, scope="module")
def kernels_run() -> Any:
    """Count the launches, and let the interpreter round to bfloat16 as a GPU does."""
    convert = interpreter._convert_float

    def rounded(data: np.ndarray, source: Any, to: Any, mode: Any) -> np.ndarray:
        if (source.name, to.name) != ("fp32", "bf16"):  # which it truncates
            return convert(data, source, to, mode)
        short = torch.tensor(data, dtype=f32).to(bf16)
        return short.view(torch.int16).numpy().view(np.uint16)

    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            patch.setattr(interpreter, "_convert_float", rounded)
        for op, (module, _) in MODULES.items():
            patch.setattr(module, f"_{op}", Counted(op, getattr(module, f"_{op}")))
        yield


class Counted:
    """A kernel that counts its launches."""

    def __init__(self, op: str, kernel: Any) -> None:
        self.op, self.kernel = op, kernel
        assert isinstance(kernel, interpreter.InterpretedFunction) == INTERPRETED

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        launches[self.op] += 1
        return self.kernel[grid]


def normals(*shape: int, seed: int = 0, dtype: torch.dtype = f32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(DEVICE, dtype)


def integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=DEVICE)


def last(x: Tensor | None) -> Tensor | None:
    """The same values, channels-last."""
    return None if x is None else x.movedim(1, -1).contiguous().movedim(-1, 1)


def same_bits(x: Tensor, y: Tensor) -> bool:
    raw = {8: torch.int64, 4: torch.int32, 2: torch.int16}[x.element_size()]
    return x.dtype == y.dtype and torch.equal(x.view(raw), y.view(raw))


SHAPES = [(1, 1), (3, 2, 5, 7), (2, 1030), (2, 3, 32, 32), (1, 5, 3, 11, 13), (4,), (0, 3), (2, 0)]
INDICES = [0, 2**31 - 1, 2**31, 2**48 - 1]
SEEDS = [0, 1, 2**40 + 16, -1, -(2**63)]


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(SHAPES),
    st.sampled_from(SEEDS) | st.integers(-(2**63), 2**63 - 1),
    st.lists(st.sampled_from(INDICES) | st.integers(0, 2**48 - 1), min_size=4, max_size=4),
    st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4),
    st.integers(0, 2**16 - 1),
    st.sampled_from([f32, f16, bf16, torch.float64]),
)
def test_noise_has_the_references_bits(
    shape: tuple[int, ...],
    seed: int,
    samples: list[int],
    draws: list[int],
    stream: int,
    dtype: torch.dtype,
) -> None:
    before, N = launches["philox_normal"], shape[0]
    counters = (integers(seed)[0], integers(*samples[:N]), integers(*draws[:N]))
    got = philox_triton.philox_normal([*shape], *counters, stream, dtype)
    assert same_bits(got, philox_reference.philox_normal([*shape], *counters, stream, dtype))
    assert launches["philox_normal"] == before + (got.numel() > 0)


def test_a_batch_is_its_samples() -> None:
    index, draw = torch.arange(256, device=DEVICE) + 2**31 - 128, torch.full((256,), 3).to(DEVICE)
    seed = integers(9)[0]
    whole = philox_triton.philox_normal([256, 30], seed, index, draw, 0, f32)
    assert same_bits(whole, philox_reference.philox_normal([256, 30], seed, index, draw, 0, f32))
    for i in (0, 127, 128, 255):
        one = philox_triton.philox_normal([1, 30], seed, index[i : i + 1], draw[i : i + 1], 0, f32)
        assert same_bits(one, whole[i : i + 1])


IMAGES = [
    (1, 1, 3, 3),
    (3, 2, 5, 7),
    (2, 3, 16, 48),
    (1, 3, 80, 81),
    (2, 6, 301),
    (3, 5),
    (2, 3, 4, 5, 7),
    (0, 2, 3),
]
memory_formats = pytest.mark.parametrize("formats", ["xo", "Xo", "xO", "XO"])
shapes = pytest.mark.parametrize("shape", IMAGES)
dtypes = pytest.mark.parametrize("dtype", [f32, bf16, f16])

S = 7
TABLE = normals(S, len(denoise_reference.COLUMNS), seed=99, dtype=torch.float64)
Q_TABLE = normals(S, len(q_sample_reference.COLUMNS), seed=98, dtype=torch.float64)


def step_arguments(
    shape: tuple[int, ...] = (3, 2, 5, 7),
    formats: str = "xo",
    *,
    dtype: torch.dtype = f32,
    out_dtype: torch.dtype | None = None,
    learned: bool = False,
    guided: bool = False,
    clip: float | None = None,
    threshold: bool = False,
    before: bool = False,
    noise: bool = False,
    drawn: bool = True,
    pred: bool = False,
    model_dtype: torch.dtype | None = None,
) -> list[Any]:
    N, C, *rest = shape
    of_x = last if "X" in formats else torch.Tensor.contiguous
    of_out = last if "O" in formats else torch.Tensor.contiguous
    out_shape, out_dtype = (N, C + C * learned, *rest), out_dtype or dtype
    return [
        of_x(normals(*shape, seed=1, dtype=dtype)),
        of_out(normals(*out_shape, seed=2, dtype=out_dtype)),
        (torch.arange(N, device=DEVICE) * 5 + 2) % S,
        TABLE,
        of_out(normals(*out_shape, seed=3, dtype=out_dtype)) if guided else None,
        2.5,
        clip,
        normals(N, seed=4).abs() + 0.5 if threshold else None,
        normals(*shape, seed=5, dtype=dtype) if before else None,
        normals(*shape, seed=6) if noise else None,
        integers(-12345678901)[0] if drawn else None,
        torch.arange(N, device=DEVICE) * 2**40 + 5 if drawn else None,
        3,
        pred,
        model_dtype,
    ]


def judge_step(arguments: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Run the kernel, and hold x_prev and pred_x_start to law 4."""
    count = launches["denoise_step"]
    results = denoise_triton.denoise_step(*arguments)
    assert launches["denoise_step"] == count + (results[0].numel() > 0)
    for i in (0, 1):
        assert_close_by_law4(
            results[i], lambda *a, i=i: denoise_reference.denoise_step(*a)[i], *arguments
        )
    return results


@memory_formats
@shapes
def test_step_in_every_shape_and_memory_format(shape: tuple[int, ...], formats: str) -> None:
    judge_step(step_arguments(shape, formats, learned=True, clip=0.8, pred=True))


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"clip": 0.8},
        {"clip": 1.0, "threshold": True},
        {"learned": True},
        {"guided": True},
        {"guided": True, "learned": True},
        {"before": True},
        {"noise": True, "drawn": False},
        {"noise": True, "drawn": False, "learned": True},
        {"pred": True},
    ],
    ids=lambda kind: "-".join(kind) or "plain",
)
def test_every_kind_of_step(kind: dict[str, Any], drawn: bool) -> None:
    judge_step(step_arguments(**({"drawn": drawn} | kind)))


@dtypes
@pytest.mark.parametrize("out_dtype", [f32, bf16, f16])
def test_step_in_every_dtype(dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    arguments = step_arguments(
        dtype=dtype, out_dtype=out_dtype, learned=True, before=True, pred=True
    )
    judge_step(arguments)


@pytest.mark.parametrize("model_dtype", [f32, bf16, f16])
def test_the_models_copy_is_x_prev_rounded(model_dtype: torch.dtype) -> None:
    x_prev, pred, model_input = judge_step(step_arguments(model_dtype=model_dtype, out_dtype=bf16))
    assert same_bits(model_input, x_prev.to(model_dtype))
    assert pred.shape == (0,)


@pytest.mark.parametrize("formats", ["xo", "Xo"])
@pytest.mark.parametrize("shape", [(3, 2, 5, 7), (2, 3, 16, 48)])
def test_the_steps_noise_has_philox_normals_bits(shape: tuple[int, ...], formats: str) -> None:
    """A table that is all sigma = 1 gives the noise itself."""
    table = torch.zeros_like(TABLE)
    table[:, denoise_reference.COLUMNS.index("sigma")] = 1
    arguments = step_arguments(shape, formats)
    arguments[3] = table
    got, *_ = denoise_triton.denoise_step(*arguments)
    step, seed, index, stream = arguments[2], *arguments[10:13]
    z = philox_reference.philox_normal([*shape], seed, index, step + 1, stream, f32)
    assert torch.equal(got, z)


@pytest.mark.parametrize("formats", ["xo", "XO"])
def test_in_place(formats: str) -> None:
    arguments = step_arguments(formats=formats, pred=True, model_dtype=bf16)
    wanted = denoise_triton.denoise_step(*arguments)
    x, before = arguments[0], launches["denoise_step"]
    got = denoise_triton.denoise_step_(*arguments)
    assert launches["denoise_step"] == before + 1
    assert all(same_bits(*pair) for pair in zip((x, *got), wanted, strict=True))


def test_infinities_and_nans_pass() -> None:
    arguments = step_arguments(clip=0.8, pred=True)
    arguments[0].view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    x_prev, pred, _ = judge_step(arguments)
    assert pred.isnan().sum() == 1 and x_prev.view(-1)[0].isnan()


def test_strided_inputs_and_samples_of_one_view() -> None:
    """What lies between other data is read right, whatever x_t's companions look like."""
    plain = step_arguments(learned=True, before=True, noise=True, drawn=False)
    strided = list(plain)
    for i in (1, 8, 9):
        strided[i] = torch.stack([plain[i]] * 2, -1)[..., 0]
    strided[2] = torch.stack([plain[2]] * 2, -1)[:, 0]
    strided[3] = torch.stack([plain[3]] * 2, -1)[..., 0]
    assert same_bits(judge_step(strided)[0], denoise_triton.denoise_step(*plain)[0])


@pytest.mark.parametrize("change", [lambda x: x.double(), lambda x: x.transpose(2, 3)])
def test_what_the_kernels_do_not_walk_goes_to_the_reference(change: Any) -> None:
    before = launches.copy()
    arguments = step_arguments((3, 2, 5, 5))
    arguments[0] = change(arguments[0])
    x_prev, *_ = denoise_triton.denoise_step(*arguments)
    assert same_bits(x_prev, denoise_reference.denoise_step(*arguments)[0])
    denoise_triton.denoise_step_(*arguments)
    assert same_bits(arguments[0], x_prev)
    arguments = q_sample_arguments((3, 2, 5, 5))
    arguments[0] = change(arguments[0])
    x_t, *_ = q_sample_triton.q_sample(*arguments)
    assert same_bits(x_t, q_sample_reference.q_sample(*arguments)[0])
    assert launches == before


def q_sample_arguments(
    shape: tuple[int, ...], dtype: torch.dtype = f32, *, drawn: bool = True, asked: bool = True
) -> list[Any]:
    N = shape[0]
    index = torch.arange(N, device=DEVICE)
    counters = (integers(77)[0], index * 2**40 + 5, index + 2**32 - 9) if drawn else (None,) * 3
    return [
        normals(*shape, seed=1, dtype=dtype),
        (index * 5 + 2) % S,
        Q_TABLE,
        None if drawn else normals(*shape, seed=2),
        *counters,
        65535,
        asked and drawn,
        asked,
    ]


def judge_q_sample(arguments: list[Any]) -> None:
    before = launches["q_sample"]
    results = q_sample_triton.q_sample(*arguments)
    assert launches["q_sample"] == before + (results[0].numel() > 0)
    for i in (0, 2):
        assert_close_by_law4(
            results[i], lambda *a, i=i: q_sample_reference.q_sample(*a)[i], *arguments
        )
    assert same_bits(results[1], q_sample_reference.q_sample(*arguments)[1])


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [*IMAGES, (4,)])
def test_noising_in_every_shape(shape: tuple[int, ...], channels_last: bool, drawn: bool) -> None:
    arguments = q_sample_arguments(shape, drawn=drawn)
    if channels_last and len(shape) > 2:
        arguments[0] = last(arguments[0])
    judge_q_sample(arguments)


@dtypes
@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("asked", [True, False])
def test_every_kind_of_noising(dtype: torch.dtype, drawn: bool, asked: bool) -> None:
    judge_q_sample(q_sample_arguments((3, 2, 5, 7), dtype, drawn=drawn, asked=asked))


def wavy(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(3 * x + (t.to(x) / 150).view(-1, 1, 1, 1))


RUNS: list[dict[str, Any]] = [
    {"sampler": "ddpm"},
    {"sampler": "ddpm", "variance_type": "learned_range", "learned": True},
    {"sampler": "ddim", "eta": 0.7},
    {"sampler": "dpm++"},
]


@pytest.mark.parametrize("options", RUNS, ids=lambda o: "-".join(map(str, o.values())))
def test_samplers_take_the_references_way(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten steps through either kernels: the same x_T to the bit, and states within law 4."""
    learned, shape = options.get("learned", False), (3, 2, 5, 3)
    options = {k: v for k, v in options.items() if k != "learned"}

    def model(x: Tensor, t: Tensor) -> Tensor:
        out = wavy(x, t)
        return torch.cat([out, out.cos()], 1) if learned else out

    def trajectory(which: int, dtype: torch.dtype) -> list[Tensor]:
        for op in ("philox_normal", "denoise_step"):
            kernel = getattr(MODULES[op][which], op)
            monkeypatch.setattr(sys.modules[f"fastdiff.ops.{op}"], "_op", kernel)
        states: list[Tensor] = []
        sample(
            model,
            shape,
            schedule=NoiseSchedule.linear(1000),
            steps=10,
            seed=3,
            sample_index=2**33,
            device=DEVICE,
            dtype=dtype,
            callback=lambda done: states.append(done.x_t) or states.append(done.x_prev),
            **options,
        )
        return states

    before = launches.copy()
    through_triton = trajectory(0, f32)
    assert launches - before == Counter(philox_normal=1, denoise_step=10)
    plain = {dtype: trajectory(1, dtype) for dtype in (f32, torch.float64)}
    assert same_bits(through_triton[0], plain[f32][0])
    for i, state in enumerate(through_triton):
        assert_close_by_law4(state, lambda x, i=i: plain[x.dtype][i], torch.empty(0))


@pytest.mark.parametrize("given", ["bias", "residual", "both", "scale alone"])
@pytest.mark.parametrize("dtype", [f32, bf16, f16])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, last])
@pytest.mark.parametrize("shape", IMAGES)
def test_biased_sum(
    shape: tuple[int, ...], layout: Callable[..., Tensor], dtype: torch.dtype, given: str
) -> None:
    x, residual = (layout(normals(*shape, seed=seed, dtype=dtype)) for seed in (1, 2))
    bias = normals(shape[1], seed=3) if given in ("bias", "both") else None
    other = residual.contiguous() if given in ("residual", "both") else None

    def summed(*arguments: Any) -> Tensor:
        x = arguments[0].clone()
        sum_reference.biased_sum_(x, *arguments[1:])
        return x

    count, found = launches["biased_sum_"], x.clone()
    sum_triton.biased_sum_(found, bias, other, 0.7)
    assert launches["biased_sum_"] == count + (x.numel() > 0)
    assert_close_by_law4(found, summed, x, bias, other, 0.7)


def test_biased_sum_of_float64_and_odd_strides_is_the_references() -> None:
    for x in (normals(2, 3, 5, 7, dtype=torch.float64), normals(2, 3, 5, 14)[..., ::2]):
        found, wanted, count = x.clone(), x.clone(), launches["biased_sum_"]
        found = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE).copy_(x)
        sum_triton.biased_sum_(found, None, x, 2.0)
        sum_reference.biased_sum_(wanted, None, x, 2.0)
        assert launches["biased_sum_"] == count and torch.equal(found, wanted)
