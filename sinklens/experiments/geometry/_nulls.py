"""Values beside what attention without a frame of reference would give.

    uniform         the same weight on every visible key: the baseline of every row
    row_permuted    each row's weights in random order among the visible keys (`probes.patterns`)
    random_weights  a model of the same configuration that was never trained, in the headline rows

A contrast sets the value's distance from uniform attention against that of the null. Rows hold one
number per prompt; curves over layers are arrays, those of a null named `<name>:<null>`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.protocol import HookedModel
from ...core.seeds import seeded
from ...models.random_weights import RANDOM_WEIGHTS, random_twin
from ...probes.patterns import ATTENTION, ROW_PERMUTED, UNIFORM
from ...results.estimates import NOT_TESTED, Reference, Sample
from ...runner.run import Run

RANDOM_UNIFORM = f"{RANDOM_WEIGHTS}:{UNIFORM}"
"""Uniform attention as the random model has it: learned sinks take another share there."""
BySource = Mapping[str, Tensor]
"""By source (attention and its nulls) `[prompt, layer, ...]`, or `[prompt]` where layers are
averaged; of row-permuted attention `[prompt, layer, draw, ...]` and `[prompt, draw]`."""


class BesideNulls:
    """Adds rows and curves of attention and its nulls to a run."""

    def __init__(self, run: Run[Any], headlines: Collection[tuple[str, str]]) -> None:
        """Start without rows.

        Args:
            run: Takes rows and arrays.
            headlines: The metrics and conditions that stand beside random weights too.
        """
        self._run, self._headlines = run, headlines
        self._draws: dict[str, list[float]] = {}

    def add(self, metric: str, condition: str, values: BySource) -> None:
        """Add the row of a value, its nulls and contrasts.

        Args:
            metric: What was measured.
            condition: Of what.
            values: By source `[prompt]`; of row-permuted attention `[prompt, draw]`.
        """
        uniform = values[UNIFORM].double()
        nulls = []
        if ROW_PERMUTED in values:
            draws = values[ROW_PERMUTED].double()
            self._draws[f"{metric} {condition}"] = draws.mean(0).tolist()
            nulls.append((ROW_PERMUTED, Sample(draws.mean(1), uniform, draws.shape[1])))
        if RANDOM_WEIGHTS in values and (metric, condition) in self._headlines:
            random, its = values[RANDOM_WEIGHTS].double(), values[RANDOM_UNIFORM].double()
            nulls.append((RANDOM_WEIGHTS, Sample(random, its)))
        # Keys differ in any model, so that permuted rows differ from its attention.
        references = [Reference(sample, name, "null", models=NOT_TESTED) for name, sample in nulls]
        self._run.add(metric, condition, Sample(values[ATTENTION].double(), uniform), *references)

    def add_mean(self, metric: str, condition: str, values: BySource) -> None:
        """Add the row of the mean over layers of values `[prompt, layer]`."""
        means = {source: by_layer.double().mean(1) for source, by_layer in values.items()}
        self.add(metric, condition, means)

    def keep(self, name: str, values: BySource, dims: str = "", **coords: Sequence[Any]) -> None:
        """Keep curves over layers, mean over prompts and draws.

        Args:
            name: The name of that of attention.
            values: By source `[prompt, layer, ...]`.
            dims: The names of the axes behind that of layers.
            coords: Their labels.
        """
        for source, by_layer in values.items():
            if source == RANDOM_UNIFORM:
                continue
            mean = by_layer.double().mean((0, 2) if source == ROW_PERMUTED else 0).float()
            null = "" if source == ATTENTION else f":{source}"
            self._run.keep(f"{name}{null}", mean, f"layer {dims}", **coords)

    def keep_draws(self) -> None:
        """Keep the mean over prompts of each draw of row-permuted attention, by row."""
        if self._draws:
            draws = torch.tensor(list(self._draws.values()))
            self._run.keep("control_draws", draws, "null_row draw", null_row=list(self._draws))


def at(values: BySource, place: int) -> BySource:
    """One place of the last axis, such as one threshold."""
    return {source: by_place[..., place] for source, by_place in values.items()}


def untrained_model(run: Run[Any]) -> HookedModel | None:
    """A model of the same configuration with random weights, unless it cannot be had.

    Raises:
        SinklensError: It was asked for and cannot be made.
    """
    if set(run.conditions) == {"head_kl"}:
        return None
    twin, origin = random_twin(
        run.model,
        run.config.random_weights,
        int(seeded(run.config.seed, RANDOM_WEIGHTS).integers(2**31)),
    )
    if twin is not None:
        run.facts(random_weights=origin)
    elif origin:
        run.left_out("random_weights", origin)
    return twin
