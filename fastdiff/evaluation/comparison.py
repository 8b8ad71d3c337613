"""Distances between samples and data, in the features of a network, by torch-fidelity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastdiff.evaluation.features import FeatureNet, Features, require_torch_fidelity

Figure = tuple[float, float]  # mean and standard deviation, over subsets or splits
SUBSETS, SUBSET_SIZE, SPLITS = 100, 1000, 10


@dataclass(frozen=True)
class Comparison:
    """Of samples against a reference, in the features of `features`.

    frechet: the squared Frechet distance of two Gaussians (Heusel et al. 2017); FID if the
        features are Inception's.
    kernel: the squared polynomial MMD, unbiased, over subsets (Binkowski et al. 2018); KID then.
    score: the Inception score of the samples (Salimans et al. 2016); None for a net without logits.
    nearest: [M] int64, for each of the first samples the nearest image of the reference.
    notes: what a reader of the figures should know.
    """

    features: str
    num_samples: int
    num_reference: int
    frechet: float
    kernel: Figure
    score: Figure | None
    nearest: Tensor
    notes: list[str] = field(default_factory=list)


def compare(
    samples: Tensor,
    reference: Tensor,
    net: FeatureNet,
    *,
    num_nearest: int = 16,
    progress: Callable[[int, int], object] | None = None,
) -> Comparison:
    """Compare two sets of images [N, C, H, W] uint8 of one shape.

    Args:
        net: see inception_net and unet_net, or FeatureNet of a network of your own.
        num_nearest: for how many of the first samples the nearest reference is sought.
        progress: show(done, total) in images that have gone through the net.

    Raises:
        ValueError: images of different shapes, or fewer than two of either.
        ImportError: torch-fidelity is not installed.
    """
    if samples.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"samples are {list(samples.shape[1:])} and the reference {list(reference.shape[1:])}; "
            "resize or convert one set to the other's shape."
        )
    if min(len(samples), len(reference)) < 2:
        raise ValueError(f"two images or more of each, got {len(samples)} and {len(reference)}.")
    total = len(samples) + len(reference)

    def from_(first: int) -> Callable[[int, int], object] | None:
        return None if progress is None else lambda done, _: progress(first + done, total)

    of_samples, of_reference = net(samples, from_(0)), net(reference, from_(len(samples)))
    frechet, kernel, score = _figures(of_samples, of_reference)
    return Comparison(
        net.name,
        len(samples),
        len(reference),
        frechet,
        kernel,
        score,
        nearest(of_samples.vectors[:num_nearest], of_reference.vectors),
        _notes(of_samples, of_reference),
    )


def _figures(one: Features, other: Features) -> tuple[float, Figure, Figure | None]:
    require_torch_fidelity()
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    # In float32 a covariance of a thousand features loses the digits that the distance needs.
    a, b = one.vectors.double(), other.vectors.double()
    statistics = [fid_features_to_statistics(vectors) for vectors in (a, b)]
    frechet = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    size = min(SUBSET_SIZE, len(a), len(b))
    found = kid_features_to_metric(a, b, kid_subsets=SUBSETS, kid_subset_size=size, verbose=False)
    kernel = (
        found["kernel_inception_distance_mean"],
        found["kernel_inception_distance_std"],
    )
    if one.logits is None:
        return float(frechet), kernel, None
    found = isc_features_to_metric(one.logits, splits=min(SPLITS, len(a)))
    return float(frechet), kernel, (found["inception_score_mean"], found["inception_score_std"])


def nearest(vectors: Tensor, reference: Tensor) -> Tensor:
    """[M] int64, the index of the nearest of reference [N, D] to each of vectors [M, D]."""
    if not len(vectors):
        return torch.zeros(0, dtype=torch.int64)
    return torch.cdist(vectors.double(), reference.double()).argmin(1)


def _notes(one: Features, other: Features) -> list[str]:
    notes = []
    fewest, dims = min(len(one.vectors), len(other.vectors)), one.vectors.shape[1]
    if fewest <= dims:
        notes.append(
            f"{fewest} images say little of a covariance of {dims} features: the Frechet distance "
            "is far too large; take more images, or look at the kernel distance, which is unbiased."
        )
    elif fewest < 10_000:
        notes.append(
            f"The Frechet distance of {fewest} images is larger than that of the 50,000 that are "
            "usual: compare it with figures of as many."
        )
    return notes
