"""Timestep samplers: unbiased, warmed up evenly, and where they were after a restart."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.timestep_samplers import LossSecondMoment, UniformTimesteps

T, HISTORY = 6, 3


def warmed_up(scale: np.ndarray) -> LossSecondMoment:
    """After HISTORY rounds of losses `scale` times 1, 2, 3."""
    sampler = LossSecondMoment(len(scale), HISTORY)
    for k in range(1, HISTORY + 1):
        assert not sampler.warmed_up
        np.testing.assert_array_equal(sampler.probabilities(), 1 / len(scale))
        sampler.update(np.arange(len(scale)), k * scale)
    return sampler


def test_uniform() -> None:
    t, weights = UniformTimesteps(T).sample(60_000, np.random.default_rng(0))
    assert t.dtype == np.int64 and (weights == 1).all()
    counts = np.bincount(t, minlength=T)
    assert abs(counts - 10_000).max() < 5 * np.sqrt(10_000)


def test_probabilities_are_the_papers() -> None:
    scale = np.array([8.0, 4.0, 2.0, 1.0, 0.5, 0.25])
    p = warmed_up(scale).probabilities()
    root_mean_squares = scale * np.sqrt((1 + 4 + 9) / 3)
    expected = 0.999 * root_mean_squares / root_mean_squares.sum() + 0.001 / T
    np.testing.assert_allclose(p, expected, rtol=1e-12)
    assert p.sum() == pytest.approx(1, abs=1e-15)


def test_importance_sampling_is_unbiased_and_steadier() -> None:
    """A loss like L_vlb's: large at few timesteps."""
    scale = np.exp(-np.arange(50) / 4.0)
    sampler, even = warmed_up(scale), UniformTimesteps(50)
    generator = np.random.default_rng(0)
    estimates = {}
    for name, made in (("even", even), ("importance", sampler)):
        drawn = [made.sample(8, generator) for _ in range(4000)]
        estimates[name] = np.array([(weights * scale[t]).mean() for t, weights in drawn])
    for found in estimates.values():
        error = found.std() / np.sqrt(len(found))
        assert abs(found.mean() - scale.mean()) < 4 * error
    assert estimates["importance"].std() < 0.1 * estimates["even"].std()


@settings(deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, T - 1), st.floats(0, 1e6) | st.sampled_from([np.nan, np.inf])),
            max_size=12,
        ),
        max_size=6,
    )
)
def test_each_timestep_keeps_its_last_losses(batches: list[list[tuple[int, float]]]) -> None:
    """Against a queue a timestep, one loss at a time; batches hold the same t more than once."""
    sampler = LossSecondMoment(T, HISTORY)
    queues = [deque[float](maxlen=HISTORY) for _ in range(T)]
    counts = [0] * T
    for batch in batches:
        sampler.update([t for t, _ in batch], [loss for _, loss in batch])
        for t, loss in batch:
            if np.isfinite(loss):
                queues[t].append(loss)
                counts[t] += 1
    state = sampler.state()
    assert state["counts"].tolist() == counts
    for kept, queue in zip(state["losses"], queues, strict=True):
        assert sorted(kept) == sorted([*queue, *[0.0] * (HISTORY - len(queue))])


def test_a_restart_goes_on_to_the_bit() -> None:
    def go_on(sampler: LossSecondMoment) -> list[np.ndarray]:
        drawn = []
        for step in range(20):
            t, weights = sampler.sample(16, np.random.default_rng(step))
            sampler.update(t, np.sin(t + step) ** 2)
            drawn += [t, weights]
        return drawn

    unbroken = warmed_up(np.arange(1.0, 7))
    state = {name: array.copy() for name, array in unbroken.state().items()}
    restarted = LossSecondMoment(T, HISTORY)
    restarted.load_state(state)
    for a, b in zip(go_on(unbroken), go_on(restarted), strict=True):
        np.testing.assert_array_equal(a, b)


def test_losses_of_zero_leave_it_even() -> None:
    np.testing.assert_array_equal(warmed_up(np.zeros(4)).probabilities(), 0.25)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        UniformTimesteps(0)
    with pytest.raises(ValueError, match="uniform_share in"):
        LossSecondMoment(4, uniform_share=0)
    sampler = LossSecondMoment(4)
    with pytest.raises(ValueError, match=r"0\.\.3, got 0\.\.4"):
        sampler.update([0, 4], [1, 1])
    with pytest.raises(ValueError, match=r"\[2\] and \[3\]"):
        sampler.update([0, 1], [1, 1, 1])
    with pytest.raises(ValueError, match="another sampler or number of timesteps"):
        sampler.load_state(LossSecondMoment(5).state())
    with pytest.raises(ValueError, match="holds nothing"):
        UniformTimesteps(4).load_state(sampler.state())
