"""The onset of a curve over training: the step at half-maximum, halfway through its change.

The curve is interpolated linearly in x = log2(1 + step) between the bracketing checkpoints, whose
distance bounds the precision of an onset. The rule is ours: the papers show curves.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def onset(steps: Float[np.ndarray, " step"], curve: Float[np.ndarray, " step"]) -> float:
    """Where a curve is first halfway from its first to its last value, in log2(1 + step).

    Args:
        steps: Training steps, ascending.
        curve: The value at each; the last differs from the first.
    """
    share = share_of_change(curve)
    after = int(np.argmax(share >= 0.5))  # the last share is 1
    ends = np.log2(1 + steps[[after - 1, after]])
    part = (0.5 - share[after - 1]) / (share[after] - share[after - 1])
    return float(ends[0] + part * (ends[1] - ends[0]))


def share_of_change(curve: Float[np.ndarray, " step"]) -> Float[np.ndarray, " step"]:
    """How far a curve is from its first to its last value: 0 there, 1 here."""
    share: np.ndarray = (curve - curve[0]) / (curve[-1] - curve[0])
    return share
