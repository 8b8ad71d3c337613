"""As much of guided-diffusion's script_util as a sampling script of flags needs."""

from __future__ import annotations

from .gaussian_diffusion import Diffusion, named_betas, spaced
from .unet import UNetModel


def model_and_diffusion_defaults():
    return {
        "image_size": 64, "num_channels": 128, "num_res_blocks": 2, "num_heads": 4,
        "num_heads_upsample": -1, "num_head_channels": -1, "attention_resolutions": "16,8",
        "channel_mult": "", "dropout": 0.0, "class_cond": False, "use_checkpoint": False,
        "use_scale_shift_norm": True, "resblock_updown": False, "use_fp16": False,
        "use_new_attention_order": False, "learn_sigma": False, "diffusion_steps": 1000,
        "noise_schedule": "linear", "timestep_respacing": "", "use_kl": False,
        "predict_xstart": False, "rescale_timesteps": False, "rescale_learned_sigmas": False,
    }  # fmt: skip


def add_dict_to_argparser(parser, defaults):
    for name, default in defaults.items():
        read = (lambda text: text == "True") if isinstance(default, bool) else type(default)
        parser.add_argument(f"--{name}", default=default, type=read)


def args_to_dict(args, keys):
    return {key: getattr(args, key) for key in keys}


class SpacedDiffusion(Diffusion):
    """The loops by the original's keywords."""

    def p_sample_loop(self, model, shape, clip_denoised=True, model_kwargs=None):
        return super().p_sample_loop(model, shape, clip=clip_denoised, kwargs=model_kwargs)

    def ddim_sample_loop(self, model, shape, clip_denoised=True, model_kwargs=None):
        return super().ddim_sample_loop(model, shape, clip=clip_denoised, kwargs=model_kwargs)


def create_model_and_diffusion(**flags):
    model = UNetModel(
        model_channels=flags["num_channels"],
        out_channels=6 if flags["learn_sigma"] else 3,
        num_res_blocks=flags["num_res_blocks"],
        attention_resolutions=[
            flags["image_size"] // int(r) for r in flags["attention_resolutions"].split(",")
        ],
        channel_mult=[int(m) for m in flags["channel_mult"].split(",")],
        num_classes=1000 if flags["class_cond"] else None,
        num_heads=flags["num_heads"],
        num_head_channels=flags["num_head_channels"],
        use_scale_shift_norm=flags["use_scale_shift_norm"],
        resblock_updown=flags["resblock_updown"],
        use_new_attention_order=flags["use_new_attention_order"],
    )
    steps = flags["diffusion_steps"]
    diffusion = SpacedDiffusion(
        named_betas(flags["noise_schedule"], steps),
        mean="START_X" if flags["predict_xstart"] else "EPSILON",
        var="LEARNED_RANGE" if flags["learn_sigma"] else "FIXED_LARGE",
        rescale=flags["rescale_timesteps"],
        use=spaced(steps, flags["timestep_respacing"] or [steps]),
    )
    return model, diffusion
