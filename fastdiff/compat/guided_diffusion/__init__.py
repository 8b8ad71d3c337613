"""OpenAI's guided-diffusion by its own names, over fastdiff's own parts; no MPI, no blobfile.

Modules: gaussian_diffusion, respace, resample, losses, nn, script_util, unet.
"""
