"""What only a GPU can show of philox_normal, q_sample and denoise_step: graphs, waits, sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.ops import _library, denoise_step, philox_normal, q_sample
from fastdiff.ops.denoise_step import COLUMNS
from fastdiff.ops.denoise_step import reference as denoise_reference
from fastdiff.samplers import sample
from fastdiff.schedules import NoiseSchedule
from tests.judge import assert_close_by_law4

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
S = 7


def normals(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to("cuda", dtype)


class Step:
    """A step whose step index and seed lie on the device."""

    def __init__(self, shape: tuple[int, ...] = (4, 3, 16, 16), **options: Any) -> None:
        self.x, self.out = normals(*shape, seed=1), normals(*shape, seed=2)
        self.table = normals(S, len(COLUMNS), seed=3, dtype=torch.float64)
        self.index = torch.arange(shape[0], device="cuda")
        self.step, self.seed = torch.zeros_like(self.index), torch.tensor(5, device="cuda")
        self.options = {"clip": 1.0, "return_pred_x_start": True, **options}

    def __call__(self) -> tuple[Tensor | None, ...]:
        return denoise_step(
            self.x, self.out, self.step, self.table,
            seed=self.seed, sample_index=self.index, **self.options,
        )  # fmt: skip


def captured(call: Any) -> tuple[torch.cuda.CUDAGraph, Any]:
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results


def test_a_graph_reads_step_and_seed_anew() -> None:
    step = Step(model_dtype=torch.bfloat16)
    graph, results = captured(step)
    seen = []
    for row, seed in [(0, 5), (3, 5), (3, 6)]:
        step.step.fill_(row)
        step.seed.fill_(seed)
        wanted = step()
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(results, wanted, strict=True))
        seen.append(results[0].clone())
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_a_graph_walks_a_whole_run_in_place() -> None:
    """One captured step that counts its own steps, replayed, is the loop on the host."""
    plain, step = Step(), Step(in_place=True)

    def advance() -> None:
        step()
        step.step.add_(1)

    graph, _ = captured(advance)
    step.step.zero_()
    step.x.copy_(plain.x)
    for row in range(S):
        plain.step.fill_(row)
        plain.x = plain()[0]
        graph.replay()
    assert torch.equal(step.x, plain.x)


def test_no_call_waits_for_the_device() -> None:
    step, t = Step(), torch.zeros(4, dtype=torch.int64, device="cuda")
    table = normals(S, 4, seed=3, dtype=torch.float64)
    calls = (
        step,
        lambda: philox_normal(step.x.shape, step.seed, sample_index=step.index, draw=t),
        lambda: q_sample(step.x, t, table, seed=step.seed, sample_index=step.index, draw=t),
    )
    for call in calls:
        call()  # compiles
        torch.cuda.set_sync_debug_mode("error")  # a host that reads a device's value raises
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_kernels_serve_the_ops_and_agree_with_the_cpu() -> None:
    """The noise to the bit; the state by law 4."""
    index = torch.tensor([0, 2**33, 2**48 - 1])
    before = _library.native_calls("philox_normal", "CUDA")
    on_gpu = philox_normal((3, 3, 50, 71), 2**63 + 9, sample_index=index.cuda(), draw=4)
    on_cpu = philox_normal((3, 3, 50, 71), 2**63 + 9, sample_index=index, draw=4)
    assert torch.equal(on_gpu.cpu().view(torch.int32), on_cpu.view(torch.int32))
    assert _library.native_calls("philox_normal", "CUDA") == before + 1
    before = _library.native_calls("denoise_step", "CUDA")
    step = Step()
    x_prev, *_ = step()
    assert _library.native_calls("denoise_step", "CUDA") == before + 1
    z = philox_normal(step.x.shape, step.seed, sample_index=step.index, draw=step.step + 1)
    arguments = [step.x, step.out, step.step, step.table, None, 1.0, 1.0, None, None, z]
    arguments += [None, None, 0, False, None]
    assert_close_by_law4(x_prev, lambda *a: denoise_reference.denoise_step(*a)[0], *arguments)


def test_sizes_beyond_two_to_the_31() -> None:
    """Offsets are 64-bit: the last elements of a tensor of 2**31 + 4096 are right."""
    size, tail = 2**31 + 4096, 8192
    x = torch.empty(1, size, device="cuda", dtype=torch.bfloat16).uniform_(-1, 1)
    out = torch.empty_like(x).uniform_(-1, 1)
    table = normals(S, len(COLUMNS), seed=3, dtype=torch.float64)
    step = torch.zeros(1, dtype=torch.int64, device="cuda")
    x_prev = denoise_step(x, out, step, table).x_prev
    rest = x[:, -tail:], out[:, -tail:]
    assert torch.equal(x_prev[:, -tail:], denoise_step(*rest, step, table).x_prev)
    assert torch.equal(x_prev[:, :tail], denoise_step(x[:, :tail], out[:, :tail], step, table)[0])


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_a_run_is_the_cpus(sampler: str) -> None:
    """Twenty steps of a smooth model: the same noise, so the same images up to rounding."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * x + (t.to(x) / 150).view(-1, 1, 1, 1))

    images = [
        sample(
            model, (3, 3, 8, 8), schedule=NoiseSchedule.linear(1000), sampler=sampler, steps=20,
            seed=3, device=device,
        ).cpu()
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    torch.testing.assert_close(images[1], images[0], rtol=1e-4, atol=1e-4)


def test_compiles_whole_on_a_gpu() -> None:
    step = Step()

    def twice(x: Tensor, out: Tensor) -> Tensor:
        options = {"clip": 1.0, "seed": step.seed, "sample_index": step.index}
        x = denoise_step(x, out, step.step, step.table, **options).x_prev
        return denoise_step(x, out.cos(), step.step, step.table, **options).x_prev

    compiled = torch.compile(twice, fullgraph=True)
    torch.testing.assert_close(compiled(step.x, step.out), twice(step.x, step.out))
