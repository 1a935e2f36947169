"""Ablate heads: their output, or only their attention edges to the sink.

Conditions on the output (`hook_z`), at all positions:

- `zero`; its effect depends on whether value biases are folded (compatibility mode);
- `mean`: the mean over prompts, separately for position 0 and the rest;
- `resample`: the same head's output in another prompt, position by position.

Conditions on the edge from queries i > p to key p (`hook_pattern`; p = 0 is the sink):

- `drop_edge`: the weight is set to 0 and the rest of the row is renormalised to the row's original
  sum;
- `drop_edge_unnormalised`: the weight is set to 0 and the rest is unchanged. Where the pattern
  cannot be intervened on, the same is done by subtracting `A_ip v_p` from z.

The two are different experiments: the first forces the sink's attention onto other keys, the second
removes only what is read from the sink. The row of query p itself is never changed: masking the
only key of query 0 would let it read the future.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import UsageError, unknown_name
from ..core.labels import Head, head_label
from ..core.protocol import HookedModel
from ..models.capabilities import check, hook_name
from .intervention import FwdHooks, HookFunction, Intervention

OUTPUT_CONDITIONS = ("zero", "mean", "resample")
EDGE_CONDITIONS = ("drop_edge", "drop_edge_unnormalised")
HEAD_CONDITIONS = OUTPUT_CONDITIONS + EDGE_CONDITIONS
HeadValues = dict[int, Tensor]


def ablate_heads(
    model: HookedModel,
    heads: Iterable[Head],
    with_: str = "mean",
    *,
    values: HeadValues | None = None,
    order: Int[Tensor, " prompt"] | None = None,
    position: int = 0,
    draw: int | None = None,
) -> Intervention:
    """Ablate query heads, all in one forward pass.

    Args:
        model: The model.
        heads: Pairs of layer and query head.
        with_: `zero`, `mean`, `resample`, `drop_edge` or `drop_edge_unnormalised`.
        values: By layer, the written values: for `mean` those of `HeadMeans`, for `resample` the
            outputs of all prompts (`HeadOutputs`), and for
            `drop_edge_unnormalised` on models whose pattern cannot be edited what `SinkReads`
            computes. The other conditions need none.
        order: For `resample`, the number of the prompt whose outputs each prompt gets; by default
            `values` are in this order already.
        position: The key whose edge is dropped; 0 is the sink.
        draw: The number of the draw.

    Raises:
        UsageError: The condition or a head does not exist, or heads or values are missing.
        SinklensError: The output of heads cannot be edited on this model.
    """
    if with_ not in HEAD_CONDITIONS:
        raise unknown_name("condition", with_, HEAD_CONDITIONS)
    if values is None and with_ in ("mean", "resample"):
        probe = "HeadMeans" if with_ == "mean" else "HeadOutputs"
        raise UsageError(f"{with_} needs values=, computed by the probe sinklens.probes.{probe}")
    by_layer: defaultdict[int, list[int]] = defaultdict(list)
    for layer, head in heads:
        if not (0 <= layer < model.cfg.n_layers and 0 <= head < model.cfg.n_heads):
            raise UsageError(
                f"there is no head {head_label((layer, head))}: this model has {model.cfg.n_layers}"
                f" layers of {model.cfg.n_heads} heads"
            )
        by_layer[layer].append(head)
    if not by_layer:
        raise UsageError("no heads to ablate")
    on_output = values is not None or with_ in OUTPUT_CONDITIONS
    if on_output:
        check(model).require("z", with_)
    site = "z" if on_output else "pattern"
    absent = [name for layer in by_layer if (name := hook_name(site, layer)) not in model.hook_dict]
    if absent:
        check(model).require_readable(absent, with_)
    listed = [(layer, head) for layer, these in by_layer.items() for head in these]
    only = listed[0] if len(listed) == 1 else (None, None)
    bind = partial(
        _head_hooks,
        by_layer=dict(by_layer),
        with_=with_,
        values=values,
        order=order,
        position=position,
    )
    per_prompt = values is not None and with_ != "mean"
    return Intervention(
        name=with_,
        site=site,
        first_layer=min(by_layer),
        fwd_hooks=bind(None),
        position=position,
        layer=only[0],
        head=only[1],
        draw=draw,
        rebind=bind if per_prompt else None,
    )


def _head_hooks(
    index: Int[Tensor, " batch"] | None,
    *,
    by_layer: dict[int, list[int]],
    with_: str,
    values: HeadValues | None,
    order: Int[Tensor, " prompt"] | None,
    position: int,
) -> FwdHooks:
    """The hooks of an ablation, for some of the prompts."""
    site = "z" if values is not None or with_ in OUTPUT_CONDITIONS else "pattern"
    edits: dict[str, HookFunction] = {
        "zero": zero_heads,
        "mean": mean_heads,
        "resample": resample_heads,
        "drop_edge": drop_edge,
        "drop_edge_unnormalised": drop_edge_unnormalised if site == "pattern" else subtract_reads,
    }
    hooks: FwdHooks = []
    for layer, heads in sorted(by_layer.items()):
        settings: dict[str, Any] = {"heads": heads}
        if site == "pattern":
            settings["position"] = position
        elif values is not None:
            settings["values"] = values[layer]
            if with_ != "mean":
                # The prompt whose outputs each prompt of the batch gets.
                settings["rows"] = order if index is None else _composed(order, index)
        hooks.append((hook_name(site, layer), partial(edits[with_], **settings)))
    return hooks


def _composed(
    order: Int[Tensor, " prompt"] | None, index: Int[Tensor, " batch"]
) -> Int[Tensor, " batch"]:
    return index if order is None else order[index]


def zero_heads(
    z: Float[Tensor, "batch pos head d_head"], hook: Any, *, heads: list[int]
) -> Float[Tensor, "batch pos head d_head"]:
    """Set the output of heads to 0."""
    edited = z.clone()
    edited[:, :, heads] = 0
    return edited


def mean_heads(
    z: Float[Tensor, "batch pos head d_head"],
    hook: Any,
    *,
    heads: list[int],
    values: Float[Tensor, "2 n_heads d_head"],
) -> Float[Tensor, "batch pos head d_head"]:
    """Write the mean output of heads: the first of `values` at position 0, the second elsewhere."""
    edited = z.clone()
    means = values[:, heads].to(z)
    edited[:, 0, heads] = means[0]
    edited[:, 1:, heads] = means[1]
    return edited


def resample_heads(
    z: Float[Tensor, "batch pos head d_head"],
    hook: Any,
    *,
    heads: list[int],
    values: Float[Tensor, "prompt longest n_heads d_head"],
    rows: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch pos head d_head"]:
    """Write the outputs of heads in other prompts: those of `rows`, or `values` unchanged.

    Values at positions that these prompts do not have are left out.
    """
    edited = z.clone()
    edited[:, :, heads] = _taken(values, heads, rows)[:, : z.shape[1]].to(z)
    return edited


def subtract_reads(
    z: Float[Tensor, "batch pos head d_head"],
    hook: Any,
    *,
    heads: list[int],
    values: Float[Tensor, "prompt pos n_heads d_head"],
    rows: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch pos head d_head"]:
    """Subtract what heads read from one key from their output."""
    edited = z.clone()
    edited[:, :, heads] -= _taken(values, heads, rows).to(z)
    return edited


def _taken(
    values: Float[Tensor, "prompt pos n_heads d_head"],
    heads: list[int],
    rows: Int[Tensor, " batch"] | None,
) -> Float[Tensor, "batch pos head d_head"]:
    """The values of some heads in some prompts, copied only when a batch runs."""
    chosen = values[:, :, heads]
    return chosen if rows is None else chosen[rows]


def drop_edge(
    pattern: Float[Tensor, "batch head query key"],
    hook: Any,
    *,
    heads: list[int],
    position: int = 0,
) -> Float[Tensor, "batch head query key"]:
    """Set the weight on a key to 0 for later queries and renormalise each row to its original sum.

    A row with all its weight on the key has nothing to renormalise and becomes 0.
    """
    edited = pattern.clone()
    # In half precision the remaining sum can be below the smallest normal number.
    rows = pattern[:, heads, position + 1 :].float()
    kept = rows.clone()
    kept[..., position] = 0
    tiny = torch.finfo(torch.float32).tiny
    scale = rows.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp_min(tiny)
    edited[:, heads, position + 1 :] = (kept * scale).to(pattern)
    return edited


def drop_edge_unnormalised(
    pattern: Float[Tensor, "batch head query key"],
    hook: Any,
    *,
    heads: list[int],
    position: int = 0,
) -> Float[Tensor, "batch head query key"]:
    """Set the weight on a key to 0 for later queries and leave the rest of the row unchanged."""
    edited = pattern.clone()
    rows = edited[:, heads, position + 1 :]
    rows[..., position] = 0
    edited[:, heads, position + 1 :] = rows
    return edited
