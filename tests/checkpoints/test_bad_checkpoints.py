"""A bad checkpoint is told in one sentence; a write that fails leaves the old one."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fastdiff.checkpoints import CheckpointError, Pretrained, load, save
from fastdiff.models import UNet
from fastdiff.schedules import NoiseSchedule

CONFIG: dict[str, Any] = {
    "sample_size": 4,
    "block_out_channels": (8,),
    "down_block_types": ("AttnDownBlock2D",),
    "up_block_types": ("AttnUpBlock2D",),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
UNET, BIN = "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin"
INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "model", Pretrained(UNet(**CONFIG), NoiseSchedule.linear(10)))
    return tmp_path / "model"


def edited(name: str, **changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def written(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content)  # type: ignore[return-value]


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def truncated(folder: Path) -> None:
    content = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(content[: len(content) // 2])


def as_bin(content: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / UNET).unlink()
        if isinstance(content, bytes):
            (folder / BIN).write_bytes(content)
        else:
            torch.save(content, folder / BIN)

    return write


def truncated_bin(folder: Path) -> None:
    as_bin(safetensors.torch.load_file(folder / UNET))(folder)
    content = (folder / BIN).read_bytes()
    (folder / BIN).write_bytes(content[: len(content) // 2])


def two_variants(folder: Path) -> None:
    for variant in ("ema", "fp16"):
        target = UNET.replace(".safetensors", f".{variant}.safetensors")
        (folder / target).write_bytes((folder / UNET).read_bytes())
    (folder / UNET).unlink()


def index_of(**weight_map: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / UNET).rename(folder / "model.safetensors")
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return write


def other_weights(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / UNET)
    del weights["conv_in.bias"]
    weights["extra.weight"] = torch.zeros(2)
    weights["conv_out.weight"] = torch.zeros(3, 8, 1, 1)
    safetensors.torch.save_file(weights, folder / UNET)


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no unet config": (removed("unet/config.json"), r"unet/config\.json is missing"),
    "no scheduler": (removed(SCHEDULER), r"scheduler_config\.json is missing"),
    "no weights": (removed(UNET), "holds no weights"),
    "malformed config": (written("unet/config.json", b'{"a": '), r"config\.json is not JSON"),
    "config in no encoding": (written("unet/config.json", b"\xff\xfe\x00"), "is not JSON"),
    "config is a list": (written("unet/config.json", b"[1]"), "holds a list, not a dict"),
    "malformed scheduler": (written(SCHEDULER, b"nonsense"), r"scheduler_config\.json is not JSON"),
    "another model": (edited("unet/config.json", _class_name="UNet2DConditionModel"),
                      "describes a UNet2DConditionModel"),
    "unknown key": (edited("unet/config.json", cross_attention_dim=8), "'cross_attention_dim'"),
    "unknown block": (edited("unet/config.json", down_block_types=["SkipDownBlock2D"]),
                      "'SkipDownBlock2D'"),
    "wrong type": (edited("unet/config.json", in_channels="3"), "in_channels is '3'"),
    "dropout": (edited("unet/config.json", dropout=2), "dropout"),
    "truncated safetensors": (truncated, "cannot be read as safetensors"),
    "empty safetensors": (written(UNET, b""), "cannot be read as safetensors"),
    "noise for safetensors": (written(UNET, bytes(range(256))), "cannot be read as safetensors"),
    "not a pickle": (as_bin(b"not a pickle"), "is not a plain state dict"),
    "empty bin": (as_bin(b""), "is not a plain state dict"),
    "truncated bin": (truncated_bin, "is not a plain state dict"),
    "a whole module": (as_bin(torch.nn.Linear(2, 2)), "is not a plain state dict"),
    "a list": (as_bin([torch.zeros(1)]), "other than a dict of tensors"),
    "nested": (as_bin({"state_dict": {"a": torch.zeros(1)}}), "other than a dict of tensors"),
    "two variants": (two_variants, r"several variants.*ema.*fp16"),
    "index without a map": (lambda f: (removed(UNET)(f), written(INDEX, b"{}")(f)),  # type: ignore
                            "no weight_map"),
    "index of what is not there": (index_of(a="gone.safetensors"), "gone.safetensors"),
    "index that leaves the folder": (index_of(a="../model.safetensors"), "not in its folder"),
    "other weights": (other_weights, "3 tensors differ"),
    "unknown betas": (edited(SCHEDULER, beta_schedule="karras"), "beta_schedule is 'karras'"),
    "betas out of range": (edited(SCHEDULER, trained_betas=[0.1, 2.0]), r"betas\[1\] is 2.0"),
    "betas are words": (edited(SCHEDULER, trained_betas="many"), "describes no process"),
    "no steps": (edited(SCHEDULER, num_train_timesteps=0), "describes no process"),
    "unknown prediction": (edited(SCHEDULER, prediction_type="flow"), "prediction_type 'flow'"),
    "unknown variance": (edited(SCHEDULER, variance_type="huge"), "variance_type 'huge'"),
    "thresholding": (
        edited(SCHEDULER, thresholding=True, dynamic_thresholding_ratio=3), "percentile must lie",
    ),
    "clipping": (edited(SCHEDULER, clip_sample_range="wide"), "describes no process"),
    "variance without outputs": (edited(SCHEDULER, variance_type="learned_range"),
                                 "UNet of 3 output channels.*takes 6"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_checkpoint_is_told_in_one_sentence(folder: Path, name: str) -> None:
    spoil, message = BAD[name]
    load(folder)
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    for read in (load, UNet.from_pretrained):
        with pytest.raises(CheckpointError, match="nowhere is not a folder"):
            read(tmp_path / "nowhere")


def test_differing_weights_are_named_with_their_shapes(folder: Path) -> None:
    other_weights(folder)
    with pytest.raises(CheckpointError) as caught:
        UNet.from_pretrained(folder)
    for part in (
        "conv_in.bias is missing, expected [8]",
        "conv_out.weight is [3, 8, 1, 1], expected [3, 8, 3, 3]",
        "extra.weight is [2], expected nothing",
    ):
        assert part in str(caught.value)


class Bomb:
    """A pickle that writes a file when it is read as pickles usually are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "boom")


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_hostile_pickle_is_refused_and_not_run(
    folder: Path, tmp_path: Path, wrapped: bool
) -> None:
    trace = tmp_path / "trace"
    bomb = Bomb(trace)
    pickle.loads(pickle.dumps(bomb))
    assert trace.exists()  # it would go off
    trace.unlink()
    as_bin({"conv_in.weight": bomb} if wrapped else pickle.dumps(bomb))(folder)
    with pytest.raises(CheckpointError, match="which fastdiff refuses"):
        load(folder)
    assert not trace.exists()


def test_the_message_names_the_file(folder: Path) -> None:
    edited(SCHEDULER, variance_type="huge")(folder)
    with pytest.raises(CheckpointError, match=re.escape(str(folder / SCHEDULER))):
        load(folder)


def test_a_prediction_that_diffusers_cannot_name_is_refused(tmp_path: Path) -> None:
    pretrained = Pretrained(UNet(**CONFIG), NoiseSchedule.linear(10), "posterior_mean")
    with pytest.raises(CheckpointError, match="'posterior_mean'"):
        save(tmp_path / "model", pretrained)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_fails_half_way_leaves_the_old_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def half_written(weights: object, path: Path, metadata: object = None) -> None:
        Path(path).write_bytes(before[folder / UNET][:100])
        raise failure

    monkeypatch.setattr(safetensors.torch, "save_file", half_written)
    with pytest.raises(type(failure)):
        save(folder, Pretrained(UNet(**CONFIG), NoiseSchedule.cosine(10)))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
