"""Images from a guided-diffusion checkpoint, by fastdiff.

python examples/guided_diffusion_after.py --model_path model.pt --num_channels 192 ...
"""

import argparse

import numpy as np
import torch
from fastdiff.compat.guided_diffusion.script_util import (
    add_dict_to_argparser,
    args_to_dict,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)

parser = argparse.ArgumentParser()
script = {"model_path": "", "out": "samples.npz", "num": 4, "use_ddim": False, "seed": 0}
add_dict_to_argparser(parser, script | model_and_diffusion_defaults())
args = parser.parse_args()

model, diffusion = create_model_and_diffusion(
    **args_to_dict(args, model_and_diffusion_defaults().keys())
)
model.load_state_dict(torch.load(args.model_path, map_location="cpu", weights_only=True))
model.eval()

torch.manual_seed(args.seed)
labels = {"y": torch.randint(1000, (args.num,))} if args.class_cond else {}
loop = diffusion.ddim_sample_loop if args.use_ddim else diffusion.p_sample_loop
images = loop(
    model,
    (args.num, 3, args.image_size, args.image_size),
    clip_denoised=True,
    model_kwargs=labels,
)
images = ((images + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
np.savez(args.out, images.numpy())
