"""Where a matched control edits instead, and the values that no mechanism would give.

A control does the same edit somewhere else, so that "the edit hurts" can be told from "this edit of
the sink hurts". Nulls are the sink scores of attention that knows nothing: every query spreads its
weight evenly over the keys that it sees.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from .core.labels import Head
from .core.seeds import seeded


def control_positions(
    length: int, draws: int, seed: int, sample: Sequence[int] | None = None
) -> list[int]:
    """One later position a draw, uniform in 1 .. length / 4.

    Only positions after which a prediction is left to count; none where there is no such position.

    Args:
        length: Positions in each prompt.
        draws: How many.
        seed: Decides them.
        sample: The positions whose predictions count, if not all.
    """
    counted = [q for q in range(length - 1) if sample is None or q in sample]
    allowed = [p for p in range(1, max(1, length // 4) + 1) if any(q > p for q in counted)]
    if not allowed:
        return []
    return [int(place) for place in seeded(seed, "positions").choice(allowed, size=draws)]


def derangement(tokens: Int[Tensor, "prompt pos"], seed: int, draw: int) -> Int[Tensor, " prompt"]:
    """For each prompt the number of another one: a seeded cycle through all.

    The cycle is drawn over the prompts in the order of their tokens, so that each prompt's partner
    does not depend on where it stands. With a single prompt there is no other one.
    """
    by_content = torch.from_numpy(np.lexsort(tokens.cpu().numpy().T[::-1]).copy())
    cycle = torch.from_numpy(seeded(seed, "derangement", draw).permutation(len(tokens)))
    order = by_content[cycle]
    result = torch.empty(len(tokens), dtype=torch.long)
    result[order] = order.roll(1)
    return result


class MatchedHeads(NamedTuple):
    """Control heads, and as many of the treated heads to set against them."""

    control: list[Head]
    treated: list[Head]


def matched_heads(
    treated: Sequence[Head], others: Sequence[Head], seed: int, draw: int
) -> MatchedHeads:
    """As many other heads as treated ones, from the same layers, then from the nearest.

    Where fewer exist, all of them are the control, and they are set against as many treated heads
    drawn at random.

    Args:
        treated: The heads that are edited.
        others: The heads that may be a control: neither treated nor sink heads.
        seed: Decides the choice.
        draw: The number of the draw.
    """
    random = seeded(seed, "heads", draw)
    free: defaultdict[int, list[Head]] = defaultdict(list)
    for number in random.permutation(len(others)):
        free[others[number][0]].append(others[number])
    available = len(others)
    if available < len(treated):
        chosen = random.choice(len(treated), available, replace=False)
        return MatchedHeads(
            sorted(others),
            sorted(treated[i] for i in chosen),
        )
    wanted: defaultdict[int, int] = defaultdict(int)
    for layer, _ in treated:
        wanted[layer] += 1
    control: list[Head] = []
    for distance in range(max((layer for layer, _ in [*others, *treated]), default=0) + 1):
        for layer in sorted(wanted):
            for near in sorted({layer - distance, layer + distance}):
                while wanted[layer] and free.get(near):
                    control.append(free[near].pop())
                    wanted[layer] -= 1
    return MatchedHeads(sorted(control), sorted(treated))


def gaussian_peak_ratio(entries: int) -> float:
    """The largest of so many Gaussian entries over the median one, in size.

    The median over draws of the largest, Phi^-1((1 + 2^(-1/n)) / 2), over that of one entry,
    Phi^-1(3/4): 6.3 for the 36,864 entries of 64 positions and 576 channels.
    """
    return float(stats.norm.isf((1 - 2 ** (-1 / entries)) / 2) / stats.norm.isf(0.25))


def gaussian_exceeds(entries: int, times: float) -> float:
    """The chance that any of so many Gaussian entries is `times` the median one in size."""
    tail = 2 * stats.norm.sf(times * stats.norm.isf(0.25))
    return float(-np.expm1(entries * np.log1p(-tail)))


def gaussian_peak_kurtosis(positions: int, width: int) -> float:
    """The kurtosis of the Gaussian vector that holds the largest entry of several.

    Above the 3 d / (d + 2) of any one, since it was chosen for its largest entry z:
    d (z^4 + 3 (d - 1)) / (z^2 + d - 1)^2, but for the spread of the other entries.
    """
    largest = gaussian_peak_ratio(positions * width) * stats.norm.isf(0.25)
    return float(width * (largest**4 + 3 * (width - 1)) / (largest**2 + width - 1) ** 2)


def largest_share(parts: int) -> float:
    """The largest share on average where a whole is broken at random: (1 + 1/2 + .. + 1/n) / n."""
    return float((1 / np.arange(1, parts + 1)).mean())


def uniform_sink_scores(
    length: int, *, window: int | None = None, causal: bool = True
) -> Float[np.ndarray, " key"]:
    """The sink score of every key under uniform attention.

    Query i spreads its weight evenly over the keys it sees: the i + 1 keys up to itself, the last
    `window` of them, or all `length` where attention is not causal.
    """
    pattern = _uniform_pattern(length, window, causal)
    scores: np.ndarray = np.tril(pattern).sum(0) / np.arange(length, 0, -1)
    return scores


def uniform_sink_mass(
    length: int, *, window: int | None = None, causal: bool = True, key: int = 0
) -> float:
    """Sink mass under uniform attention: the mean over queries i > key of the weight on the key."""
    return float(_uniform_pattern(length, window, causal)[key + 1 :, key].mean())


def _uniform_pattern(
    length: int, window: int | None, causal: bool
) -> Float[np.ndarray, "query key"]:
    """Uniform attention over the visible keys."""
    visible = np.ones((length, length))
    if causal:
        visible = np.tril(visible)
    if window is not None:
        visible = np.triu(visible, 1 - window)
    pattern: np.ndarray = visible / visible.sum(-1, keepdims=True)
    return pattern
