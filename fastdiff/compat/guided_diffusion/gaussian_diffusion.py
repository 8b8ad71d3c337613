"""guided_diffusion.gaussian_diffusion: the process, by its names, over fastdiff's own parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fastdiff import diffusion, losses
from fastdiff.compat.guided_diffusion._fused import FusedSteps
from fastdiff.compat.guided_diffusion._kinds import (
    PREDICTIONS,
    Array,
    LossType,
    ModelMeanType,
    ModelVarType,
    betas_for_alpha_bar,
    get_named_beta_schedule,
)
from fastdiff.compat.guided_diffusion._loops import SamplingLoops
from fastdiff.compat.guided_diffusion.nn import mean_flat
from fastdiff.schedules import NoiseSchedule

__all__ = [
    "GaussianDiffusion",
    "LossType",
    "ModelMeanType",
    "ModelVarType",
    "betas_for_alpha_bar",
    "get_named_beta_schedule",
]

Function = Callable[..., Any]


class GaussianDiffusion(SamplingLoops):
    """A diffusion process: training losses, sampling, the variational bound.

    Args:
        betas: [T].
        model_mean_type, model_var_type, loss_type: the enums above.
        rescale_timesteps: whether models are told t * 1000 / T, in float32.

    The numpy float64 attributes are those of the original; `schedule` is fastdiff's.
    """

    def __init__(
        self,
        *,
        betas: ArrayLike,
        model_mean_type: ModelMeanType,
        model_var_type: ModelVarType,
        loss_type: LossType,
        rescale_timesteps: bool = False,
    ) -> None:
        self.model_mean_type = model_mean_type
        self.model_var_type = model_var_type
        self.loss_type = loss_type
        self.rescale_timesteps = rescale_timesteps
        self.schedule = schedule = NoiseSchedule.from_betas(betas)
        self.num_timesteps = schedule.num_timesteps
        self.betas = schedule.betas
        self.alphas_cumprod = schedule.alphas_cumprod
        self.alphas_cumprod_prev = schedule.alphas_cumprod_prev
        self.alphas_cumprod_next = np.append(schedule.alphas_cumprod[1:], 0.0)
        self.sqrt_alphas_cumprod = schedule.sqrt_alphas_cumprod
        self.sqrt_one_minus_alphas_cumprod = schedule.sqrt_one_minus_alphas_cumprod
        self.log_one_minus_alphas_cumprod = np.log(1.0 - schedule.alphas_cumprod)
        with np.errstate(divide="ignore"):
            self.sqrt_recip_alphas_cumprod = np.sqrt(1.0 / schedule.alphas_cumprod)
            self.sqrt_recipm1_alphas_cumprod = np.sqrt(1.0 / schedule.alphas_cumprod - 1)
        self.posterior_variance = schedule.posterior_variance
        self.posterior_log_variance_clipped = schedule.posterior_log_variance_clipped
        self.posterior_mean_coef1 = schedule.posterior_mean_coef1
        self.posterior_mean_coef2 = schedule.posterior_mean_coef2
        self._steps = FusedSteps(
            schedule, PREDICTIONS[model_mean_type], model_var_type.name.lower()
        )

    def q_mean_variance(self, x_start: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and log variance of q(x_t | x_0), each as x_start."""
        return _whole(diffusion.q_mean_variance(self.schedule, x_start, t), x_start)

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_t [N, ...] of x_start; the noise is torch's own if it is not given."""
        noise = torch.randn_like(x_start) if noise is None else noise
        return diffusion.q_sample(self.schedule, x_start, t, noise)

    def q_posterior_mean_variance(
        self, x_start: Tensor, x_t: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and clipped log variance of q(x_{t-1} | x_t, x_0), each as x_t."""
        return _whole(diffusion.q_posterior_mean_variance(self.schedule, x_start, x_t, t), x_t)

    def p_mean_variance(
        self,
        model: Function,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """ "mean", "variance", "log_variance" of p(x_{t-1} | x_t), and "pred_xstart", as x each.

        Args:
            model: called as model(x, t, **model_kwargs).
            x: x_t [N, C, ...].
            t: [N] int64.
            clip_denoised: whether x_0 is held to [-1, 1].
            denoised_fn: applied to x_0 before that.
        """
        out = self._output(model, x, t, model_kwargs)
        p = diffusion.p_mean_variance(
            self.schedule,
            out,
            x,
            t,
            prediction_type=PREDICTIONS[self.model_mean_type],
            variance_type=self.model_var_type.name.lower(),
            clip=clip_denoised,
            denoised_fn=denoised_fn,
        )
        mean, variance, log_variance = _whole(p, x)
        if self.model_mean_type is ModelMeanType.PREVIOUS_X:
            mean = out[:, : x.shape[1]]
        return {
            "mean": mean,
            "variance": variance,
            "log_variance": log_variance,
            "pred_xstart": p.pred_x_start,
        }

    def condition_mean(
        self,
        cond_fn: Function,
        p_mean_var: dict[str, Tensor],
        x: Tensor,
        t: Tensor,
        model_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """The mean shifted by the gradient of log p(y | x) (Dhariwal and Nichol 2021, Alg. 1)."""
        gradient = self._output(cond_fn, x, t, model_kwargs)
        return p_mean_var["mean"].float() + p_mean_var["variance"] * gradient.float()

    def condition_score(
        self,
        cond_fn: Function,
        p_mean_var: dict[str, Tensor],
        x: Tensor,
        t: Tensor,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """p_mean_var of the score shifted by that gradient (Dhariwal and Nichol 2021, Alg. 2)."""
        deviation = _extract_into_tensor(self.sqrt_one_minus_alphas_cumprod, t, x.shape)
        eps = self._predict_eps_from_xstart(x, t, p_mean_var["pred_xstart"])
        eps = eps - deviation * self._output(cond_fn, x, t, model_kwargs)
        pred = self._predict_xstart_from_eps(x, t, eps)
        mean, _, _ = self.q_posterior_mean_variance(pred, x, t)
        return p_mean_var | {"pred_xstart": pred, "mean": mean}

    def p_sample(
        self,
        model: Function,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        cond_fn: Function | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """ "sample", x_{t-1} drawn with torch's noise, and "pred_xstart"; see p_mean_variance.

        cond_fn: gradient of log p(y | x), called as the model is.
        """
        if denoised_fn is None and cond_fn is None and self._plain:
            out = self._output(model, x, t, model_kwargs)
            return self._steps.of_output(x, out, t, "ddpm", clip_denoised, torch.randn_like(x))
        p = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        noise = torch.randn_like(x)
        if cond_fn is not None:
            p["mean"] = self.condition_mean(cond_fn, p, x, t, model_kwargs)
        noisy = (t != 0).to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        sample = p["mean"] + noisy * torch.exp(0.5 * p["log_variance"]) * noise
        return {"sample": sample, "pred_xstart": p["pred_xstart"]}

    def ddim_sample(
        self,
        model: Function,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        cond_fn: Function | None = None,
        model_kwargs: dict[str, Any] | None = None,
        eta: float = 0.0,
    ) -> dict[str, Tensor]:
        """As p_sample, by DDIM (Song et al. 2021, eq. 12), epsilon from the clipped x_0."""
        if denoised_fn is None and cond_fn is None and self._plain:
            out = self._output(model, x, t, model_kwargs)
            noise = torch.randn_like(x)
            return self._steps.of_output(x, out, t, ("ddim", eta), clip_denoised, noise)
        p = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        if cond_fn is not None:
            p = self.condition_score(cond_fn, p, x, t, model_kwargs)
        noise = torch.randn_like(x)
        return self._steps.of_x_start(x, p["pred_xstart"], t, ("ddim", eta), noise)

    def ddim_reverse_sample(
        self,
        model: Function,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        eta: float = 0.0,
    ) -> dict[str, Tensor]:
        """ "sample", x_{t+1} by the reverse ODE, and "pred_xstart"; eta has to be 0."""
        if eta != 0.0:
            raise ValueError(f"the reverse ODE is deterministic: eta must be 0, got {eta}.")
        p = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        return self._steps.of_x_start(x, p["pred_xstart"], t, "reverse", None)

    def training_losses(
        self,
        model: Function,
        x_start: Tensor,
        t: Tensor,
        model_kwargs: dict[str, Any] | None = None,
        noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """ "loss" [N] at t [N], and where it has parts "mse" and "vb" [N].

        Noise is torch's own if it is not given. With a learned variance the bound trains that
        alone (Nichol and Dhariwal 2021, section 3.1).
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        x_t = self.q_sample(x_start, t, noise)
        T = self.num_timesteps
        if self.loss_type.is_vb():
            vb = self._vb_terms_bpd(model, x_start, x_t, t, False, model_kwargs)["output"]
            return {"loss": vb * T if self.loss_type is LossType.RESCALED_KL else vb}
        out, terms = self._output(model, x_t, t, model_kwargs), {}
        channels = x_t.shape[1]
        if self.model_var_type.name.startswith("LEARNED"):
            mean, variance = out.split(channels, 1)
            frozen = torch.cat([mean.detach(), variance], 1)
            vb = self._vb_terms_bpd(lambda *_, **__: frozen, x_start, x_t, t, False)["output"]
            rescaled = self.loss_type is LossType.RESCALED_MSE
            terms["vb"] = vb * T / 1000.0 if rescaled else vb
            out = mean
        target = diffusion.prediction_target(
            self.schedule, x_start, noise, t, PREDICTIONS[self.model_mean_type]
        )
        terms["mse"] = mean_flat((target - out) ** 2)
        return terms | {"loss": terms["mse"] + terms["vb"] if "vb" in terms else terms["mse"]}

    def calc_bpd_loop(
        self,
        model: Function,
        x_start: Tensor,
        clip_denoised: bool = True,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """The variational bound of x_start [N, ...] in bits a dimension.

        "total_bpd" and "prior_bpd" [N]; "vb", "xstart_mse", "mse" [N, T], the noisiest first.
        """
        rows: dict[str, list[Tensor]] = {"vb": [], "xstart_mse": [], "mse": []}
        for i in reversed(range(self.num_timesteps)):
            t = torch.full((len(x_start),), i, device=x_start.device)
            noise = torch.randn_like(x_start)
            x_t = self.q_sample(x_start, t, noise)
            with torch.no_grad():
                out = self._vb_terms_bpd(model, x_start, x_t, t, clip_denoised, model_kwargs)
            eps = self._predict_eps_from_xstart(x_t, t, out["pred_xstart"])
            rows["vb"].append(out["output"])
            rows["xstart_mse"].append(mean_flat((out["pred_xstart"] - x_start) ** 2))
            rows["mse"].append(mean_flat((eps - noise) ** 2))
        terms = {name: torch.stack(row, 1) for name, row in rows.items()}
        prior = self._prior_bpd(x_start)
        return {"total_bpd": terms["vb"].sum(1) + prior, "prior_bpd": prior, **terms}

    def _vb_terms_bpd(
        self,
        model: Function,
        x_start: Tensor,
        x_t: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        p = self.p_mean_variance(model, x_t, t, clip_denoised, model_kwargs=model_kwargs)
        gaussian = diffusion.Gaussian(p["mean"], p["variance"], p["log_variance"])
        output = losses.bound_term(
            self.schedule, x_start, x_t, t, gaussian, cdf=losses.tanh_normal_cdf
        )
        return {"output": output, "pred_xstart": p["pred_xstart"]}

    def _prior_bpd(self, x_start: Tensor) -> Tensor:
        return losses.prior_term(self.schedule, x_start)

    def _predict_xstart_from_eps(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return self._converted(eps, x_t, t, "epsilon", "x_start")

    def _predict_xstart_from_xprev(self, x_t: Tensor, t: Tensor, xprev: Tensor) -> Tensor:
        return self._converted(xprev, x_t, t, "posterior_mean", "x_start")

    def _predict_eps_from_xstart(self, x_t: Tensor, t: Tensor, pred_xstart: Tensor) -> Tensor:
        return self._converted(pred_xstart, x_t, t, "x_start", "epsilon")

    def _converted(self, given: Tensor, x_t: Tensor, t: Tensor, source: str, to: str) -> Tensor:
        return diffusion.convert(self.schedule, given, x_t, t, source=source, target=to)

    def _scale_timesteps(self, t: Tensor) -> Tensor:
        return t.float() * (1000.0 / self.num_timesteps) if self.rescale_timesteps else t

    def _wrap_model(self, model: Function) -> Function:
        return model

    def _output(
        self, model: Function, x: Tensor, t: Tensor, model_kwargs: dict[str, Any] | None
    ) -> Tensor:
        out: Tensor = self._wrap_model(model)(x, self._scale_timesteps(t), **model_kwargs or {})
        return out

    @property
    def _plain(self) -> bool:
        """Whether p_mean_variance is ours, so that a step may be one op."""
        return type(self).p_mean_variance is GaussianDiffusion.p_mean_variance


def _whole(gaussian: diffusion.Gaussian, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and log variance in the shape of `like`."""
    parts = (gaussian.mean, gaussian.variance, gaussian.log_variance)
    mean, variance, log_variance = (part.expand(like.shape) for part in parts)
    return mean, variance, log_variance


def _extract_into_tensor(arr: Array, timesteps: Tensor, broadcast_shape: Sequence[int]) -> Tensor:
    """arr[timesteps] in float32, [N, 1, ...] expanded to the shape."""
    values = torch.from_numpy(arr.copy()).to(timesteps.device)[timesteps].float()
    return values.view(-1, *[1] * (len(broadcast_shape) - 1)).expand(broadcast_shape)
