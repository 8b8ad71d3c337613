"""guided-diffusion's process, restated from its papers' formulas, a coefficient at a time.

Strings stand for the enums' members. Noise is torch.randn_like, as there.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch


def named_betas(name, steps):
    if name == "linear":
        return np.linspace(0.1 / steps, 20 / steps, steps)
    bar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
    return np.array([min(1 - b / a, 0.999) for a, b in pairwise(bar)])


def spaced(steps, sections):
    """Timesteps of even strides through each of equal sections; "ddimN" is one stride for all."""
    if isinstance(sections, str) and sections.startswith("ddim"):
        count = int(sections[4:])
        stride = next(i for i in range(1, steps) if -(-steps // i) == count)
        return list(range(0, steps, stride))
    counts = [int(c) for c in sections.split(",")] if isinstance(sections, str) else sections
    kept, start = [], 0
    for i, count in enumerate(counts):
        size = steps // len(counts) + (i < steps % len(counts))
        stride = (size - 1) / (count - 1) if count > 1 else 1
        place = 0.0
        for _ in range(count):
            kept.append(start + round(place))
            place += stride
        start += size
    return sorted(set(kept))


class Diffusion:
    def __init__(
        self, betas, mean="EPSILON", var="FIXED_LARGE", loss="MSE", rescale=False, use=None
    ):
        levels = np.cumprod(1 - np.asarray(betas, np.float64))
        self.original_steps = len(levels)
        self.use = sorted(use) if use is not None else list(range(len(levels)))
        self.a = levels[self.use]
        self.before = np.append(1.0, self.a[:-1])
        self.betas = 1 - self.a / self.before
        self.T = len(self.a)
        self.mean, self.var, self.loss, self.rescale = mean, var, loss, rescale
        self.small = self.betas * (1 - self.before) / (1 - self.a)
        self.small_clipped = np.append(self.small[1], self.small[1:])

    def at(self, array, t, x):
        return torch.as_tensor(np.asarray(array)[t.numpy()]).to(x.dtype).reshape(-1, 1, 1, 1)

    def call(self, model, x, t, kwargs=None):
        t = torch.tensor(self.use)[t]
        t = t.float() * (1000 / self.original_steps) if self.rescale else t
        return model(x, t, **kwargs or {})

    def q_sample(self, x0, t, noise):
        return self.at(self.a, t, x0) ** 0.5 * x0 + self.at(1 - self.a, t, x0) ** 0.5 * noise

    def posterior_mean(self, x0, x, t):
        a, before, beta = (self.at(v, t, x) for v in (self.a, self.before, self.betas))
        return before**0.5 * beta / (1 - a) * x0 + (1 - beta) ** 0.5 * (1 - before) / (1 - a) * x

    def eps_of(self, x, t, x0):
        a = self.at(self.a, t, x)
        return (x - a**0.5 * x0) / (1 - a) ** 0.5

    def p(self, out, x, t, clip=True, denoised=None):
        c = x.shape[1]
        mean_out, raw = out[:, :c], out[:, c:]
        if self.mean == "EPSILON":
            a = self.at(self.a, t, x)
            x0 = (x - (1 - a) ** 0.5 * mean_out) / a**0.5
        elif self.mean == "START_X":
            x0 = mean_out
        else:
            ones = torch.ones_like(x)
            of_x0 = self.posterior_mean(ones, 0 * x, t)
            x0 = (mean_out - self.posterior_mean(0 * x, x, t)) / of_x0
        x0 = denoised(x0) if denoised else x0
        x0 = x0.clamp(-1, 1) if clip else x0
        low, high = (self.at(np.log(v), t, x) for v in (self.small_clipped, self.betas))
        if self.var == "LEARNED":
            log_var = raw
        elif self.var == "LEARNED_RANGE":
            log_var = (raw + 1) / 2 * high + (1 - raw) / 2 * low
        elif self.var == "FIXED_SMALL":
            log_var = low.expand_as(x)
        else:
            large = np.append(self.small[1], self.betas[1:])
            log_var = self.at(np.log(large), t, x).expand_as(x)
        mean = mean_out if self.mean == "PREVIOUS_X" else self.posterior_mean(x0, x, t)
        return mean, log_var, x0

    def p_sample(self, model, x, t, clip=True, denoised=None, cond=None, kwargs=None):
        mean, log_var, x0 = self.p(self.call(model, x, t, kwargs), x, t, clip, denoised)
        noise = torch.randn_like(x)
        if cond:
            variance = log_var.exp()
            if self.var == "FIXED_SMALL":
                variance = self.at(self.small, t, x)
            mean = mean + variance * self.call(cond, x, t, kwargs)
        noisy = (t > 0).to(x.dtype).reshape(-1, 1, 1, 1)
        return mean + noisy * (log_var / 2).exp() * noise, x0

    def ddim_sample(self, model, x, t, clip=True, denoised=None, cond=None, kwargs=None, eta=0.0):
        _, _, x0 = self.p(self.call(model, x, t, kwargs), x, t, clip, denoised)
        a, before = self.at(self.a, t, x), self.at(self.before, t, x)
        if cond:
            eps = self.eps_of(x, t, x0) - (1 - a) ** 0.5 * self.call(cond, x, t, kwargs)
            x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        sigma = eta * ((1 - before) / (1 - a) * (1 - a / before)) ** 0.5
        noise = torch.randn_like(x)
        along = (1 - before - sigma**2) ** 0.5 * self.eps_of(x, t, x0)
        noisy = (t > 0).to(x.dtype).reshape(-1, 1, 1, 1)
        return before**0.5 * x0 + along + noisy * sigma * noise, x0

    def ddim_reverse_sample(self, model, x, t, clip=True, denoised=None, kwargs=None):
        _, _, x0 = self.p(self.call(model, x, t, kwargs), x, t, clip, denoised)
        above = self.at(np.append(self.a[1:], 0.0), t, x)
        return above**0.5 * x0 + (1 - above) ** 0.5 * self.eps_of(x, t, x0), x0

    def loop(self, step, model, shape, **options):
        x = torch.randn(*shape)
        with torch.no_grad():
            for i in reversed(range(self.T)):
                x, _ = step(model, x, torch.full((shape[0],), i), **options)
        return x

    def p_sample_loop(self, model, shape, **options):
        return self.loop(self.p_sample, model, shape, **options)

    def ddim_sample_loop(self, model, shape, **options):
        return self.loop(self.ddim_sample, model, shape, **options)

    def bound(self, out, x0, x, t, clip):
        """Bits a dimension of one term, and x_0."""
        mean, log_var, pred = self.p(out, x, t, clip)
        true_mean = self.posterior_mean(x0, x, t)
        true_var = self.at(self.small_clipped, t, x)
        kl = (log_var - true_var.log() - 1 + true_var / log_var.exp()
              + (true_mean - mean) ** 2 / log_var.exp()) / 2  # fmt: skip

        def cdf(z):
            return (1 + torch.tanh((2 / math.pi) ** 0.5 * (z + 0.044715 * z**3))) / 2

        scale = (-log_var / 2).exp()
        up, down = cdf(scale * (x0 - mean + 1 / 255)), cdf(scale * (x0 - mean - 1 / 255))
        p = torch.where(x0 < -0.999, up, torch.where(x0 > 0.999, 1 - down, up - down))
        nll = -p.clamp(min=1e-12).log()
        terms = torch.where((t == 0).reshape(-1, 1, 1, 1), nll, kl)
        return terms.mean((1, 2, 3)) / math.log(2), pred

    def training_losses(self, model, x0, t, kwargs=None):
        noise = torch.randn_like(x0)
        x = self.q_sample(x0, t, noise)
        out, c = self.call(model, x, t, kwargs), x0.shape[1]
        if self.loss in ("KL", "RESCALED_KL"):
            vb, _ = self.bound(out, x0, x, t, clip=False)
            return {"loss": vb * (self.T if self.loss == "RESCALED_KL" else 1)}
        terms = {}
        if self.var.startswith("LEARNED"):
            frozen = torch.cat([out[:, :c].detach(), out[:, c:]], 1)
            terms["vb"], _ = self.bound(frozen, x0, x, t, clip=False)
            if self.loss == "RESCALED_MSE":
                terms["vb"] = terms["vb"] * self.T / 1000
        target = {
            "EPSILON": noise, "START_X": x0, "PREVIOUS_X": self.posterior_mean(x0, x, t)
        }[self.mean]  # fmt: skip
        terms["mse"] = ((target - out[:, :c]) ** 2).mean((1, 2, 3))
        return terms | {"loss": terms["mse"] + terms.get("vb", 0)}

    def calc_bpd_loop(self, model, x0, clip=True, kwargs=None):
        rows = []
        for i in reversed(range(self.T)):
            t = torch.full((len(x0),), i)
            noise = torch.randn_like(x0)
            x = self.q_sample(x0, t, noise)
            vb, pred = self.bound(self.call(model, x, t, kwargs), x0, x, t, clip)
            eps = self.eps_of(x, t, pred)
            rows.append(torch.stack([
                vb, ((pred - x0) ** 2).mean((1, 2, 3)), ((eps - noise) ** 2).mean((1, 2, 3))
            ]))  # fmt: skip
        vb, xstart_mse, mse = torch.stack(rows, 2)
        last = self.a[-1]
        kl = (-1 - math.log(1 - last) + (1 - last) + last * x0**2) / 2
        prior = kl.mean((1, 2, 3)) / math.log(2)
        return {
            "total_bpd": vb.sum(1) + prior, "prior_bpd": prior, "vb": vb,
            "xstart_mse": xstart_mse, "mse": mse,
        }  # fmt: skip
