"""Heads removed in the order of a score: the joint curve, beside random orders and the gradient's.

A point is the share of heads that are removed together, the least active first. Two controls:
`random_order`, a random order of all heads (the published baseline), and `same_layers`, as many
heads of each layer drawn at random, so that a score that knows layers only is not more than its
control. One order holds for all prompts, from their mean score.

The gradient's order is by |<gradient of the loss, output - what is written>| of each head, mean
over prompts (first-order, as Michel et al. 2019, 1905.10650); it is a yardstick and not a score of
activity, since it knows the loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.labels import Head, head_label
from ...core.seeds import seeded
from ...engine import forwards_bar
from ...engine.screening import FORWARDS, estimate
from ...hooks.heads import HeadValues, ablate_heads
from ...hooks.intervention import Intervention
from ...metrics import METRICS, LogitMetric
from ...probes import HeadMeans
from ...results.estimates import Sample
from ...runner.compare import Comparison, Control
from ...runner.run import Run
from ._scores import least_active

GRADIENT = "gradient"
RANDOM_ORDER, SAME_LAYERS = "random_order", "same_layers"
KEPT_WITHIN = 0.01
"""Of the clean loss: what heads that can be removed may cost."""


class Removals:
    """The interventions of one run: each set of heads once, however many orders name it."""

    def __init__(self, run: Run[Any], scores: Mapping[str, Tensor]) -> None:
        """Read what is written, where that is no zero.

        Args:
            run: The run, or its twin with random weights.
            scores: By name, `[prompt, layer, head]`.
        """
        self._run, self._scores = run, scores
        self._made: dict[tuple[Head, ...], Intervention] = {}
        layers, heads = run.capabilities.attention, run.capabilities.n_heads
        self._heads = [(layer, head) for layer in layers for head in range(heads)]
        self._values = None
        if run.config.edit == "mean":
            (self._values,) = run.read(HeadMeans(run.model, layers))

    def comparisons(self) -> list[Comparison]:
        """Every order at every share, with its controls."""
        seed = self._run.config.seed
        draws = range(self._run.config.draws)
        shuffled = [
            [self._heads[i] for i in seeded(seed, "order", draw).permutation(len(self._heads))]
            for draw in draws
        ]
        made, layered = [], {}
        points = list(counts(self._run.config.removed, len(self._heads)))
        most = points[-1][1] if points else 0
        for name in self._run.conditions:
            order = self._order(name)
            for share, count in points:
                gone = order[:count]
                controls = [Control(RANDOM_ORDER, [self._without(o[:count]) for o in shuffled])]
                if name != GRADIENT and self._run.capabilities.n_heads > 1:
                    alike = [same_layers(gone, self._heads, seed, draw) for draw in draws]
                    controls.append(Control(SAME_LAYERS, [self._without(one) for one in alike]))
                    layered[f"{name}@{share}"] = [[*map(head_label, one)] for one in alike]
                treatment = [replace(self._without(gone), layer=None, head=None)]
                made.append(Comparison(f"{name}@{share}", treatment, tuple(controls), ""))
        orders = [[head_label(head) for head in one[:most]] for one in shuffled]
        self._run.drawn(**{RANDOM_ORDER: orders, SAME_LAYERS: layered})
        return made

    def _order(self, name: str) -> list[Head]:
        """All heads, the least active by a score first."""
        values = self._gradients() if name == GRADIENT else self._scores[name].mean(0)
        return least_active(name, self._run.capabilities.by_head(values))

    def _gradients(self) -> Tensor:
        """First-order effect of each head on the loss, its size, `[layer, head]`."""
        run, loss = self._run, METRICS["loss"]
        assert isinstance(loss, LogitMetric)
        alone = [self._without([head]) for head in self._heads]
        limits = {name: getattr(run.config, name) for name in ("batch_size", "memory", "positions")}
        forwards = FORWARDS * run.batches()
        run.count(forwards)
        with forwards_bar(forwards, run.config.progress) as advance:
            effects: Tensor = estimate(run.model, run.prompts, alone, loss, **limits).abs().mean(1)
            advance(forwards)
        return effects.double().reshape(-1, run.capabilities.n_heads)

    def _without(self, heads: Sequence[Head]) -> Intervention:
        """These heads removed."""
        key = tuple(sorted(heads))
        if key not in self._made:
            outputs = self._scores["output_norm"]
            self._made[key] = removed(self._run, key, outputs, self._values)
        return self._made[key]


def removed(
    run: Run[Any], heads: Sequence[Head], output_norm: Tensor, values: HeadValues | None
) -> Intervention:
    """Heads whose output is replaced; where they put out nothing, to change nothing is no error.

    Args:
        run: Its `edit` says by what.
        heads: The heads.
        output_norm: By `[prompt, layer, head]`.
        values: What is written, if it is not 0.
    """
    made = ablate_heads(run.model, heads, run.config.edit, values=values)
    norms = run.capabilities.by_head(output_norm.amax(0))
    return replace(made, identity=not any(norms[head] for head in heads))


def counts(shares: Sequence[float], heads: int) -> Iterator[tuple[str, int]]:
    """Each share in percent and how many heads it is, where that is more than the last."""
    last = 0
    for share in sorted(shares):
        count = max(1, round(share * heads))
        if last < count < heads:
            yield f"{100 * share:g}%", count
        last = max(last, count)


def same_layers(removed: Sequence[Head], heads: Sequence[Head], seed: int, draw: int) -> list[Head]:
    """As many heads of each layer, drawn at random among all of the layer."""
    random, chosen = seeded(seed, "heads of layers", draw), list[Head]()
    for layer in sorted({layer for layer, _ in removed}):
        members = [head for head in heads if head[0] == layer]
        count = sum(1 for at, _ in removed if at == layer)
        chosen += [members[i] for i in random.choice(len(members), count, replace=False)]
    return chosen


def add_curves(run: Run[Any], published: Mapping[str, float]) -> None:
    """Arrays of the curves by metric, and what share of heads each order removes within 1 %.

    Args:
        run: The run, whose removals were compared.
        published: By order, a published share.
    """
    rows = [row.effect for row in run.rows if "@" in row.effect.condition]
    for metric in dict.fromkeys(row.metric for row in rows):
        mine = [row for row in rows if row.metric == metric]
        treated = [row for row in mine if row.kind == "treatment"]
        orders = list(dict.fromkeys(row.condition.split("@")[0] for row in treated))
        shares = list(dict.fromkeys(row.condition.split("@")[1] for row in treated))
        at = {row.condition: row.effect for row in treated}
        curves = torch.tensor([[at[f"{name}@{share}"] for name in orders] for share in shares])
        run.keep(f"{metric}_rise", curves, "removed order", removed=shares, order=orders)
        controls = {(r.condition, r.against): r.effect for r in mine if r.kind == "control"}
        random = [controls.get((f"{orders[0]}@{share}", RANDOM_ORDER)) for share in shares]
        if None not in random:
            values = torch.tensor(random)
            run.keep(f"{metric}_rise:{RANDOM_ORDER}", values, "removed", removed=shares)
        if metric == "loss":
            limit = KEPT_WITHIN * treated[0].baseline
            null = removable(shares, random, limit) if None not in random else 0.0
            for number, name in enumerate(orders):
                share = removable(shares, curves[:, number].tolist(), limit)
                run.add("removable", name, Sample(share, null))
            for name, share in published.items():
                run.add("removable", f"published:{name}", Sample(share))


def removable(shares: Sequence[str], rises: Sequence[Any], limit: float) -> float:
    """The share at which a curve from 0 first rises to a limit, linear between its points.

    The largest share that was tried where it does not rise as far.
    """
    before, low = 0.0, 0.0
    for share, rise in zip((float(s.rstrip("%")) / 100 for s in shares), rises, strict=True):
        if rise >= limit:
            return float(np.interp(limit, [low, rise], [before, share]))
        before, low = share, rise
    return before
