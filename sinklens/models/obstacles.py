"""Why sites of a model cannot be read or edited for what their names say.

Every function takes hook points by kind of site and layer (`names`) and what they held in a clean
run on two short prompts (`trials.Sites`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.errors import SinklensError
from ..core.protocol import HookedModel
from .trials import (
    Sites,
    add_noise,
    differs,
    layers_changed,
    misshapen,
    relative_room,
    writes_what_it_reads,
)

NO_EFFECT = "an intervention there does nothing"
HIDDEN_VALUES = "values are clamped, normed or gated behind that hook"
NO_BLOCKS = (
    "TransformerLens shows neither the residual stream nor attention in any block of {}; use a "
    "model whose blocks have a hook_resid_pre or hook_pattern"
)
OF_ATTENTION = ("z", "pattern", "scores", "key", "value")
"""The kinds of site that only layers with attention have."""
_SHOWN = 6


def meant_shapes(
    length: int, heads: int, groups: int, width: int
) -> dict[str, dict[str, int | None]]:
    """The axes of every kind of site, with their sizes for two prompts."""
    start: dict[str, int | None] = {"batch": 2}
    stream = {**start, "pos": length, "d_model": width}
    pattern = {**start, "head": heads, "query": length, "key": length}
    grouped = {**start, "pos": length, "key_value_head": groups, "d_head": None}
    return {
        "embedding": stream,
        "residual": stream,
        "resid_post": stream,
        "z": {**start, "pos": length, "head": heads, "d_head": None},
        "pattern": pattern,
        "scores": pattern,
        "key": grouped,
        "value": grouped,
    }


def require_blocks(architecture: str, names: Mapping[str, Sequence[str]], clean: Sites) -> None:
    """Refuse a model of whose blocks TransformerLens shows nothing that sinklens reads or edits.

    Raises:
        SinklensError: It is one.
    """
    kinds = ("residual", *OF_ATTENTION)
    if not any(name in clean.held for kind in kinds for name in names[kind]):
        raise SinklensError(NO_BLOCKS.format(architecture))


def attention_layers(names: Mapping[str, Sequence[str]], clean: Sites) -> tuple[int, ...]:
    """The layers in which TransformerLens shows anything of attention."""
    layers = range(len(names["residual"]))
    return tuple(la for la in layers if any(names[site][la] in clean.held for site in OF_ATTENTION))


def unreadable_hooks(
    names: Mapping[str, Sequence[str]],
    clean: Sites,
    shapes: Mapping[str, Mapping[str, int | None]],
    with_attention: Sequence[int],
) -> dict[str, str]:
    """By hook point, why it does not hold what the code means."""
    found: dict[str, str] = {}
    for site, by_layer in names.items():
        absent = [layer for layer, name in enumerate(by_layer) if name not in clean.held]
        attention = site not in OF_ATTENTION or bool({*absent} & {*with_attention})
        for layer, name in enumerate(by_layer):
            if layer in absent:
                found[name] = _absence(by_layer[0], absent, len(by_layer), attention)
            elif reason := misshapen(clean.held[name], shapes[site]):
                found[name] = reason
    return found


def _absence(name: str, absent: Sequence[int], n_layers: int, attention: bool) -> str:
    """That some layers do not have a site."""
    hook = name.rpartition(".")[2]
    where = "no layer" if len(absent) == n_layers else layer_list(absent, n_layers)
    if len(absent) == n_layers:
        return f"{where} has a {hook} that TransformerLens can reach"
    verb = "have" if len(absent) > 1 else "has"
    return f"{where} {verb} {'no ' + hook if attention else 'no attention with a ' + hook}"


def layer_list(layers: Sequence[int], n_layers: int) -> str:
    """Some layers in words: `layers 0 and 2 of 3`."""
    if len(layers) == n_layers:
        return "any layer"
    shown = [str(layer) for layer in layers[:_SHOWN]]
    if len(layers) > _SHOWN:
        shown.append(f"{len(layers) - _SHOWN} more")
    *first, last = shown
    named = f"{', '.join(first)} and {last}" if first else last
    return f"layer{'s' if len(layers) > 1 else ''} {named} of {n_layers}"


def layers_of(site: str, with_attention: Sequence[int], n_layers: int) -> Sequence[int]:
    """The layers in which a kind of site is meant to be; all where no layer has attention."""
    return with_attention if site in OF_ATTENTION and with_attention else range(n_layers)


def obstacles_to_edits(
    model: HookedModel,
    tokens: Any,
    clean: Sites,
    names: Mapping[str, Sequence[str]],
    unreadable: Mapping[str, str],
    with_attention: Sequence[int],
) -> dict[str, str]:
    """By kind of site why interventions there do not do what they mean.

    Those of attention are asked for in the layers that have some.
    """
    n_layers, entries = len(names["residual"]), names["residual"]
    found: dict[str, str] = {}
    for site, by_layer in names.items():
        of_site = layers_of(site, with_attention, n_layers)
        bad = [by_layer[layer] for layer in of_site if by_layer[layer] in unreadable]
        if bad:
            found[site] = unreadable[bad[0]]
            continue
        if site == "embedding":
            edited = model.run_with_hooks(tokens, fwd_hooks=[(by_layer[0], add_noise)])
            changed = [differs(edited, clean.logits)] * n_layers
        elif all(name in clean.held for name in entries):
            changed = layers_changed(model, tokens, clean, by_layer, entries)
        else:
            changed = [False] * n_layers
        still = [layer for layer in of_site if not changed[layer]]
        if len(still) == len(of_site):
            found[site] = NO_EFFECT
        elif still:
            found[site] = f"{NO_EFFECT} in {layer_list(still, n_layers)}"
    return found


def has_experts(model: Any) -> bool:
    """Whether the Hugging Face model of a bridge has experts that tokens are routed to.

    Some configs count experts that no block has, and some blocks are named for experts of which
    there is one.
    """
    config: Any = getattr(model, "config", None)
    own = config.get_text_config() if hasattr(config, "get_text_config") else config
    counts = [
        count
        for name, count in getattr(own, "__dict__", {}).items()
        if name.endswith("experts") and "shared" not in name
    ]
    if not any(isinstance(count, int) and count > 1 for count in counts):
        return False
    return any("expert" in f"{name} {type(part)}".lower() for name, part in model.named_modules())


def gated_layers(
    names: Mapping[str, Sequence[str]], clean: Sites, unreadable: Mapping[str, str]
) -> tuple[int, ...]:
    """The layers in which z is not A v, as far as the three can be read."""
    wrong = []
    for layer, sites in enumerate(zip(names["pattern"], names["value"], names["z"], strict=True)):
        if not unreadable.keys() & set(sites):
            pattern, value, z = (clean.held[name] for name in sites)
            if not writes_what_it_reads(pattern, value, z):
                wrong.append(layer)
    return tuple(wrong)


def hidden_values(
    model: HookedModel,
    tokens: Any,
    clean: Sites,
    names: Mapping[str, Sequence[str]],
    gated: Sequence[int],
) -> dict[str, str]:
    """The hook points whose values are not those that heads sum, of layers in which z is not A v.

    Another value at position 0 then moves what a query reads along one direction, by its weight on
    key 0, as in z = A f(v). A gate or a norm behind attention moves each query in its own way.
    """
    entries = names["residual"]
    if not gated or any(entry not in clean.held for entry in entries):
        return {}
    moved: dict[int, Tensor] = {}
    hooks: list[tuple[str, Any]] = [
        (entry, partial(_instead, clean=clean.held[entry])) for entry in entries
    ]
    for layer in gated:
        hooks += [
            (names["value"][layer], _noise_at_0),
            (names["z"][layer], partial(_kept, moved=moved, layer=layer)),
        ]
    model.run_with_hooks(tokens, fwd_hooks=hooks)
    found = {}
    for layer in gated:
        change = moved[layer].float() - clean.held[names["z"][layer]].float()
        key0 = clean.held[names["pattern"][layer]][..., 0].float()
        if _along_one_direction(change, key0, relative_room(moved[layer].dtype)):
            found[names["value"][layer]] = HIDDEN_VALUES
    return found


def _along_one_direction(
    change: Float[Tensor, "batch pos head d"],
    weights: Float[Tensor, "batch head pos"],
    room: float,
) -> bool:
    """Whether each query moves by its weight times one vector of the head; also where none does."""
    direction = torch.einsum("bqhd,bhq->bhd", change, weights)
    direction = direction / (weights**2).sum(-1, keepdim=True)
    rest = change - torch.einsum("bhd,bhq->bqhd", direction, weights)
    return float(rest.abs().max()) <= room * float(change.abs().max())


def _instead(activation: Tensor, hook: Any, *, clean: Tensor) -> Tensor:
    return clean.clone()


def _noise_at_0(value: Tensor, hook: Any) -> Tensor:
    return torch.cat([add_noise(value, hook)[:, :1], value[:, 1:]], 1)


def _kept(z: Tensor, hook: Any, *, moved: dict[int, Tensor], layer: int) -> None:
    moved[layer] = z.detach().clone()
