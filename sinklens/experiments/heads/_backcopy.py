"""Active and dormant on the Bigram-Backcopy task, where the best loss is known.

After a trigger the best predictor copies what stood before it (loss 0), after any other character
it draws from the bigram table. A head is needed after triggers alone (Guo et al. 2024, 2410.13835):

    task_loss        after triggers and after others, beside the optimum
    first_weight     attention to position 0 of queries that are triggers, and of others, by layer
    task_ablation    each layer's head set to zero: the loss after triggers, beside that after
                     others, at which a dormant head changes nothing

Guo et al. give for one layer after 100,000 steps, on characters of another text, an excess over the
optimum of 5.5e-6 nats after triggers, and without attention 7.6865 nats after triggers and no
change after others (tensors of their repository).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...hooks.heads import ablate_heads
from ...metrics import LogitMetric
from ...models import origin
from ...models.shipped import card
from ...models.shipped.backcopy import is_trigger, optimum
from ...probes.base import LayerProbe
from ...results.estimates import Effect, Measure, Reference, Sample
from ...results.record import Record
from ...results.wording import phrase, place_of
from ...runner.run import Run

TRIGGERS, OTHERS = "after_triggers", "after_others"
PUBLISHED = "published:after_triggers"
WITHOUT_ATTENTION = 7.6865
TASK_MEASURES = {
    "task_loss": Measure("nats", "the optimum of the task"),
    "first_weight": Measure("share of attention", "uniform attention", ".1%"),
    "task_ablation": Measure("nats", "the clean run"),
}
TOO_FEW = "a prompt has no trigger, or nothing else, at the positions that count; use longer ones"


class FirstWeights(LayerProbe[Tensor]):
    """Attention of each query to position 0."""

    def reduce(
        self, pattern: Float[Tensor, "batch head query key"], layer: int, /
    ) -> Float[Tensor, "batch head query"]:
        """The first column."""
        return pattern[..., 0]


def is_of_the_task(run: Run[Any]) -> bool:
    """Whether model and prompts are of this task."""
    known = origin(run.model)
    own = known.kind == "shipped" and card(known.name)["prompts"] == "backcopy"
    return own and run.prompts.source == "backcopy"


def forwards_of_task(run: Run[Any]) -> int:
    """How many forward passes `add_task` makes."""
    if not is_of_the_task(run):
        return 0
    heads = run.capabilities.n_layers * run.capabilities.n_heads
    return run.batches(starts=run.capabilities.n_layers - 1) * (1 + heads)


def add_task(run: Run[Any]) -> None:
    """The rows of the task, on a model that was trained on it."""
    tokens = run.prompts.tokens.cpu()
    here = {TRIGGERS: is_trigger(tokens[:, 1:-1]), OTHERS: ~is_trigger(tokens[:, 1:-1])}
    if not all(bool(chosen.any(1).all()) for chosen in here.values()):
        run.left_out("task", TOO_FEW)
        return
    layers, heads = run.capabilities.n_layers, run.capabilities.n_heads
    metrics = [
        LogitMetric(name, partial(loss_after, triggers=name == TRIGGERS), "nats", False)
        for name in here
    ]
    places = [(layer, head) for layer in range(layers) for head in range(heads)]
    weights = FirstWeights("pattern", range(layers))
    edits = [ablate_heads(run.model, [place], "zero") for place in places]
    found = run.evaluate(edits, metrics=metrics, probes=[weights])
    best = optimum(tokens)
    uniform = torch.arange(2, tokens.shape[1]).double().reciprocal().expand_as(best)
    column = weights.compute()[..., 1:-1]
    for number, (name, chosen) in enumerate(here.items()):
        run.add("task_loss", name, Sample(found.clean[number], mean_where(best, chosen)))
        for layer, head in places:
            sample = Sample(mean_where(column[:, layer, head], chosen), mean_where(uniform, chosen))
            run.add("first_weight", name, sample, layer=layer, head=head)
    for number, (layer, head) in enumerate(places):
        after, other = (
            Effect(found.values[number, m].numpy(), found.baselines[number, m].numpy())
            for m in (0, 1)
        )
        reference = Reference(other, OTHERS)
        run.add("task_ablation", TRIGGERS, after, reference, layer=layer, head=head)
    if layers == 1:
        run.add("task_ablation", PUBLISHED, Sample(WITHOUT_ATTENTION))


def weights_in_words(result: Record) -> Iterator[str]:
    """Of each head, what triggers and others give to position 0."""
    rows = [row for row in result.effects if row.metric == "first_weight"]
    for place in dict.fromkeys(place_of(row) for row in rows):
        said = (
            f"{row.condition.replace('_', ' ')} {phrase(result, row)}"
            for row in rows
            if place_of(row) == place
        )
        yield f"Attention of {place} to position 0: {'; '.join(said)}."


def mean_where(
    values: Float[Tensor, "prompt pos"], chosen: Bool[Tensor, "prompt pos"]
) -> Float[np.ndarray, " prompt"]:
    """The mean of each prompt over some positions."""
    mean: np.ndarray = ((values.double() * chosen).sum(1) / chosen.sum(1)).numpy()
    return mean


def loss_after(
    logits: Float[Tensor, "prompt pos d_vocab"],
    tokens: Int[Tensor, "prompt pos"],
    *,
    triggers: bool,
    positions: Int[Tensor, " counted"],
    **_: Any,
) -> Float[Tensor, " prompt"]:
    """Mean loss in nats of the predictions made at characters that are triggers, or are not."""
    losses = torch.nn.functional.cross_entropy(
        logits[:, 1:-1].float().transpose(1, 2), tokens[:, 2:], reduction="none"
    )
    chosen = is_trigger(tokens[:, 1:-1]) == triggers
    return (losses * chosen).sum(1) / chosen.sum(1)
