"""Fisher traces by layer and group, a part of `reference_frame` that is asked for apart.

The squared gradient norm of each prompt's loss (`engine.gradients`) by attention, MLP, embeddings
and the rest (norms, biases, an unembedding that is not tied). Weights that the model ties count
once, with the embeddings. A group's share of the trace stands beside its share of the weights: what
a gradient of the same size everywhere would give. Ruscio et al. 2025 (2508.02546) correlate the
trace with depth; the rank correlation here is taken within each prompt.

The loss is next-token cross-entropy; in a bidirectional model it is that of 15 % of the tokens,
replaced by the mask token, as the paper does. Prompts have no padding, so none is a label.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from ...core.errors import SinklensError
from ...core.protocol import HookedModel
from ...core.seeds import content_seed
from ...engine.gradients import NO_LABEL, require_weight_gradients, squared_gradients
from ...models.prompts import Prompts
from ...results.estimates import Measure, Sample, proportion
from ...runner.run import Run

GROUPS = ("attention", "mlp", "embedding", "other")
MASKED = 0.15
MEASURES = {
    "fisher_share": proportion("share of trace", "its share of the weights", ".1%"),
    "fisher_depth": Measure("rank correlation", "no correlation", "+.2f"),
}
NONE = "TransformerLens shows no weights of {1} in {0}"
Groups = dict[tuple[str, int], list[Tensor]]
Tokens = Int[Tensor, "prompt pos"]


def inputs_and_labels(run: Run[Any]) -> tuple[Tokens, Tokens]:
    """What the model reads and what it should predict, by position.

    Raises:
        SinklensError: The model is bidirectional and has no mask token, or its weights' gradients
            cannot be had.
    """
    require_weight_gradients(run.model)
    if run.capabilities.causal:
        labels = run.prompts.tokens.roll(-1, 1)
        labels[:, -1] = NO_LABEL
        return run.prompts.tokens, labels
    mask = getattr(run.model.tokenizer, "mask_token_id", None)
    if mask is None:
        raise SinklensError(
            "fisher=True needs a loss: this model is bidirectional, and its tokenizer has no mask "
            "token to hide the tokens that it should predict; the other parts work without"
        )
    return _masked(run.prompts, mask, run.config.seed)


def add_fisher(run: Run[Any], inputs: Tokens, labels: Tokens) -> None:
    """Shares of the groups, the rank correlation with depth, and the traces by layer."""
    groups = weight_groups(run.model)
    progress = run.config.progress
    norms = squared_gradients(run.model, inputs, labels, groups, progress=progress).double()
    sizes = np.array([sum(weight.numel() for weight in group) for group in groups.values()])
    for name in GROUPS:
        members = [place for place, (group, _) in enumerate(groups) if group == name]
        if not members:
            run.left_out(
                f"fisher_share of {name}", NONE.format(run.capabilities.architecture, name)
            )
            continue
        share = norms[:, members].sum(1) / norms.sum(1)
        null = float(sizes[members].sum() / sizes.sum())
        run.add("fisher_share", name, Sample(share, null))
        if name in ("attention", "mlp"):
            layers = [layer for group, layer in groups if group == name]
            trace = norms[:, members].mean(0).float()
            coords = {} if layers == [*range(len(layers))] else {"layer": layers}
            run.keep(f"fisher_trace:{name}", trace, "layer", **coords)
            slope = _rank_correlation(norms[:, members])
            if slope is not None:
                run.add("fisher_depth", name, Sample(slope))


def weight_groups(model: HookedModel) -> Groups:
    """All weights of a model, each in one group; `other` and `embedding` have layer -1."""
    groups: Groups = {}
    taken: set[int] = set()

    def take(key: tuple[str, int], weights: list[Tensor]) -> None:
        fresh = {id(w): w for w in weights if id(w) not in taken}
        if fresh:
            groups[key] = [*groups.get(key, []), *fresh.values()]
        taken.update(fresh)

    for name in ("embed", "pos_embed", "token_type_embed"):
        module = getattr(model, name, None)
        take(("embedding", -1), [] if module is None else list(module.parameters()))
    for layer, block in enumerate(model.blocks):
        # Norms first: TransformerLens finds some of them inside attention and MLP.
        norms = [module for name, module in block.named_children() if name.startswith("ln")]
        take(("other", -1), [w for norm in norms for w in norm.parameters()])
        for group, name in (("attention", "attn"), ("mlp", "mlp")):
            part = getattr(block, name, None)
            take((group, layer), [] if part is None else list(part.parameters()))
    take(("other", -1), list(model.original_model.parameters()))
    return groups


def _masked(prompts: Prompts, mask: int, seed: int) -> tuple[Tokens, Tokens]:
    """Prompts with some tokens behind position 0 masked, and labels there alone."""
    inputs, labels = prompts.tokens.clone(), torch.full_like(prompts.tokens, NO_LABEL)
    count = max(1, round(MASKED * (prompts.length - 1)))
    for row, tokens in enumerate(prompts.tokens):
        random = np.random.default_rng(content_seed(tokens, seed))
        chosen = 1 + torch.from_numpy(random.choice(prompts.length - 1, count, replace=False))
        labels[row, chosen], inputs[row, chosen] = tokens[chosen], mask
    return inputs, labels


def _rank_correlation(trace: Float[Tensor, "prompt layer"]) -> Float[np.ndarray, " prompt"] | None:
    """Spearman's, with the layer's number, within each prompt; None where nothing varies."""
    if trace.shape[1] < 3 or bool((trace.amax(1) == trace.amin(1)).any()):
        return None
    layers = np.arange(trace.shape[1])
    return np.array([stats.spearmanr(layers, depth).statistic for depth in trace.numpy()])
