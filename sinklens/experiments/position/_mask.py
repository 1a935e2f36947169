"""The causal-mask component, beside flat logits and beside the same logits with offsets shuffled.

All are made of the mean logit at every offset. The control has the same mean logits in another
order of offsets: what it still shows is due to how many keys a query sees and how logits scatter,
not to where they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core.seeds import seeded
from ...functional.causal_mask import CausalMask
from ...results.estimates import NOT_TESTED, Reference, Sample
from ...runner.run import Run
from ._components import CleanRun, by_prompt, sample
from ._pairs import KEYS


def add_mask(
    run: Run[Any],
    clean: CleanRun,
    windows: Sequence[int],
    sink_logit: Float[Tensor, "layer head"] | None,
    window: int,
) -> None:
    """The rows and arrays of the component with all keys and without key 0.

    Args:
        run: The run.
        clean: What was read without an edit; the longest range counts.
        windows: By layer, how many keys a query sees.
        sink_logit: Of learned sinks.
        window: The window that the mask is set against.
    """
    pairs, components, masks = clean.pairs, clean.components, []
    for number, keys in enumerate(KEYS):
        # Without key 0 the largest offset does not occur.
        offsets = components.offsets[..., : pairs.size - number, number]
        mask = CausalMask(offsets, windows, sink_logit)
        component = components.by_layer(pairs.number(pairs.last, keys))
        flat = _figures(mask.flat(), torch.zeros_like(component[:1]), window)
        orders = shuffled_orders(offsets.shape[-1], windows, run.config.draws, run.config.seed)
        shuffled = [_figures(mask.reordered(order), component, window) for order in orders]
        for metric, values in _figures(mask, component, window).items():
            null = float(flat[metric][0])
            references = []
            if shuffled:
                draws = np.stack([by_prompt(figures[metric]) for figures in shuffled])
                # Offsets differ in any model, so that shuffled ones differ from its logits.
                other = Sample(draws, null, len(draws))
                references = [Reference(other, "shuffled_offsets", "null", models=NOT_TESTED)]
            run.add(metric, keys, sample(values, null), *references, queries=pairs.last)
        masks.append((mask, component))
    arrays = {
        "causal_share": [mask.share(component)[0] for mask, component in masks],
        "causal_slope": [mask.slope()[0] for mask, _ in masks],
        "causal_variance": [mask.variance()[0] for mask, _ in masks],
    }
    for name, parts in arrays.items():
        dims = ("keys", "layer", "head")[: parts[0].ndim + 1]
        run.keep(name, torch.stack(parts), " ".join(dims), keys=[*KEYS])
    with_key0 = masks[0][0]
    run.keep("log_z", with_key0.log_z[0].mean(1), "layer query")
    run.keep("toeplitz", with_key0.offsets[0], "layer head offset")


def _figures(
    mask: CausalMask, component: Float[Tensor, "n layer"], window: int
) -> dict[str, Float[Tensor, " n"]]:
    """By metric, mean over heads, then over layers without layer 0.

    Flat logits have no residual-stream component, so that the mask is all there is.
    """
    by_layer = {
        "causal_slope": mask.slope(),
        "causal_r2": mask.extra_r2(),
        "window_kl": mask.window_kl(window),
        "causal_share": mask.share(component),
    }
    return {name: values[:, 1:].flatten(1).mean(1) for name, values in by_layer.items()}


def shuffled_orders(
    size: int, windows: Sequence[int], draws: int, seed: int
) -> list[Int[Tensor, "layer 1 offset"]]:
    """The order of offsets in each draw of the null; those that a window hides stay."""
    orders = []
    for draw in range(draws):
        by_window = {}
        for window in set(windows):
            visible = seeded(seed, "offsets", draw, window).permutation(min(size, window))
            hidden = torch.arange(len(visible), size)
            by_window[window] = torch.cat([torch.from_numpy(visible), hidden])
        orders.append(torch.stack([by_window[window] for window in windows])[:, None])
    return orders
