"""Fisher traces by layer and group, a part of `reference_frame` that is asked for apart.

The squared gradient norm of each prompt's loss (`engine.gradients`) by attention, MLP, embeddings
and the rest (norms, biases, an unembedding that is not tied). Weights that the model ties count
once, with the embeddings. A group's share of the trace stands beside its share of the weights: what
a gradient of the same size everywhere would give. 2508.02546 correlates the trace with depth; the
rank correlation here is taken within each prompt.

The loss is next-token cross-entropy; in a model that sees both ways it is that of 15 % of the
tokens, replaced by the mask token, as the paper does. Prompts have no padding, so none is a label.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from ...core.errors import SinklensError
from ...core.protocol import HookedModel
from ...core.seeds import content_seed
from ...engine.gradients import NO_LABEL, squared_gradients
from ...models.prompts import Prompts
from ...results.record import Array
from ...stats.effects import paired_row
from ._table import Table

GROUPS = ("attention", "mlp", "embedding", "other")
MASKED = 0.15
Groups = dict[tuple[str, int], list[Tensor]]


def fisher_rows(
    table: Table,
    model: HookedModel,
    prompts: Prompts,
    *,
    causal: bool,
    seed: int,
    progress: bool | None,
) -> None:
    """Shares of the groups, the correlation with depth, and the traces by layer.

    Raises:
        SinklensError: The model sees both ways and has no mask token.
    """
    groups = weight_groups(model)
    inputs, labels = _masked(model, prompts, seed) if not causal else _next_tokens(prompts)
    norms = squared_gradients(model, inputs, labels, groups, progress=progress).double()
    sizes = {key: sum(weight.numel() for weight in group) for key, group in groups.items()}
    total = norms.sum(1)
    for name in GROUPS:
        mine = [place for place, (group, _) in enumerate(groups) if group == name]
        share = (norms[:, mine].sum(1) / total).numpy()
        weights = sum(size for (group, _), size in sizes.items() if group == name)
        null = np.full_like(share, weights / sum(sizes.values()))
        row = paired_row("fisher_share", name, "measurement", share, null, unit="share of trace")
        table.rows.append(row)
    for name in ("attention", "mlp"):
        trace = norms[:, [place for place, (group, _) in enumerate(groups) if group == name]]
        table.arrays[f"fisher_trace:{name}"] = Array(trace.mean(0).float(), ("layer",))
        slope = _rank_correlation(trace)
        if slope is not None:
            row = paired_row(
                "fisher_depth", name, "measurement", slope, 0 * slope, unit="rank correlation"
            )
            table.rows.append(row)


def weight_groups(model: HookedModel) -> Groups:
    """All weights of a model, each in one group; `other` and `embedding` have layer -1."""
    groups: Groups = {("embedding", -1): []}
    taken: set[int] = set()

    def take(key: tuple[str, int], weights: list[Tensor]) -> None:
        fresh = {id(w): w for w in weights if id(w) not in taken}
        groups[key] = [*groups.get(key, []), *fresh.values()]
        taken.update(fresh)

    for name in ("embed", "pos_embed", "token_type_embed"):
        module = getattr(model, name, None)
        take(("embedding", -1), [] if module is None else list(module.parameters()))
    for layer, block in enumerate(model.blocks):
        # Norms first: TransformerLens finds some of them inside attention and MLP.
        norms = [module for name, module in block.named_children() if name.startswith("ln")]
        take(("other", -1), [w for norm in norms for w in norm.parameters()])
        take(("attention", layer), list(block.attn.parameters()))
        take(("mlp", layer), list(block.mlp.parameters()))
    take(("other", -1), list(model.original_model.parameters()))
    return groups


def _next_tokens(prompts: Prompts) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, "prompt pos"]]:
    """Prompts, and at each position the next token."""
    labels = prompts.tokens.roll(-1, 1)
    labels[:, -1] = NO_LABEL
    return prompts.tokens, labels


def _masked(
    model: HookedModel, prompts: Prompts, seed: int
) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, "prompt pos"]]:
    """Prompts with some tokens behind position 0 masked, and labels there alone."""
    mask = getattr(model.tokenizer, "mask_token_id", None)
    if mask is None:
        raise SinklensError(
            "fisher needs a loss: this model sees both ways, and its tokenizer has no mask token "
            "to hide what it should predict"
        )
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
    return np.array([stats.spearmanr(layers, one).statistic for one in trace.numpy()])
