"""How similar vectors are, and how well they identify groups.

    mean cosine        between different vectors
    variance ratio     covariance between groups, over different members, over variance within
    centroid accuracy  how often the nearest centroid is the right group's

Vectors are h(m, p), for group m (such as a first token) and member p (such as a prompt).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .leave_one_out import versions_of_products


def mean_cosine(vectors: Float[Tensor, "vector layer d_model"]) -> Float[Tensor, " layer"]:
    """The mean cosine between different vectors; 1 for a single one."""
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    count = len(unit)
    total = (unit.sum(0) ** 2).sum(-1)
    return (total - count) / (count * (count - 1)) if count > 1 else total


def variance_ratio(
    vectors: Float[Tensor, "group member layer d_model"],
) -> Float[Tensor, "n layer"]:
    """Between over within variance, of all members and without each.

    Between is the covariance over m of h(., p) and h(., q), mean over p != q, so that a member's
    own noise does not count; within is the variance over p of h(m, .), mean over m.
    """
    groups, members = vectors.shape[:2]
    apart = vectors - vectors.mean(0)
    others = apart.sum(1, keepdim=True) - apart
    between = versions_of_products((apart * others).sum((0, 3)) / max(1, groups - 1))
    sums, squares = vectors.sum(1), (vectors**2).sum((0, 3))
    kept = [(sums, squares.sum(0), members)]
    kept += [
        (sums - vectors[:, p], squares.sum(0) - squares[p], members - 1) for p in range(members)
    ]
    within = torch.stack(
        [(square - (total**2).sum((0, 2)) / n) / (groups * (n - 1)) for total, square, n in kept]
    )
    return torch.where(within > 0, between / within.clamp_min(1e-300), 0.0)


def centroid_accuracy(
    vectors: Float[Tensor, "group member layer d_model"], half: Int[Tensor, " member"]
) -> Float[Tensor, "member layer"]:
    """How often the nearest of the groups' centroids is the right one; chance is 1 / groups.

    Args:
        vectors: The vectors.
        half: 0 or 1; the centroids of each half are tried on the other.
    """
    groups, members, layers, _ = vectors.shape
    right = torch.arange(groups)[:, None, None]
    accuracy = torch.zeros(members, layers, dtype=torch.float64)
    for tested in (0, 1):
        centroids = vectors[:, half != tested].mean(1).transpose(0, 1)
        tried = vectors[:, half == tested].permute(2, 0, 1, 3)
        distance = torch.cdist(tried.flatten(1, 2), centroids)
        nearest = distance.argmin(-1).unflatten(1, tried.shape[1:3]).permute(1, 2, 0)
        accuracy[half == tested] = (nearest == right).double().mean(0)
    return accuracy
