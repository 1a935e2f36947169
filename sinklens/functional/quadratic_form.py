"""Gated MLPs as quadratic forms: which channels can write a spike, and for which inputs.

A gated MLP writes into channel k, for an input h (Sun et al. 2026, 2603.05498; SiLU(x) approximated
by x):

    F_k(h) = h^T U_k h,   U_k = sum_i Wd[i, k] Wg[:, i] Wu[:, i]^T

over its hidden units i, with gate Wg, up Wu and down Wd. Only the symmetric part S_k acts. A
channel that can spike has a large |U_k| and one eigenvalue that dominates; then F_k(h) is about
lambda |h|^2 cos^2(s, h) for its eigenvector s, and spikes for inputs along s. The norms need no
d x d matrix for each channel:

    |U_k|^2 = w^T (Wg^T Wg * Wu^T Wu) w,   tr(U_k U_k) = w^T (Wg^T Wu * Wu^T Wg) w,   w = Wd[:, k]
    |S_k|^2 = (|U_k|^2 + tr(U_k U_k)) / 2

where * multiplies entry by entry. Biases are left out. SiLU differs from x where the gate
is negative or small; comparing `quadratic_form` with the output of the block measures the error.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

ROWS = 1024  # hidden units per slice


class GatedWeights(NamedTuple):
    """The three matrices of a gated block, as TransformerLens orients them."""

    gate: Float[Tensor, "d_model d_mlp"]
    up: Float[Tensor, "d_model d_mlp"]
    down: Float[Tensor, "d_mlp d_model"]


def channel_norms(weights: GatedWeights) -> Float[Tensor, " d_model"]:
    """The Frobenius norm of U_k for every channel k."""
    total = torch.zeros(weights.down.shape[1], dtype=torch.float64)
    for rows in torch.arange(weights.down.shape[0]).split(ROWS):
        products = (weights.gate[:, rows].T @ weights.gate) * (weights.up[:, rows].T @ weights.up)
        total += ((products @ weights.down) * weights.down[rows]).sum(0)
    return total.clamp(min=0).sqrt()


def symmetric_norm(weights: GatedWeights, channel: int) -> float:
    """The Frobenius norm of S_k."""
    w = weights.down[:, channel]
    squares = crossed = torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(len(w)).split(ROWS):
        gate, up = weights.gate[:, rows].T, weights.up[:, rows].T
        squares = squares + w[rows] @ ((gate @ weights.gate) * (up @ weights.up)) @ w
        crossed = crossed + w[rows] @ ((gate @ weights.up) * (up @ weights.gate)) @ w
    return float(((squares + crossed) / 2).clamp(min=0).sqrt())


def leading_eigenpair(
    weights: GatedWeights, channel: int
) -> tuple[float, Float[Tensor, " d_model"]]:
    """The eigenvalue of S_k of the largest magnitude, and its unit eigenvector."""
    gate, up = weights.gate.numpy(), weights.up.numpy()
    w = weights.down[:, channel].numpy()
    width = len(gate)

    def times(vector: np.ndarray) -> np.ndarray:
        vector = vector.ravel()
        product: np.ndarray = gate @ (w * (vector @ up)) + up @ (w * (vector @ gate))
        return product / 2

    operator = LinearOperator((width, width), matvec=times, dtype=np.float64)
    values, vectors = eigsh(operator, k=1, which="LM", v0=np.ones(width))
    return float(values[0]), torch.from_numpy(vectors[:, 0].copy())


def quadratic_form(
    weights: GatedWeights, inputs: Float[Tensor, "*batch d_model"], channel: int
) -> Float[Tensor, "*batch"]:
    """h^T U_k h for each input h."""
    inputs = inputs.double().cpu()
    product = (inputs @ weights.gate) * (inputs @ weights.up)
    return product @ weights.down[:, channel]
