"""Coefficients of the multistep DPM-Solvers (Lu et al. 2022: DPM-Solver, DPM-Solver++).

All in the dtype of the sigmas handed in: float32 gives diffusers' own rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")


class Update(NamedTuple):
    """x_prev = x * x_t + m0 * M_0 + m1 * M_1 + m2 * M_2 + noise * z, a [S] each.

    M_0, M_1, M_2 are x_0 (++) or epsilon as predicted now, one step ago and two.
    """

    x: Tensor
    m0: Tensor
    m1: Tensor
    m2: Tensor
    noise: Tensor


class _Terms(NamedTuple):
    x: Tensor
    d0: Tensor
    d1_midpoint: Tensor
    d1_heun: Tensor
    d2: Tensor
    noise: Tensor


def signal_and_deviation(sigmas: Tensor, flow: bool) -> tuple[Tensor, Tensor]:
    """alpha and sigma of the state, from the ratio sigma / alpha, or from flow matching's sigma."""
    if flow:
        return 1 - sigmas, sigmas
    alpha = 1 / ((sigmas**2 + 1) ** 0.5)
    return alpha, sigmas * alpha


def update(
    sigmas: Tensor, orders: Tensor, *, algorithm: str, solver: str, flow: bool = False
) -> Update:
    """The steps from sigmas[i] to sigmas[i + 1].

    Args:
        sigmas: [S + 1].
        orders: [S] int64, 1, 2 or 3: how many predictions each step rests on.
        algorithm: one of ALGORITHMS.
        solver: "midpoint" or "heun", for second order.
    """
    alpha, sigma = signal_and_deviation(sigmas, flow)
    log_snr = alpha.log() - sigma.log()
    here = torch.arange(len(orders))
    h = log_snr[1:] - log_snr[:-1]
    # Where there is no step before, the order is 1 and what these give is not used.
    h_0 = h[(here - 1).clamp(min=0)]
    h_1 = h[(here - 2).clamp(min=0)]
    terms = _TERMS[algorithm](alpha[1:], sigma[1:], alpha[:-1], sigma[:-1], h)
    second = terms.d1_heun if solver == "heun" else terms.d1_midpoint
    zero = torch.zeros_like(h)
    r0, r1 = h_0 / h, h_1 / h
    share, inverse = r0 / (r0 + r1), 1.0 / (r0 + r1)
    # D1 and D2 of third order are sums of the two differences, (m0 - m1)/r0 and (m1 - m2)/r1.
    late = terms.d1_heun * (1 + share) + terms.d2 * inverse
    early = -terms.d1_heun * share - terms.d2 * inverse
    by_order = [
        (terms.d0, zero, zero),
        (terms.d0 + second / r0, -second / r0, zero),
        (terms.d0 + late / r0, early / r1 - late / r0, -early / r1),
    ]
    m0, m1, m2 = (
        torch.stack([choices[part] for choices in by_order])[orders - 1, here] for part in range(3)
    )
    return Update(terms.x, m0, m1, m2, terms.noise)


def _data(a_t: Tensor, s_t: Tensor, a_s: Tensor, s_s: Tensor, h: Tensor) -> _Terms:
    grown = torch.exp(-h) - 1.0
    return _Terms(
        s_t / s_s,
        -(a_t * grown),
        -0.5 * (a_t * grown),
        a_t * (grown / h + 1.0),
        -(a_t * ((grown + h) / h**2 - 0.5)),
        torch.zeros_like(h),
    )


def _noise(a_t: Tensor, s_t: Tensor, a_s: Tensor, s_s: Tensor, h: Tensor) -> _Terms:
    grown = torch.exp(h) - 1.0
    return _Terms(
        a_t / a_s,
        -(s_t * grown),
        -0.5 * (s_t * grown),
        -(s_t * (grown / h - 1.0)),
        -(s_t * ((grown - h) / h**2 - 0.5)),
        torch.zeros_like(h),
    )


def _stochastic_data(a_t: Tensor, s_t: Tensor, a_s: Tensor, s_s: Tensor, h: Tensor) -> _Terms:
    grown = 1.0 - torch.exp(-2.0 * h)
    return _Terms(
        s_t / s_s * torch.exp(-h),
        a_t * grown,
        0.5 * (a_t * grown),
        a_t * (grown / (-2.0 * h) + 1.0),
        a_t * ((grown - 2.0 * h) / (2.0 * h) ** 2 - 0.5),
        s_t * grown**0.5,
    )


def _stochastic_noise(a_t: Tensor, s_t: Tensor, a_s: Tensor, s_s: Tensor, h: Tensor) -> _Terms:
    grown = torch.exp(h) - 1.0
    return _Terms(
        a_t / a_s,
        -2.0 * (s_t * grown),
        -(s_t * grown),
        -2.0 * (s_t * (grown / h - 1.0)),
        torch.full_like(h, torch.nan),  # there is no third order
        s_t * (torch.exp(2 * h) - 1.0) ** 0.5,
    )


_TERMS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], _Terms]] = {
    "dpmsolver++": _data,
    "dpmsolver": _noise,
    "sde-dpmsolver++": _stochastic_data,
    "sde-dpmsolver": _stochastic_noise,
}
