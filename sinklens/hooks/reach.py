"""Which layers an intervention can reach, from the names of its hooks.

What a forward pass computes before the first hook is that of the clean run to the last bit, so an
average that includes it says less than what the intervention does. In block l, in order:

    residual   what enters the block            reached by hooks there and in earlier blocks
    scores     attention logits                 also by hooks on queries, keys, the first norm
    pattern    attention weights                also by hooks on scores and pattern
    the rest   values, z, MLP, what leaves      reach these only in later blocks

A hook of another name in the block counts as one before the scores; one before the blocks reaches
all layers, one behind them none.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

READABLE = {"residual": 0, "scores": 2, "pattern": 3}
_BEFORE_SCORES, _REST = 1, 4
_ENTRIES = ("hook_resid_pre", "hook_in")
_BEHIND_PATTERN = re.compile(
    r"attn\.(hook_v|hook_z|hook_result|hook_out|v\.hook_out|o\.hook_in|o\.hook_out)$"
    r"|hook_(v_input|attn_out|resid_mid|mlp_in|mlp_out|resid_post|out)$"
    r"|(ln1_post|ln2|ln2_post|mlp)\."
)
_BEHIND_BLOCKS = ("ln_final", "unembed", "hook_unembed", "mlm_head")


class Reach(NamedTuple):
    """The first place in a forward pass that an intervention can change."""

    layer: int
    stage: int

    def first(self, site: str, layers: Sequence[int]) -> int:
        """The place of the first of some layers whose `site` can change; their count for none.

        Args:
            site: A key of `READABLE`; for `residual`, layer l stands for what enters block l, and
                one past the last for what leaves it.
            layers: Their numbers, in order.
        """
        return bisect_left(layers, self.layer if READABLE[site] >= self.stage else self.layer + 1)


def reach_of(names: Iterable[str], n_layers: int) -> Reach:
    """How far up the first of some hooks reaches.

    Args:
        names: The names of the hooks.
        n_layers: Blocks of the model.
    """
    return min(_reach(name, n_layers) for name in names)


def _reach(name: str, n_layers: int) -> Reach:
    in_block = re.match(r"blocks\.(\d+)\.(.*)", name)
    if in_block is None:
        behind = name.startswith(_BEHIND_BLOCKS)
        return Reach(n_layers, _REST) if behind else Reach(0, 0)
    layer, part = int(in_block[1]), in_block[2]
    if part in _ENTRIES:
        stage = READABLE["residual"]
    elif part == "attn.hook_attn_scores":
        stage = READABLE["scores"]
    elif part == "attn.hook_pattern":
        stage = READABLE["pattern"]
    else:
        stage = _REST if _BEHIND_PATTERN.match(part) else _BEFORE_SCORES
    return Reach(layer, stage)


def block_of(name: str) -> int | None:
    """The block that a hook is in; None outside the blocks."""
    match = re.match(r"blocks\.(\d+)\.", name)
    return int(match[1]) if match else None


def named_layers(first: int, layers: Sequence[int], site: str) -> str | None:
    """The reached layers in words: `L12-L29`, `L12-out` for the stream; None for all of them.

    Args:
        first: The place of the first of them.
        layers: The numbers of all that are read, in order.
        site: What is read.
    """
    if first == 0:
        return None
    lowest, last = layers[first], layers[-1]
    if site == "residual":
        return f"L{lowest}-out" if lowest < last else "out"
    return f"L{lowest}-L{last}" if lowest < last else f"L{lowest}"
