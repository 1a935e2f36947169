"""What the engine computes, without any of its shortcuts: one whole forward an intervention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import dropwhile
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
    """Every metric by intervention and prompt; None is clean.

    `mass`, `rate` and `norm` are over the layers from the first whose pattern, or stream, differs
    from that of the clean run in any bit; NaN where none does.
    """
    tokens, length = prompts.tokens, prompts.length
    layers = range(model.cfg.n_layers)
    streams = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
    streams.append(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")
    rows: dict[str, list[Tensor]] = {name: [] for name in ("loss", "kl", "mass", "rate", "norm")}
    if prompts.answers is not None:
        rows["logit_diff"] = []
    with torch.no_grad():
        clean: dict[str, Tensor] = {}
        patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
        reading = [(name, _keep(clean, name)) for name in (*streams, *patterns)]
        before = model.run_with_hooks(tokens, fwd_hooks=reading).log_softmax(-1)
        for intervention in interventions:
            hooks, edited = [], 0
            if intervention is not None:
                whole = intervention.for_prompts(torch.arange(len(tokens)))
                hooks, edited = whole.fwd_hooks, whole.position
            seen: dict[str, Tensor] = {}
            reading = [(name, _keep(seen, name)) for name in (*streams, *patterns)]
            logits = model.run_with_hooks(tokens, fwd_hooks=[*hooks, *reading])
            after = logits.log_softmax(-1)
            if prompts.answers is not None:
                chosen = logits[:, -1].gather(1, prompts.answers)
                rows["logit_diff"].append(chosen[:, 0] - chosen[:, 1])
            counted = [p for p in range(edited + 1, length) if positions is None or p in positions]
            made = [p for p in counted if p < length - 1]
            losses = -after[:, made].gather(-1, tokens[:, [p + 1 for p in made], None])[..., 0]
            rows["loss"].append(losses.mean(1))
            kl = (before.exp() * (before - after)).sum(-1)[:, counted]
            rows["kl"].append(kl.mean(1))
            nothing = [torch.full((len(tokens),), torch.nan)]
            same = partial(_same, clean, seen if hooks else {})
            mass = [seen[name][:, :, 1:, 0].mean((1, 2)) for name in dropwhile(same, patterns)]
            rows["mass"].append(torch.stack(mass or nothing).mean(0))
            scores = [seen[name][:, :, :, 0].mean(2) for name in dropwhile(same, patterns)]
            rate = [(score > 0.3).float().mean(1) for score in scores]
            rows["rate"].append(torch.stack(rate or nothing).mean(0))
            norms = [seen[name][:, 0].norm(dim=-1) for name in dropwhile(same, streams)]
            rows["norm"].append(torch.stack(norms or nothing).amax(0))
    return {name: torch.stack(values) for name, values in rows.items()}


def _same(clean: dict[str, Tensor], edited: dict[str, Tensor], name: str) -> bool:
    return name in edited and torch.equal(clean[name], edited[name])


def _keep(seen: dict[Any, Tensor], key: Any) -> Any:
    def keep(activation: Tensor, hook: Any) -> None:
        seen[key] = activation.clone()

    return keep
