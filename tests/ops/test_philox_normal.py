"""philox_normal against Random123's vectors, a scalar rewrite of NOTES.md, and the normal law."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastdiff.ops import _library
from fastdiff.ops.philox_normal import philox_normal, reference

f32 = np.float32

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_scalar(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b % 2**32, (a >> 32) ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def horner_scalar(x: np.float32, *hexes: str) -> np.float32:
    total = f32(float.fromhex(hexes[-1]))
    for h in reversed(hexes[:-1]):
        total = f32(f32(x * total) + f32(float.fromhex(h)))
    return total


def pair_scalar(radius_word: int, angle_word: int) -> tuple[np.float32, np.float32]:
    """NOTES.md once more, a NumPy float32 scalar at a time."""
    u = f32(f32(f32(np.uint32(radius_word)) * f32(2.0**-32)) + f32(2.0**-33))
    bits = int(u.view(np.int32)) + 0x3F800000 - 0x3F3504F3
    e = f32((bits >> 23) - 127)
    m = np.int32((bits & 0x7FFFFF) + 0x3F3504F3).view(np.float32)
    f = f32(m - f32(1))
    q = horner_scalar(
        f,
        "-0x1.00006cp-1",
        "0x1.5558f4p-2",
        "-0x1.ff6978p-3",
        "0x1.97b1a4p-3",
        "-0x1.61212cp-3",
        "0x1.4b5dc8p-3",
        "-0x1.9d03acp-4",
    )
    log = f32(f32(e * f32(float.fromhex("0x1.62e430p-1"))) + f32(f32(f32(f * f) * q) + f))
    radius = f32(np.sqrt(f32(log * f32(-2))))
    x = f32(f32((angle_word & 0x3FFFFFFF) - 2**29) * f32(float.fromhex("0x1.921fb6p-30")))
    y = f32(x * x)
    sin = f32(
        f32(f32(x * y) * horner_scalar(y, "-0x1.555546p-3", "0x1.11077ep-7", "-0x1.9956b6p-13")) + x
    )
    cos = f32(
        f32(y * horner_scalar(y, "-0x1p-1", "0x1.55554ap-5", "-0x1.6c0c1ap-10", "0x1.99e0eep-16"))
        + f32(1)
    )
    c, s = [(cos, sin), (-sin, cos), (-cos, -sin), (sin, -cos)][angle_word >> 30]
    return f32(radius * c), f32(radius * s)


def normal_scalar(seed: int, index: int, draw: int, stream: int, element: int) -> np.float32:
    counter = (element // 4, index % 2**32, draw, stream + (index >> 32 << 16))
    w = philox_scalar(counter, (seed % 2**32, seed >> 32))
    return (*pair_scalar(w[0], w[1]), *pair_scalar(w[2], w[3]))[element % 4]


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32)


def indices(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_random123s_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], result: tuple[int, ...]
) -> None:
    words = reference.philox(tuple(indices(c) for c in counter), key)
    assert tuple(int(w) for w in words) == result
    assert tuple(philox_scalar(counter, key)) == result


VECTORS = json.loads(Path(__file__).with_name("philox_normal_vectors.json").read_text())


@pytest.mark.parametrize("row", VECTORS)
def test_vectors_are_what_the_scalar_rewrite_gives(row: dict[str, Any]) -> None:
    for element, word in enumerate(row["float32"], row["first"]):
        z = normal_scalar(
            int(row["seed"]), row["sample_index"], row["draw"], row["stream"], element
        )
        assert f"{int(z.view(np.uint32)):08x}" == word


def normals_of(row: dict[str, Any], device: str = "cpu") -> list[str]:
    """The words of a row of the vector file, by the op."""
    shape = (1, row["first"] + len(row["float32"]))
    index = indices(row["sample_index"]).to(device)
    z = philox_normal(
        shape, int(row["seed"]), sample_index=index, draw=row["draw"], stream=row["stream"]
    )
    return [f"{word % 2**32:08x}" for word in bits(z[0, row["first"] :]).tolist()]


@pytest.mark.parametrize("row", [row for row in VECTORS if row["first"] < 2**24])
def test_vectors_are_what_the_op_gives(row: dict[str, Any]) -> None:
    assert normals_of(row) == row["float32"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("row", VECTORS)
def test_vectors_are_what_a_gpu_gives(row: dict[str, Any]) -> None:
    calls = _library.native_calls("philox_normal", "CUDA")
    assert normals_of(row, "cuda") == row["float32"]
    assert _library.native_calls("philox_normal", "CUDA") == calls + 1


@settings(deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, 2**48 - 1), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**16 - 1),
    st.integers(1, 13),
)
def test_every_bit_is_the_scalar_rewrites(
    seed: int, samples: list[int], draw: int, stream: int, size: int
) -> None:
    got = philox_normal(
        (len(samples), size), seed, sample_index=indices(*samples), draw=draw, stream=stream
    )
    wanted = [[normal_scalar(seed, i, draw, stream, e) for e in range(size)] for i in samples]
    assert (bits(got).numpy() == np.array(wanted, dtype=f32).view(np.int32)).all()


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_any_two_words_make_the_same_pair(radius: int, angle: int) -> None:
    got = torch.stack(reference.box_muller(indices(radius), indices(angle)))[:, 0]
    assert (bits(got).numpy() == np.array(pair_scalar(radius, angle)).view(np.int32)).all()


EDGES = [0, 1, 2, 2**24, 2**29, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 2, 2**32 - 1]


@pytest.mark.parametrize("radius", EDGES)
@pytest.mark.parametrize("angle", EDGES)
def test_edge_words(radius: int, angle: int) -> None:
    """The same bits as the rewrite, finite, and close to Box-Muller in float64."""
    test_any_two_words_make_the_same_pair.hypothesis.inner_test(radius, angle)
    got = torch.stack(reference.box_muller(indices(radius), indices(angle)))[:, 0]
    u = float(f32(radius) * f32(2.0**-32) + f32(2.0**-33))
    turn = 2 * math.pi * (angle - 2**29) / 2**32
    r = math.sqrt(-2 * math.log(u))
    exact = np.array([r * math.cos(turn), r * math.sin(turn)])
    np.testing.assert_allclose(got.numpy(), exact, atol=6e-7 * max(r, 1))
    assert r < 6.8


def test_elementary_functions_are_as_good_as_claimed() -> None:
    """NOTES.md: log to 2.5e-7 relative, cosine and sine to 1.5e-7 absolute."""
    words = torch.randint(0, 2**32, (400_000,), generator=torch.Generator().manual_seed(0))
    u = torch.cat([words.float() * 2.0**-32 + 2.0**-33, torch.logspace(-9.9, -1e-6, 100_000)])
    u = u[u < 1]
    exact = u.double().log()
    assert ((reference.log(u) - exact) / exact).abs().max() < 2.5e-7
    turn = 2 * math.pi * (words - 2**29).double() / 2**32
    cos, sin = reference.cos_sin_of_turn(words)
    assert (cos - turn.cos()).abs().max() < 1.5e-7
    assert (sin - turn.sin()).abs().max() < 1.5e-7


NORMALS = philox_normal((8, 3, 129, 129), 2024, sample_index=torch.arange(8)).double().numpy()


def test_distribution_is_standard_normal() -> None:
    z = NORMALS.ravel()
    assert stats.kstest(z, "norm").pvalue > 0.01
    n = z.size
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs((z**power).mean() - moment) < 4 * math.sqrt(spread / n), power


def test_tails_reach_as_far_as_they_should() -> None:
    z = philox_normal((32, 200_000), 5, sample_index=torch.arange(32)).abs()
    for bound in (3.0, 4.0, 5.0):
        expected = z.numel() * 2 * stats.norm.sf(bound)
        assert abs(int((z > bound).sum()) - expected) < 5 * math.sqrt(expected)
    assert 4.9 < float(z.max()) < 6.8


def test_nothing_is_correlated() -> None:
    """Across the four lanes, neighbouring groups, samples, draws, streams and seeds."""
    n, index = 40_000, torch.arange(1)
    base = philox_normal((1, n), 1, sample_index=index)[0].numpy()
    lanes = base.reshape(-1, 4)
    others = {
        "sample": philox_normal((1, n), 1, sample_index=index + 1),
        "draw": philox_normal((1, n), 1, sample_index=index, draw=1),
        "stream": philox_normal((1, n), 1, sample_index=index, stream=1),
        "seed": philox_normal((1, n), 2, sample_index=index),
        "high seed": philox_normal((1, n), 1 + 2**32, sample_index=index),
        "high sample": philox_normal((1, n), 1, sample_index=index + 2**32),
    }
    pairs = [(base, other[0].numpy()) for other in others.values()]
    pairs += [(lanes[:, i], lanes[:, j]) for i in range(4) for j in range(i)]
    pairs += [(lanes[:-1, i], lanes[1:, j]) for i in range(4) for j in range(4)]
    for x, y in pairs:
        for left, right in ((x, y), (x**2, y**2)):
            assert abs(np.corrcoef(left, right)[0, 1]) < 4.5 / math.sqrt(x.size)


def test_a_batch_is_its_samples() -> None:
    index = indices(0, 7, 2**31, 2**31 + 5, 2**32, 2**48 - 1)
    whole = philox_normal((6, 3, 5, 7), 9, sample_index=index, draw=3)
    assert torch.equal(bits(whole), bits(by_reference((6, 3, 5, 7), 9, index, 3, 0)))
    for i in range(6):
        one = philox_normal((1, 3, 5, 7), 9, sample_index=index[i : i + 1], draw=3)
        assert torch.equal(bits(whole[i : i + 1]), bits(one))
    assert len({float(x) for x in whole[:, 0, 0, 0]}) == 6


def test_256_samples_are_256_batches_of_one() -> None:
    index = torch.arange(256)
    whole = philox_normal((256, 3, 9, 9), 3, sample_index=index)
    for i in range(256):
        one = philox_normal((1, 3, 9, 9), 3, sample_index=index[i : i + 1])
        assert torch.equal(bits(whole[i : i + 1]), bits(one))


def test_elements_count_in_logical_order() -> None:
    index = torch.arange(2)
    flat = philox_normal((2, 60), 1, sample_index=index)
    assert torch.equal(philox_normal((2, 3, 4, 5), 1, sample_index=index).flatten(1), flat)
    assert torch.equal(philox_normal((2, 10), 1, sample_index=index), flat[:, :10])


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_a_seed_may_be_a_tensor(seed: int) -> None:
    bits_of_seed = torch.tensor(np.array(seed, dtype=np.uint64).view(np.int64))
    index = torch.arange(2)
    by_tensor = philox_normal((2, 9), bits_of_seed, sample_index=index)
    assert torch.equal(by_tensor, philox_normal((2, 9), seed, sample_index=index))


def test_a_draw_for_each_sample() -> None:
    index = torch.arange(3)
    mixed = philox_normal((3, 8), 1, sample_index=index, draw=indices(4, 0, 9))
    for i, draw in enumerate((4, 0, 9)):
        assert torch.equal(mixed[i], philox_normal((3, 8), 1, sample_index=index, draw=draw)[i])


def by_reference(
    shape: tuple[int, ...], seed: int, index: torch.Tensor, draw: int, stream: int
) -> torch.Tensor:
    signed = seed - 2**64 if seed >= 2**63 else seed
    draws = torch.full_like(index, draw)
    seeds = torch.tensor(signed)
    return reference.philox_normal(list(shape), seeds, index, draws, stream, torch.float32)


@settings(deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, 2**48 - 1), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**16 - 1),
    st.lists(st.integers(1, 60), max_size=3),
)
def test_the_native_kernel_gives_the_references_bits(
    seed: int, samples: list[int], draw: int, stream: int, rest: list[int]
) -> None:
    assert _library.native_kernel("philox_normal", "CPU")
    calls = _library.native_calls("philox_normal", "CPU")
    shape, index = (len(samples), *rest), indices(*samples)
    got = philox_normal(shape, seed, sample_index=index, draw=draw, stream=stream)
    assert _library.native_calls("philox_normal", "CPU") == calls + 1
    assert torch.equal(bits(got), bits(by_reference(shape, seed, index, draw, stream)))


@pytest.mark.many_threads
def test_a_million_native_normals_are_the_references() -> None:
    """Enough to meet every quadrant, exponent and rounding, and to be cut among threads."""
    shape, index = (2, 3, 419, 419), indices(11, 2**40)
    got = philox_normal(shape, 77, sample_index=index, draw=5, stream=2)
    assert torch.equal(bits(got), bits(by_reference(shape, 77, index, 5, 2)))


def test_strided_indices_and_draws() -> None:
    index = torch.arange(12)[::3]
    got = philox_normal((4, 7), 1, sample_index=index, draw=torch.arange(1).expand(4))
    assert torch.equal(got, philox_normal((4, 7), 1, sample_index=index.clone()))


def test_compiles_whole() -> None:
    def noise(index: torch.Tensor) -> torch.Tensor:
        return philox_normal((3, 10), 4, sample_index=index, draw=index + 1) + 1

    index = torch.arange(3)
    assert torch.equal(torch.compile(noise, fullgraph=True)(index), noise(index))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_round_the_float32_normals(dtype: torch.dtype) -> None:
    index = torch.arange(2)
    z = philox_normal((2, 33), 1, sample_index=index)
    assert torch.equal(philox_normal((2, 33), 1, sample_index=index, dtype=dtype), z.to(dtype))


def test_empty_shapes() -> None:
    assert philox_normal((0, 3), 0, sample_index=torch.arange(0)).shape == (0, 3)
    assert philox_normal((2, 0), 0, sample_index=torch.arange(2)).shape == (2, 0)
    assert philox_normal((2,), 0, sample_index=torch.arange(2)).shape == (2,)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"seed": -1}, ValueError, r"seed must lie in 0..2\*\*64-1, got -1"),
        ({"seed": 2**64}, ValueError, "seed must lie in"),
        ({"seed": torch.tensor(1.0)}, TypeError, r"seed must be an int or int64 \[\], got"),
        ({"seed": indices(1)}, TypeError, r"seed must be an int or int64 \[\], got .* \[1\]"),
        ({"seed": indices(1)[0].to("meta")}, ValueError, "seed must lie on cpu"),
        ({"stream": 2**16}, ValueError, r"stream must lie in 0..2\*\*16-1, got 65536"),
        ({"draw": -1}, ValueError, r"draw must lie in 0..2\*\*32-1"),
        ({"draw": indices(1)}, ValueError, r"draw must be \[2\], one for each sample; got \[1\]"),
        ({"sample_index": indices(0, -1)}, ValueError, r"sample_index must lie in 0..2\*\*48-1"),
        ({"sample_index": indices(0, 2**48)}, ValueError, r"sample_index must lie in"),
        ({"sample_index": indices(0)}, ValueError, r"sample_index must be \[2\]"),
        ({"sample_index": torch.zeros(2)}, TypeError, "sample_index must be int64"),
        ({"dtype": torch.int64}, TypeError, "dtype must be floating"),
        ({"shape": ()}, ValueError, r"shape must be \[N, ...\]"),
        ({"shape": (2, 2**35)}, ValueError, r"at most 2\*\*34 elements"),
    ],
)
def test_bad_arguments_are_refused(
    change: dict[str, object], error: type[Exception], sentence: str
) -> None:
    arguments = {"shape": (2, 3), "seed": 0, "sample_index": indices(0, 1)} | change
    with pytest.raises(error, match=sentence):
        philox_normal(**arguments)


def test_opcheck() -> None:
    op = torch.ops.fastdiff.philox_normal.default
    args = ([2, 3, 5], torch.tensor(7), indices(0, 1), indices(0, 4), 0, torch.float32)
    torch.library.opcheck(op, args)
