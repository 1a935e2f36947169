"""The choices of matched controls: later positions, other heads, other prompts.

Every choice is seeded and depends only on what is matched, so that it is reproducible.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..core.labels import Head
from ..core.seeds import seeded


def control_positions(
    length: int, draws: int, seed: int, sample: Sequence[int] | None = None
) -> list[int]:
    """One later position per draw, uniform in 1 .. length / 4.

    Only positions after which a prediction is left to count; empty where there is none.

    Args:
        length: Positions in each prompt.
        draws: The number of draws.
        seed: Seed of the draws.
        sample: The positions whose predictions count, if not all.
    """
    counted = [q for q in range(length - 1) if sample is None or q in sample]
    allowed = [p for p in range(1, max(1, length // 4) + 1) if any(q > p for q in counted)]
    if not allowed:
        return []
    return [int(place) for place in seeded(seed, "positions").choice(allowed, size=draws)]


def derangement(tokens: Int[Tensor, "prompt pos"], seed: int, draw: int) -> Int[Tensor, " prompt"]:
    """For each prompt the number of another prompt: a seeded cycle through all.

    The cycle is drawn over the prompts sorted by their tokens, so that each prompt's partner does
    not depend on the order of the prompts. With a single prompt there is no other one.
    """
    by_content = torch.from_numpy(np.lexsort(tokens.cpu().numpy().T[::-1]).copy())
    cycle = torch.from_numpy(seeded(seed, "derangement", draw).permutation(len(tokens)))
    order = by_content[cycle]
    result = torch.empty(len(tokens), dtype=torch.long)
    result[order] = order.roll(1)
    return result


class MatchedHeads(NamedTuple):
    """Control heads, and equally many treated heads to compare them with."""

    control: list[Head]
    treated: list[Head]


def matched_in_layers(
    treated: Sequence[Head], others: Sequence[Head], seed: int, draw: int
) -> MatchedHeads:
    """In each layer as many treated as other heads, the most that there are, drawn at random.

    Args:
        treated: The ablated heads.
        others: The heads that may be a control: neither treated nor sink heads.
        seed: Seed of the choice.
        draw: The number of the draw.
    """
    random = seeded(seed, "heads in layers", draw)
    chosen = MatchedHeads([], [])
    for layer in sorted({layer for layer, _ in treated}):
        groups = [[head for head in heads if head[0] == layer] for heads in (others, treated)]
        count = min(map(len, groups))
        for heads, group in zip(chosen, groups, strict=True):
            picked = random.choice(len(group), count, replace=False)
            heads += [group[number] for number in sorted(picked)]
    return chosen


def matched_heads(
    treated: Sequence[Head], others: Sequence[Head], seed: int, draw: int
) -> list[Head]:
    """As many other heads as treated ones, from the same layers, then from the nearest.

    Args:
        treated: The ablated heads.
        others: The heads that may be a control, at least as many as are treated.
        seed: Seed of the choice.
        draw: The number of the draw.
    """
    random = seeded(seed, "heads", draw)
    free: defaultdict[int, list[Head]] = defaultdict(list)
    for number in random.permutation(len(others)):
        free[others[number][0]].append(others[number])
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
    return sorted(control)
