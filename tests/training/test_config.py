"""Settings are read back as they were written, and bad ones named."""

import dataclasses

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fastdiff.training import TrainConfig


@given(
    decays=st.lists(st.floats(0, 0.9999), min_size=1, max_size=3, unique=True),
    rate=st.floats(1e-12, 10),
    attention=st.lists(st.integers(1, 512)),
    data=st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1),
)
def test_settings_come_back_from_yaml(tmp_path_factory, decays, rate, attention, data):
    config = TrainConfig(
        data=data, ema_decays=tuple(decays), learning_rate=rate,
        attention_resolutions=tuple(attention), horizontal_flips=True,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    config.save(path)
    assert TrainConfig.load(path) == config


def test_a_rate_without_a_point_is_a_number(tmp_path):
    (tmp_path / "a.yaml").write_text("data: x\nlearning_rate: 1e-4\nema_decays: [1e-1, 0.5]\n")
    config = TrainConfig.load(tmp_path / "a.yaml")
    assert config.learning_rate == 1e-4 and config.ema_decays == (0.1, 0.5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: x\nstepz: 3", "stepz"),
        ("just a text", "no settings"),
        ("data: [", "a.yaml"),
        ("steps: 3", "data"),
        ("data: x\nsteps: many", "steps is 'many'"),
        ("data: x\nsteps: 1.5", "steps is 1.5"),
        ("data: x\nsteps: true", "steps is True"),
        ("data: x\nmultipliers: 2", "multipliers is 2"),
        ("data: x\ncompile: 1", "compile is 1"),
        ("data: x\nseed: !!python/object/apply:os.getpid []", "a.yaml"),
    ],
)
def test_a_bad_file_is_named_in_one_sentence(tmp_path, text, words):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"a\.yaml|is ") as raised:
        TrainConfig.load(tmp_path / "a.yaml")
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steps": 0}, "steps"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"ema_decays": (1.0,)}, "ema_decays"),
        ({"ema_decays": ()}, "ema_decays"),
        ({"ema_decays": (0.5, 0.5)}, "ema_decays"),
        ({"dropout": 1.0}, "dropout"),
        ({"label_dropout": 1.5}, "label_dropout"),
        ({"schedule": "sine"}, "schedule"),
        ({"precision": "f8"}, "precision"),
        ({"variance_type": "learned_range"}, "objective hybrid or vlb"),
        ({"objective": "hybrid"}, "learned_range"),
        ({"label_dropout": 0.1, "class_conditional": False}, "label_dropout"),
    ],
)
def test_bad_settings_are_named(changed, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(TrainConfig("data"), **changed)


def test_the_file_is_read_by_people(tmp_path):
    TrainConfig("x").save(tmp_path / "a.yaml")
    text = (tmp_path / "a.yaml").read_text()
    assert "multipliers: [1, 2, 2, 2]" in text
    assert list(yaml.safe_load(text)) == [f.name for f in dataclasses.fields(TrainConfig)]
