"""Analytic nulls: the values that Gaussian entries, random shares and uniform attention give.

Under uniform attention every query spreads its weight evenly over its visible keys.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import stats


def gaussian_peak_ratio(entries: int) -> float:
    """The largest of a number of Gaussian entries over the median entry, in magnitude.

    The median over draws of the largest, Phi^-1((1 + 2^(-1/n)) / 2), over that of one entry,
    Phi^-1(3/4): 6.3 for the 36,864 entries of 64 positions and 576 channels.
    """
    return float(stats.norm.isf((1 - 2 ** (-1 / entries)) / 2) / stats.norm.isf(0.25))


def gaussian_exceeds(entries: int, times: float) -> float:
    """The probability that any of so many Gaussian entries is `times` the median in magnitude."""
    tail = 2 * stats.norm.sf(times * stats.norm.isf(0.25))
    return float(-np.expm1(entries * np.log1p(-tail)))


def gaussian_peak_kurtosis(positions: int, width: int) -> float:
    """The kurtosis of the Gaussian vector that holds the largest entry among several vectors.

    Above the 3 d / (d + 2) of any one, since it was chosen for its largest entry z:
    d (z^4 + 3 (d - 1)) / (z^2 + d - 1)^2, but for the spread of the other entries.
    """
    largest = gaussian_peak_ratio(positions * width) * stats.norm.isf(0.25)
    return float(width * (largest**4 + 3 * (width - 1)) / (largest**2 + width - 1) ** 2)


def largest_share(parts: int) -> float:
    """The broken-stick expectation of the largest of n shares: (1 + 1/2 + .. + 1/n) / n."""
    return float((1 / np.arange(1, parts + 1)).mean())


def uniform_sink_scores(
    length: int, *, window: int | None = None, causal: bool = True, learned_sink: bool = False
) -> Float[np.ndarray, " key"]:
    """The sink score of every key under uniform attention.

    Query i spreads its weight evenly over the keys it sees: the i + 1 keys up to itself, the last
    `window` of them, or all `length` where attention is not causal. A learned sink takes as much as
    a key does.
    """
    pattern = _uniform_pattern(length, window, causal, learned_sink)
    scores: np.ndarray = np.tril(pattern).sum(0) / np.arange(length, 0, -1)
    return scores


def uniform_sink_mass(
    length: int,
    *,
    window: int | None = None,
    causal: bool = True,
    key: int = 0,
    learned_sink: bool = False,
) -> float:
    """Sink mass under uniform attention: the mean over queries i > key of the weight on the key."""
    pattern = _uniform_pattern(length, window, causal, learned_sink)
    return float(pattern[key + 1 :, key].mean())


def _uniform_pattern(
    length: int, window: int | None, causal: bool, learned_sink: bool
) -> Float[np.ndarray, "query key"]:
    """Uniform attention over the visible keys, and over a learned sink with the logit of a key."""
    visible = np.ones((length, length))
    if causal:
        visible = np.tril(visible)
    if window is not None:
        visible = np.triu(visible, 1 - window)
    pattern: np.ndarray = visible / (visible.sum(-1, keepdims=True) + learned_sink)
    return pattern
