"""Noise schedules as frozen float64 tables, and the timesteps that a strided sampler visits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

Table = NDArray[np.float64]
MAX_BETA = 0.999
SPACINGS = ("leading", "trailing", "linspace", "quadratic")


@dataclass(frozen=True, eq=False, repr=False)
class NoiseSchedule:
    """The variances of a Gaussian diffusion q and all that follows from them.

    Every table is a read-only float64 array [T], indexed by t: 0 the least noisy, T-1 the noisiest.
    Ho et al. 2020: ``alphas_cumprod`` stands under eq. 4, the posterior's tables in eq. 6 and 7.

    Args:
        betas: [T] in (0, 1); the last one may be 1 (zero terminal signal).

    Raises:
        ValueError: betas that are empty, not one-dimensional, not finite or out of range.
    """

    betas: Table
    alphas: Table = field(init=False)
    alphas_cumprod: Table = field(init=False)
    alphas_cumprod_prev: Table = field(init=False)
    sqrt_alphas_cumprod: Table = field(init=False)
    sqrt_one_minus_alphas_cumprod: Table = field(init=False)
    posterior_variance: Table = field(init=False)
    posterior_log_variance_clipped: Table = field(init=False)
    posterior_mean_coef1: Table = field(init=False)
    posterior_mean_coef2: Table = field(init=False)

    def __post_init__(self) -> None:
        betas = _checked_betas(self.betas)
        alphas = 1.0 - betas
        alphas_cumprod = np.cumprod(alphas)
        alphas_cumprod_prev = np.append(1.0, alphas_cumprod[:-1])
        one_minus = 1.0 - alphas_cumprod
        posterior_variance = betas * (1.0 - alphas_cumprod_prev) / one_minus
        # The variance at t = 0 is zero: its logarithm takes the next one's place.
        clipped = np.append(
            posterior_variance[1:2] if len(betas) > 1 else betas, posterior_variance[1:]
        )
        tables = {
            "betas": betas,
            "alphas": alphas,
            "alphas_cumprod": alphas_cumprod,
            "alphas_cumprod_prev": alphas_cumprod_prev,
            "sqrt_alphas_cumprod": np.sqrt(alphas_cumprod),
            "sqrt_one_minus_alphas_cumprod": np.sqrt(one_minus),
            "posterior_variance": posterior_variance,
            "posterior_log_variance_clipped": np.log(clipped),
            "posterior_mean_coef1": betas * np.sqrt(alphas_cumprod_prev) / one_minus,
            "posterior_mean_coef2": (1.0 - alphas_cumprod_prev) * np.sqrt(alphas) / one_minus,
        }
        for name, table in tables.items():
            table.flags.writeable = False
            object.__setattr__(self, name, table)

    @property
    def num_timesteps(self) -> int:
        """T, the number of noise levels."""
        return len(self.betas)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NoiseSchedule):
            return NotImplemented
        return np.array_equal(self.betas, other.betas)

    def __hash__(self) -> int:
        return hash(self.betas.tobytes())

    def __repr__(self) -> str:
        return (
            f"NoiseSchedule(T={self.num_timesteps}, "
            f"betas={self.betas[0]:.6g}..{self.betas[-1]:.6g}, "
            f"alphas_cumprod[-1]={self.alphas_cumprod[-1]:.6g})"
        )

    @classmethod
    def from_betas(cls, betas: ArrayLike) -> NoiseSchedule:
        """A schedule of the given betas [T], in (0, 1); the last may be 1."""
        return cls(np.asarray(betas, dtype=np.float64))

    @classmethod
    def from_log_snr(cls, log_snr: ArrayLike) -> NoiseSchedule:
        """A schedule of log(alphas_cumprod / (1 - alphas_cumprod)) [T], strictly decreasing."""
        levels = np.asarray(log_snr, dtype=np.float64)
        if levels.ndim != 1 or not (np.diff(levels) < 0).all():
            raise ValueError("log_snr must be one-dimensional and strictly decreasing.")
        log_alphas_cumprod = -np.logaddexp(0.0, -levels)
        return cls(-np.expm1(np.diff(log_alphas_cumprod, prepend=0.0)))

    @classmethod
    def linear(cls, T: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """Betas evenly spaced from beta_start to beta_end (Ho et al. 2020, section 4)."""
        return cls(np.linspace(beta_start, beta_end, _checked_length(T)))

    @classmethod
    def scaled_linear(
        cls, T: int, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> NoiseSchedule:
        """Square roots of the betas evenly spaced (Rombach et al. 2022, latent diffusion)."""
        return cls(np.linspace(beta_start**0.5, beta_end**0.5, _checked_length(T)) ** 2)

    @classmethod
    def cosine(cls, T: int, s: float = 0.008) -> NoiseSchedule:
        """alphas_cumprod as a squared cosine (Nichol and Dhariwal 2021, eq. 17), betas <= 0.999."""
        return cls._from_alpha_bar(T, lambda u: np.cos((u + s) / (1 + s) * math.pi / 2) ** 2)

    @classmethod
    def sigmoid(cls, T: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """Betas along a sigmoid over [-6, 6], beta_start to beta_end (Xu et al. 2022, GeoDiff)."""
        ramp = 1 / (1 + np.exp(-np.linspace(-6, 6, _checked_length(T))))
        return cls(ramp * (beta_end - beta_start) + beta_start)

    @classmethod
    def laplace(cls, T: int) -> NoiseSchedule:
        """Log-SNR drawn as a Laplace quantile (Hang et al. 2024), in the form diffusers gives it.

        There ``sqrt(snr / (1 + snr))`` with log-SNR scale 1/2 is taken for alphas_cumprod; the 1e-6
        in the logarithm keeps both ends finite.
        """

        def alpha_bar(u: Table) -> Table:
            distance = 0.5 - u
            log_snr = -0.5 * np.copysign(1, distance) * np.log(1 - 2 * np.abs(distance) + 1e-6)
            return np.sqrt(1 / (1 + np.exp(-log_snr)))

        return cls._from_alpha_bar(T, alpha_bar)

    def respace(self, visited: ArrayLike) -> NoiseSchedule:
        """The schedule of the visited timesteps alone, keeping their alphas_cumprod.

        Args:
            visited: [S] int, strictly decreasing as ``timesteps`` gives them; entry S-1-i becomes
                timestep i (Nichol and Dhariwal 2021, section 4).
        """
        kept = self.alphas_cumprod[checked_timesteps(self.num_timesteps, visited)[::-1]]
        return NoiseSchedule(1 - kept / np.append(1.0, kept[:-1]))

    @classmethod
    def _from_alpha_bar(cls, T: int, alpha_bar: Callable[[Table], Table]) -> NoiseSchedule:
        levels = alpha_bar(np.arange(_checked_length(T) + 1) / T)
        return cls(np.minimum(1 - levels[1:] / levels[:-1], MAX_BETA))

    def rescale_zero_terminal_snr(self) -> NoiseSchedule:
        """The schedule shifted and scaled so that alphas_cumprod[-1] = 0 (Lin et al. 2023, Alg. 1).

        The first noise level stays. At the last one x_t holds no signal, so epsilon says nothing
        there: predict v or x_start.
        """
        if self.num_timesteps < 2:
            raise ValueError(
                "zero-terminal-SNR rescaling keeps the first level and zeroes the last; "
                "it needs at least 2 timesteps, this schedule has 1."
            )
        root = self.sqrt_alphas_cumprod
        alphas_cumprod = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        return NoiseSchedule(1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1]))


def timesteps(T: int, steps: int | str, spacing: str = "leading") -> NDArray[np.int64]:
    """The timesteps a strided sampler visits, noisiest first.

    Args:
        T: length of the schedule.
        steps: how many, 1..T; or guided-diffusion's section counts, for which spacing plays no
            part: "ddim50" (the integer stride that gives 50), "10,15,20" (so many from each of as
            many equal sections).
        spacing: "leading", "trailing", "linspace" (Lin et al. 2023, table 2, rounded as diffusers
            does) or "quadratic" (Song et al. 2021, DDIM, appendix D.2, up to 0.8 T; where
            that would repeat a timestep, the next one).

    Returns:
        [steps] int64, strictly decreasing.

    Raises:
        ValueError: a count outside 1..T, or an unknown spacing.
    """
    _checked_length(T)
    if isinstance(steps, str):
        return _section_timesteps(T, steps)
    _check_count(steps, T, "steps")
    ascending: NDArray[np.generic]
    if spacing == "leading":
        ascending = np.arange(steps) * (T // steps)
    elif spacing == "trailing":
        # Rounding may give the float range one entry too many: diffusers then ends at t = -1.
        ascending = np.round(np.arange(T, 0, -T / steps))[:steps][::-1] - 1
    elif spacing == "linspace":
        ascending = np.linspace(0, T - 1, steps).round()
    elif spacing == "quadratic":
        # Where the parabola is flatter than a timestep a step it would repeat some.
        parabola = np.floor(np.linspace(0, math.sqrt(0.8 * T), steps) ** 2)
        ascending = np.maximum(parabola, np.arange(steps))
    else:
        raise ValueError(f"unknown spacing {spacing!r}: choose one of {', '.join(SPACINGS)}.")
    return ascending[::-1].astype(np.int64)


def checked_timesteps(T: int, visited: ArrayLike) -> NDArray[np.int64]:
    """Given timesteps as a strictly decreasing int64 array within 0..T-1, or ValueError."""
    array = np.asarray(visited)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(
            "timesteps must be a non-empty one-dimensional list of integers; "
            f"got shape {array.shape} of {array.dtype}."
        )
    if array.min() < 0 or array.max() >= T:
        raise ValueError(f"timesteps must lie in 0..{T - 1}; got {array.min()}..{array.max()}.")
    if (np.diff(array.astype(np.int64)) >= 0).any():
        raise ValueError("timesteps must be strictly decreasing, noisiest first, without repeats.")
    return array.astype(np.int64)


def _section_timesteps(T: int, text: str) -> NDArray[np.int64]:
    """guided-diffusion's section counts (Nichol and Dhariwal 2021, section 4)."""
    counts = _parsed_counts(text.removeprefix("ddim"), text)
    if text.startswith("ddim"):
        if len(counts) != 1:
            raise ValueError(f'steps {text!r}: "ddim" takes one count, such as "ddim50".')
        _check_count(counts[0], T, f"steps {text!r}")
        strides = [i for i in range(1, T + 1) if len(range(0, T, i)) == counts[0]]
        if not strides:
            raise ValueError(
                f"steps {text!r}: no integer stride over T={T} visits exactly "
                f"{counts[0]} timesteps; ask for another count or for an int."
            )
        return np.arange(0, T, strides[0], dtype=np.int64)[::-1].copy()
    sizes = [len(part) for part in np.array_split(np.arange(T), len(counts))]
    ascending: list[int] = []
    for start, size, count in zip(np.cumsum([0, *sizes]), sizes, counts, strict=False):
        _check_count(count, size, f"each section of steps {text!r}")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        # Summed one by one, as there: a product would round some ties the other way.
        ascending.extend(int(start) + np.cumsum([0.0] + [stride] * (count - 1)).round().astype(int))
    return np.array(ascending[::-1], dtype=np.int64)


def _parsed_counts(text: str, whole: str) -> Sequence[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f'steps {whole!r} is no section count: write "ddim50", "250" or "10,15,20".'
        ) from None


def _check_count(count: object, most: int, what: str) -> None:
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)):
        raise TypeError(f"{what} must be an int, got {count!r}.")
    if not 1 <= count <= most:
        raise ValueError(f"{what} must lie in 1..{most}, got {count}.")


def _checked_length(T: int) -> int:
    if isinstance(T, bool) or not isinstance(T, (int, np.integer)) or T < 1:
        raise ValueError(f"T must be a positive int, the number of noise levels; got {T!r}.")
    return int(T)


def _checked_betas(betas: ArrayLike) -> Table:
    array = np.array(betas, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"betas must be a non-empty one-dimensional array, got {array.shape}.")
    # A beta that 1 - beta does not feel is as bad as 0: it leaves 0 / 0 in the posterior.
    inside = (array < 1) & (1 - array < 1)
    inside[-1] |= array[-1] == 1
    if not inside.all():
        worst = int(np.argmin(inside))
        raise ValueError(
            f"betas must lie in (0, 1), the last may be 1; betas[{worst}] is {array[worst]}."
        )
    if not np.prod(1 - array[:-1]) > np.finfo(np.float64).tiny:
        raise ValueError(
            "betas leave no signal before the last timestep: alphas_cumprod "
            "underflows; make them smaller or fewer."
        )
    return array
