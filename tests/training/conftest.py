"""A tiny data set and the settings of a tiny run."""

import numpy as np
import pytest

from fastdiff.training import TrainConfig


@pytest.fixture
def config(tmp_path):
    generator = np.random.default_rng(0)
    labels = np.arange(24) % 3
    images = np.clip(labels[:, None, None] * 90 + generator.integers(0, 60, (24, 8, 8)), 0, 255)
    np.savez(tmp_path / "data.npz", images=images.astype(np.uint8), labels=labels)
    return TrainConfig(
        data=str(tmp_path / "data.npz"),
        steps=6,
        batch_size=4,
        hold_out=4,
        learning_rate=1e-3,
        warmup_steps=3,
        ema_decays=(0.9,),
        timesteps=20,
        channels=8,
        multipliers=(1, 2),
        blocks=1,
        attention_resolutions=(4,),
        groups=4,
        dropout=0.1,
    )
