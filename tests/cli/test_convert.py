"""``fastdiff convert``."""

import torch

from fastdiff import checkpoints
from tests.restated.guided_diffusion.unet import UNetModel
from tests.restated.weights import shaken


def test_from_guided_diffusion_and_back(fastdiff, tmp_path):
    model = shaken(UNetModel(num_heads=2, use_scale_shift_norm=True))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    there = fastdiff(
        "convert", tmp_path / "model.pt", tmp_path / "folder", "--to", "diffusers",
        "--image-size", 16, "--heads", 2, "--schedule", "linear",
    )  # fmt: skip
    assert there.status == 0, there.err
    assert checkpoints.load(tmp_path / "folder").sample_shape == (3, 16, 16)
    back = fastdiff("convert", tmp_path / "folder", tmp_path / "b.pt", "--to", "guided-diffusion")
    assert back.status == 0, back.err
    for flag in ("--image_size 16", "--num_channels 32", "--channel_mult 1,2",
                 "--attention_resolutions 8", "--num_head_channels 32",
                 "--noise_schedule linear"):  # fmt: skip
        assert flag in back.out
    weights = torch.load(tmp_path / "b.pt", weights_only=True)
    assert all(torch.equal(weights[name], t) for name, t in model.state_dict().items())


def test_what_is_missing_is_one_sentence(fastdiff, tmp_path):
    torch.save(UNetModel().state_dict(), tmp_path / "model.pt")
    outcome = fastdiff("convert", tmp_path / "model.pt", tmp_path / "new", "--to", "diffusers")
    assert outcome.status == 2 and "give num_heads or num_head_channels" in outcome.err
    assert outcome.err.count("\n") == 1 and not (tmp_path / "new").exists()
