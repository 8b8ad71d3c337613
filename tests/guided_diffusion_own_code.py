"""fastdiff.compat.guided_diffusion beside OpenAI's own code: names, signatures and numbers.

git clone https://github.com/openai/guided-diffusion build/guided-diffusion
python tests/guided_diffusion_own_code.py build/guided-diffusion

The tests compare with a restatement of that code, for it is not on PyPI; this, with itself. Prints
what differs in names, and the largest error of each result as a part of the result's largest.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np
import torch

MODULES = ("gaussian_diffusion", "respace", "resample", "losses", "nn", "script_util", "unet")
SMALL = {"image_size": 32, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2",
         "attention_resolutions": "16"}  # fmt: skip
FLAGS: list[dict[str, Any]] = [
    {},
    {"learn_sigma": True, "class_cond": True, "noise_schedule": "cosine"},
    {"resblock_updown": True, "use_new_attention_order": True, "num_head_channels": 32},
    {"use_scale_shift_norm": False, "predict_xstart": True},
    {"learn_sigma": True, "use_kl": True},
    {"learn_sigma": True, "rescale_timesteps": True, "diffusion_steps": 4000,
     "noise_schedule": "cosine", "rescale_learned_sigmas": True},
]  # fmt: skip
worst: dict[str, float] = defaultdict(float)


def theirs(module: str) -> Any:
    return import_module(f"guided_diffusion.{module}")


def ours(module: str) -> Any:
    return import_module(f"fastdiff.compat.guided_diffusion.{module}")


def differing_names() -> Iterator[str]:
    for module in MODULES:
        for name, original in vars(theirs(module)).items():
            if name.startswith("_") or getattr(original, "__module__", "") != (
                f"guided_diffusion.{module}"
            ):
                continue
            found = getattr(ours(module), name, None)
            pairs = [(name, original, found)]
            if inspect.isclass(original) and found is not None:
                pairs += [
                    (f"{name}.{method}", code, getattr(found, method, None))
                    for method, code in vars(original).items()
                    if inspect.isfunction(code)
                ]
            for what, a, b in pairs:
                if b is None:
                    yield f"{module}.{what} is missing"
                elif signature(a) != signature(b):
                    yield f"{module}.{what} takes {inspect.signature(b)}"


def signature(function: Any) -> list[tuple[Any, ...]]:
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters]


def compare(name: str, call: Callable[[Any, Any], Any], sides: tuple[Any, Any]) -> None:
    """Call with each side's (model, diffusion), with the same noise."""
    results = []
    for side in sides:
        torch.manual_seed(4)
        with torch.no_grad():
            result = call(*side)
        results.append(result if isinstance(result, dict) else {"": result})
    for key, expected in results[1].items():
        error = (results[0][key] - expected).abs().max() / expected.abs().max()
        worst[f"{name} {key}"] = max(worst[f"{name} {key}"], float(error))


def shaken(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            spread = 0.3 if p.ndim == 1 else p[0].numel() ** -0.5
            p.copy_(spread * torch.randn(p.shape, generator=generator))
    return model.eval()


def made(create: str, flags: dict[str, Any]) -> tuple[Any, Any]:
    """(model, diffusion) of each side, with the same weights."""
    fast, original = (getattr(side("script_util"), create)(**flags) for side in (ours, theirs))
    fast[0].load_state_dict(shaken(original[0]).state_dict())
    return (fast[0].eval(), fast[1]), original


def processes(flags: dict[str, Any], respacing: str) -> None:
    defaults = theirs("script_util").model_and_diffusion_defaults()
    assert defaults == ours("script_util").model_and_diffusion_defaults()
    sides = made(
        "create_model_and_diffusion", defaults | SMALL | flags | {"timestep_respacing": respacing}
    )
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    T = sides[1][1].num_timesteps
    t = torch.tensor([T // 4, T - 1])  # near 0 its float32 loses digits in epsilon from x_0
    labels = {"y": torch.tensor([3, 7])} if flags.get("class_cond") else {}
    rest = {"model_kwargs": labels}
    guide: list[Any] = [None, lambda x, t, **_: -0.1 * x]
    compare("model", lambda m, d: m(x, t, **labels), sides)
    for cond_fn in guide:
        kind = "guided " if cond_fn else ""
        step = rest | {"cond_fn": cond_fn}
        compare(f"{kind}p_sample", lambda m, d, s=step: d.p_sample(m, x, t, **s), sides)
        compare(f"{kind}ddim_sample", lambda m, d, s=step: d.ddim_sample(m, x, t, eta=0.5, **s),
                sides)  # fmt: skip
    compare("ddim_reverse_sample", lambda m, d: d.ddim_reverse_sample(m, x, t, **rest), sides)
    image = x.clamp(-1, 1)
    compare("training_losses", lambda m, d: d.training_losses(m, image, t, **rest), sides)
    if respacing:
        for loop in ("p_sample_loop", "ddim_sample_loop"):
            compare(loop, lambda m, d, n=loop: getattr(d, n)(m, x.shape, **rest), sides)
        compare("calc_bpd_loop", lambda m, d: d.calc_bpd_loop(m, image, **rest), sides)


def other_models() -> None:
    x, small, t = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 16, 16), torch.tensor([5])
    flags = theirs("script_util").sr_model_and_diffusion_defaults()
    assert flags == ours("script_util").sr_model_and_diffusion_defaults()
    flags |= {"large_size": 64, "small_size": 16, "num_channels": 32, "num_res_blocks": 1}
    sides = made("sr_create_model_and_diffusion", flags)
    compare("SuperResModel", lambda m, d: m(x, t, low_res=small), sides)
    flags = theirs("script_util").classifier_and_diffusion_defaults()
    assert flags == ours("script_util").classifier_and_diffusion_defaults()
    for pool in ("adaptive", "attention", "spatial", "spatial_v2"):
        flags |= {"classifier_width": 64, "classifier_depth": 1, "classifier_pool": pool}
        sides = made("create_classifier_and_diffusion", flags)
        compare("EncoderUNetModel", lambda m, d: m(x, t), sides)


def main(checkout: str) -> None:
    np.int = int  # type: ignore[attr-defined]  # which its importance sampler still asks for
    for absent in ("blobfile", "mpi4py"):
        sys.modules.setdefault(absent, types.ModuleType(absent))
    sys.modules["mpi4py"].MPI = None  # type: ignore[attr-defined]
    sys.path.insert(0, checkout)
    for line in differing_names():
        print(line)
    for flags in FLAGS:
        for respacing in ("", "7", "ddim5"):
            processes(flags, respacing)
    other_models()
    for name, error in worst.items():
        print(f"{error:.1e}  {name.strip()}")
    assert max(worst.values()) < 1e-4


if __name__ == "__main__":
    main(sys.argv[1])
