"""Training losses of the DDPM papers."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastdiff import ops
from fastdiff.diffusion import noising_table
from fastdiff.schedules import NoiseSchedule


def simple_loss(
    model: Callable[..., Tensor],
    x_start: Tensor,
    t: Tensor,
    noise: Tensor | None = None,
    *,
    schedule: NoiseSchedule,
    prediction_type: str = "epsilon",
    class_labels: Tensor | None = None,
    seed: int | Tensor = 0,
    sample_index: Tensor | None = None,
    draw: int | Tensor = 0,
    stream: int = 0,
) -> Tensor:
    """L_simple of each sample: the mean squared error of what the model predicts.

    Ho et al. 2020, equation 14, for epsilon; the same with another target for the
    other prediction types.

    Args:
        model: called as ``model(x_t, t)``, or ``model(x_t, t, class_labels=...)``.
        x_start: clean images, ``[N, C, H, W]`` in [-1, 1].
        t: timesteps, ``[N]`` int64 in [0, T-1].
        noise: standard normal, like ``x_start``; None draws it as x_t is made, the normals of
            ``ops.philox_normal`` for seed, sample_index, draw and stream.
        prediction_type: "epsilon", "x_start", "v" or "posterior_mean".
        class_labels: ``[N]`` int64, or None.
        seed, sample_index, draw, stream: as for ``ops.philox_normal``.

    Returns:
        ``[N]`` float32.

    Raises:
        ValueError: when a shape, a timestep or the prediction type is wrong, noise and
            sample_index are both None, or the model's output is not shaped like ``x_start``.
    """
    x_t, _, target = ops.q_sample(
        x_start,
        t,
        noising_table(schedule, x_start.device, prediction_type),
        noise=noise,
        seed=seed,
        sample_index=sample_index,
        draw=draw,
        stream=stream,
        return_target=True,
    )
    assert target is not None
    given = {} if class_labels is None else {"class_labels": class_labels}
    output = model(x_t, t, **given)
    if output.shape != target.shape:
        raise ValueError(
            f"the model returned {list(output.shape)} where L_simple needs {list(target.shape)}; "
            "a model with learned variances needs the hybrid loss"
        )
    return (output.float() - target.float()).square().flatten(1).mean(1)
