"""guided_diffusion.script_util: models and processes from the flags of its scripts."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from fastdiff.compat.guided_diffusion import gaussian_diffusion as gd
from fastdiff.compat.guided_diffusion.respace import SpacedDiffusion, space_timesteps
from fastdiff.compat.guided_diffusion.unet import EncoderUNetModel, SuperResModel, UNetModel

NUM_CLASSES = 1000
_MULTIPLIERS = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}
_SUPER_RES_MULTIPLIERS = {512: (1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 64: (1, 2, 3, 4)}


def diffusion_defaults() -> dict[str, Any]:
    """Flags of the process."""
    return {
        "learn_sigma": False,
        "diffusion_steps": 1000,
        "noise_schedule": "linear",
        "timestep_respacing": "",
        "use_kl": False,
        "predict_xstart": False,
        "rescale_timesteps": False,
        "rescale_learned_sigmas": False,
    }


def classifier_defaults() -> dict[str, Any]:
    """Flags of the classifier."""
    return {
        "image_size": 64,
        "classifier_use_fp16": False,
        "classifier_width": 128,
        "classifier_depth": 2,
        "classifier_attention_resolutions": "32,16,8",
        "classifier_use_scale_shift_norm": True,
        "classifier_resblock_updown": True,
        "classifier_pool": "attention",
    }


def model_and_diffusion_defaults() -> dict[str, Any]:
    """Flags of the model and the process."""
    return {
        "image_size": 64,
        "num_channels": 128,
        "num_res_blocks": 2,
        "num_heads": 4,
        "num_heads_upsample": -1,
        "num_head_channels": -1,
        "attention_resolutions": "16,8",
        "channel_mult": "",
        "dropout": 0.0,
        "class_cond": False,
        "use_checkpoint": False,
        "use_scale_shift_norm": True,
        "resblock_updown": False,
        "use_fp16": False,
        "use_new_attention_order": False,
        **diffusion_defaults(),
    }


def classifier_and_diffusion_defaults() -> dict[str, Any]:
    """Flags of the classifier and the process."""
    return classifier_defaults() | diffusion_defaults()


def sr_model_and_diffusion_defaults() -> dict[str, Any]:
    """Flags of the super-resolution model and the process."""
    known = inspect.signature(sr_create_model_and_diffusion).parameters
    flags = model_and_diffusion_defaults() | {"large_size": 256, "small_size": 64}
    return {name: value for name, value in flags.items() if name in known}


def create_model_and_diffusion(
    image_size: int,
    class_cond: bool,
    learn_sigma: bool,
    num_channels: int,
    num_res_blocks: int,
    channel_mult: str,
    num_heads: int,
    num_head_channels: int,
    num_heads_upsample: int,
    attention_resolutions: str,
    dropout: float,
    diffusion_steps: int,
    noise_schedule: str,
    timestep_respacing: str,
    use_kl: bool,
    predict_xstart: bool,
    rescale_timesteps: bool,
    rescale_learned_sigmas: bool,
    use_checkpoint: bool,
    use_scale_shift_norm: bool,
    resblock_updown: bool,
    use_fp16: bool,
    use_new_attention_order: bool,
) -> tuple[UNetModel, SpacedDiffusion]:
    """The model and the process of flags."""
    given = locals()
    return create_model(**_of(given, create_model)), _diffusion(given)


def create_model(
    image_size: int,
    num_channels: int,
    num_res_blocks: int,
    channel_mult: str = "",
    learn_sigma: bool = False,
    class_cond: bool = False,
    use_checkpoint: bool = False,
    attention_resolutions: str = "16",
    num_heads: int = 1,
    num_head_channels: int = -1,
    num_heads_upsample: int = -1,
    use_scale_shift_norm: bool = False,
    dropout: float = 0,
    resblock_updown: bool = False,
    use_fp16: bool = False,
    use_new_attention_order: bool = False,
) -> UNetModel:
    """The model of flags; ValueError for an image size without multipliers of its own."""
    multipliers = (
        tuple(float(m) for m in channel_mult.split(","))
        if channel_mult
        else _multipliers(image_size, _MULTIPLIERS, "image size")
    )
    return UNetModel(
        image_size=image_size,
        in_channels=3,
        model_channels=num_channels,
        out_channels=6 if learn_sigma else 3,
        num_res_blocks=num_res_blocks,
        attention_resolutions=_rates(image_size, attention_resolutions),
        dropout=dropout,
        channel_mult=multipliers,
        num_classes=NUM_CLASSES if class_cond else None,
        use_checkpoint=use_checkpoint,
        use_fp16=use_fp16,
        num_heads=num_heads,
        num_head_channels=num_head_channels,
        num_heads_upsample=num_heads_upsample,
        use_scale_shift_norm=use_scale_shift_norm,
        resblock_updown=resblock_updown,
        use_new_attention_order=use_new_attention_order,
    )


def create_classifier_and_diffusion(
    image_size: int,
    classifier_use_fp16: bool,
    classifier_width: int,
    classifier_depth: int,
    classifier_attention_resolutions: str,
    classifier_use_scale_shift_norm: bool,
    classifier_resblock_updown: bool,
    classifier_pool: str,
    learn_sigma: bool,
    diffusion_steps: int,
    noise_schedule: str,
    timestep_respacing: str,
    use_kl: bool,
    predict_xstart: bool,
    rescale_timesteps: bool,
    rescale_learned_sigmas: bool,
) -> tuple[EncoderUNetModel, SpacedDiffusion]:
    """The classifier and the process of flags."""
    given = locals()
    return create_classifier(**_of(given, create_classifier)), _diffusion(given)


def create_classifier(
    image_size: int,
    classifier_use_fp16: bool,
    classifier_width: int,
    classifier_depth: int,
    classifier_attention_resolutions: str,
    classifier_use_scale_shift_norm: bool,
    classifier_resblock_updown: bool,
    classifier_pool: str,
) -> EncoderUNetModel:
    """The classifier of flags, of 1000 classes."""
    return EncoderUNetModel(
        image_size=image_size,
        in_channels=3,
        model_channels=classifier_width,
        out_channels=NUM_CLASSES,
        num_res_blocks=classifier_depth,
        attention_resolutions=_rates(image_size, classifier_attention_resolutions),
        channel_mult=_multipliers(image_size, _MULTIPLIERS, "image size"),
        use_fp16=classifier_use_fp16,
        num_head_channels=64,
        use_scale_shift_norm=classifier_use_scale_shift_norm,
        resblock_updown=classifier_resblock_updown,
        pool=classifier_pool,
    )


def sr_create_model_and_diffusion(
    large_size: int,
    small_size: int,
    class_cond: bool,
    learn_sigma: bool,
    num_channels: int,
    num_res_blocks: int,
    num_heads: int,
    num_head_channels: int,
    num_heads_upsample: int,
    attention_resolutions: str,
    dropout: float,
    diffusion_steps: int,
    noise_schedule: str,
    timestep_respacing: str,
    use_kl: bool,
    predict_xstart: bool,
    rescale_timesteps: bool,
    rescale_learned_sigmas: bool,
    use_checkpoint: bool,
    use_scale_shift_norm: bool,
    resblock_updown: bool,
    use_fp16: bool,
) -> tuple[SuperResModel, SpacedDiffusion]:
    """The super-resolution model and the process of flags."""
    given = locals()
    return sr_create_model(**_of(given, sr_create_model)), _diffusion(given)


def sr_create_model(
    large_size: int,
    small_size: int,
    num_channels: int,
    num_res_blocks: int,
    learn_sigma: bool,
    class_cond: bool,
    use_checkpoint: bool,
    attention_resolutions: str,
    num_heads: int,
    num_head_channels: int,
    num_heads_upsample: int,
    use_scale_shift_norm: bool,
    dropout: float,
    resblock_updown: bool,
    use_fp16: bool,
) -> SuperResModel:
    """The super-resolution model of flags; small_size plays no part in it."""
    return SuperResModel(
        image_size=large_size,
        in_channels=3,
        model_channels=num_channels,
        out_channels=6 if learn_sigma else 3,
        num_res_blocks=num_res_blocks,
        attention_resolutions=_rates(large_size, attention_resolutions),
        dropout=dropout,
        channel_mult=_multipliers(large_size, _SUPER_RES_MULTIPLIERS, "large size"),
        num_classes=NUM_CLASSES if class_cond else None,
        use_checkpoint=use_checkpoint,
        num_heads=num_heads,
        num_head_channels=num_head_channels,
        num_heads_upsample=num_heads_upsample,
        use_scale_shift_norm=use_scale_shift_norm,
        resblock_updown=resblock_updown,
        use_fp16=use_fp16,
    )


def create_gaussian_diffusion(
    *,
    steps: int = 1000,
    learn_sigma: bool = False,
    sigma_small: bool = False,
    noise_schedule: str = "linear",
    use_kl: bool = False,
    predict_xstart: bool = False,
    rescale_timesteps: bool = False,
    rescale_learned_sigmas: bool = False,
    timestep_respacing: str | list[int] = "",
) -> SpacedDiffusion:
    """The process of flags."""
    fixed = gd.ModelVarType.FIXED_SMALL if sigma_small else gd.ModelVarType.FIXED_LARGE
    loss_type = gd.LossType.RESCALED_MSE if rescale_learned_sigmas else gd.LossType.MSE
    return SpacedDiffusion(
        use_timesteps=space_timesteps(steps, timestep_respacing or [steps]),
        betas=gd.get_named_beta_schedule(noise_schedule, steps),
        model_mean_type=gd.ModelMeanType.START_X if predict_xstart else gd.ModelMeanType.EPSILON,
        model_var_type=gd.ModelVarType.LEARNED_RANGE if learn_sigma else fixed,
        loss_type=gd.LossType.RESCALED_KL if use_kl else loss_type,
        rescale_timesteps=rescale_timesteps,
    )


def add_dict_to_argparser(parser: argparse.ArgumentParser, default_dict: Mapping[str, Any]) -> None:
    """An option for each entry, of the type of its default."""
    for name, default in default_dict.items():
        kind: Any = str if default is None else type(default)
        parser.add_argument(
            f"--{name}", default=default, type=str2bool if isinstance(default, bool) else kind
        )


def args_to_dict(args: argparse.Namespace, keys: Iterable[str]) -> dict[str, Any]:
    """The named attributes of args."""
    return {key: getattr(args, key) for key in keys}


def str2bool(v: str | bool) -> bool:
    """Yes or no as people write it; ArgumentTypeError for anything else."""
    if isinstance(v, bool):
        return v
    if v.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if v.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{v!r} is neither yes nor no")


def _diffusion(flags: Mapping[str, Any]) -> SpacedDiffusion:
    known = _of(flags, create_gaussian_diffusion)
    return create_gaussian_diffusion(steps=flags["diffusion_steps"], **known)


def _of(flags: Mapping[str, Any], function: Any) -> dict[str, Any]:
    """Those flags that the function takes."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in flags.items() if name in known}


def _rates(size: int, resolutions: str) -> tuple[int, ...]:
    return tuple(size // int(resolution) for resolution in resolutions.split(","))


def _multipliers(size: int, table: Mapping[int, tuple[float, ...]], what: str) -> tuple[float, ...]:
    if size not in table:
        raise ValueError(
            f"unsupported {what}: {size}; there are multipliers for "
            f"{', '.join(map(str, sorted(table)))}."
        )
    return table[size]
