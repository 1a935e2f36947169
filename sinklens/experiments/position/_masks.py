"""The causal-mask component of `absolute_position`, and its control.

Both are made of the mean logit at every offset. The control has the same mean logits in another
order of offsets: what it still shows is due to how many keys a query sees and how logits scatter,
not to where they stand.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core.seeds import seeded
from ...runner.config import ExperimentConfig
from ._components import CausalMask
from ._edits import KEYS


def causal_masks(
    offsets: Float[Tensor, "prompt layer head offset keys"],
    windows: Sequence[int],
    sink_logit: Float[Tensor, "layer head"] | None,
    config: ExperimentConfig,
) -> tuple[dict[str, CausalMask], dict[str, list[CausalMask]]]:
    """The component with all keys and without key 0, and the same of every draw of the control.

    Args:
        offsets: The mean logit at every offset, by choice of keys.
        windows: By layer, how many keys a query sees.
        sink_logit: Of learned sinks.
        config: For the draws and their seed.
    """
    masks, shuffled = {}, {}
    for number, keys in enumerate(KEYS):
        # Without key 0 the largest offset does not occur.
        here = offsets[..., :-1, number] if number else offsets[..., number]
        masks[keys] = CausalMask(here, windows, sink_logit)
        shuffled[keys] = [
            CausalMask(here.gather(-1, order.expand_as(here)), windows, sink_logit)
            for order in shuffled_orders(here.shape[-1], windows, config)
        ]
    return masks, shuffled


def shuffled_orders(
    size: int, windows: Sequence[int], config: ExperimentConfig
) -> list[Int[Tensor, "layer 1 offset"]]:
    """The order of offsets in each draw of the mask's control; those that a window hides stay."""
    orders = []
    for draw in range(config.draws):
        by_window = {
            window: torch.from_numpy(
                seeded(config.seed, "offsets", draw, window).permutation(min(size, window))
            )
            for window in windows
        }
        orders.append(torch.stack([_padded(by_window[w], size) for w in windows])[:, None])
    return orders


def _padded(order: Int[Tensor, " visible"], size: int) -> Int[Tensor, " offset"]:
    """An order of the first offsets with the others behind it."""
    return torch.cat([order, torch.arange(len(order), size)])
