"""What the engine computes, without any of its shortcuts: one whole forward an intervention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sinklens.hooks.intervention import Intervention
from sinklens.models.prompts import Prompts


def plain_values(
    model: Any,
    prompts: Prompts,
    interventions: Sequence[Intervention | None],
    positions: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """`loss`, `kl`, `sink_mass` and `position0_norm` by intervention and prompt; None is clean."""
    tokens, length = prompts.tokens, prompts.length
    layers = range(model.cfg.n_layers)
    streams = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
    streams.append(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")
    rows: dict[str, list[Tensor]] = {name: [] for name in ("loss", "kl", "mass", "norm")}
    with torch.no_grad():
        before = model(tokens).log_softmax(-1)
        for intervention in interventions:
            hooks, edited = [], 0
            if intervention is not None:
                whole = intervention.for_prompts(torch.arange(len(tokens)))
                hooks, edited = whole.fwd_hooks, whole.position
            seen: dict[str, Tensor] = {}
            reading = [(name, _keep(seen, name)) for name in streams]
            reading += [
                (f"blocks.{layer}.attn.hook_pattern", _keep(seen, layer)) for layer in layers
            ]
            after = model.run_with_hooks(tokens, fwd_hooks=[*hooks, *reading]).log_softmax(-1)
            counted = [p for p in range(edited + 1, length) if positions is None or p in positions]
            made = [p for p in counted if p < length - 1]
            losses = -after[:, made].gather(-1, tokens[:, [p + 1 for p in made], None])[..., 0]
            rows["loss"].append(losses.mean(1))
            kl = (before.exp() * (before - after)).sum(-1)[:, counted]
            rows["kl"].append(kl.mean(1))
            mass = [seen[layer][:, :, 1:, 0].mean(-1) for layer in layers]
            rows["mass"].append(torch.stack(mass, 1).mean((1, 2)))
            norms = torch.stack([seen[name][:, 0].norm(dim=-1) for name in streams], 1)
            rows["norm"].append(norms.amax(1))
    return {name: torch.stack(values) for name, values in rows.items()}


def _keep(seen: dict[Any, Tensor], key: Any) -> Any:
    def keep(activation: Tensor, hook: Any) -> None:
        seen[key] = activation.clone()

    return keep
