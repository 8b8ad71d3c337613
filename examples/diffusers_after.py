"""Images from a model in diffusers' format, by fastdiff's scheduler.

python examples/diffusers_after.py path/to/model samples.png
"""

import argparse

import torch
from diffusers import DDIMPipeline
from fastdiff import DDIMScheduler
from diffusers.utils import make_image_grid

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("out")
parser.add_argument("--num", type=int, default=4)
parser.add_argument("--steps", type=int, default=50)
args = parser.parse_args()

pipe = DDIMPipeline.from_pretrained(args.model)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
images = pipe(
    batch_size=args.num, num_inference_steps=args.steps, generator=torch.manual_seed(0)
).images
make_image_grid(images, rows=1, cols=args.num).save(args.out)
