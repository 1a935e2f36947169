"""In which order do sinks, drained values, spikes and frames appear in training?

Every trait (`_traits`) is read at every checkpoint on the same prompts, beside its null; with
`experiment=`, rows of any experiment are followed too (`_followed`). At the last checkpoint a
trait's distance from its null is set against that of two references: the same at a later position
(or with attention's rows permuted), and the same of weights that were never trained. Each trait
that appears has an onset with an interval (`_onsets`), and a row for its place in the order.

What it cannot show: intervals are over prompts, for one training run. Another seed may order traits
otherwise, and an onset is known no better than the checkpoints lie apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...core.errors import SinklensError, UsageError
from ...core.protocol import HookedModel
from ...core.seeds import seeded
from ...functional.onset import share_of_change
from ...models import load_like, weights_hash
from ...models.random_weights import RANDOM_WEIGHTS, random_twin
from ...results.estimates import NOT_TESTED, Measure, Reference, Sample
from ...results.figures import Forest, Lines, Stack
from ...runner.config import ExperimentConfig
from ...runner.needs import EQUAL_LENGTHS, WITH_ATTENTION
from ...runner.registry import experiment
from ...runner.run import Run
from ._checkpoints import Checkpoint, find_checkpoints
from ._followed import follow_rows, require_rows
from ._onsets import ONSET_MEASURES, Curve, add_onsets, order_of_onsets, traits_over_training
from ._traits import SIDES, TRAIT_MEASURES, read_traits, references


@dataclass(frozen=True)
class SinkEmergenceConfig(ExperimentConfig):
    """Settings; `conditions` are the traits, `draws` the positions of the control.

    Attributes:
        checkpoints: Steps of a shipped model, revisions of a model of the hub, or folders; empty
            takes every step of a shipped model.
        experiment: Another experiment whose rows are followed too, with its default settings.
        rows: Which of its rows, as `metric:condition`, with `@1:8` behind it where a row is about
            some queries; empty takes the first of each metric. Rows without an interval or about
            one layer or head are not followed.
        random_weights: Whether to run a model with random weights; None does for models of up to a
            billion parameters.
    """

    checkpoints: tuple[str, ...] = ()
    experiment: str = ""
    rows: tuple[str, ...] = ()
    random_weights: bool | None = None

    def __post_init__(self) -> None:
        """Refuse rows that no experiment has."""
        super().__post_init__()
        if self.experiment == sink_emergence.__name__:
            raise UsageError("sink_emergence cannot follow itself")
        if self.experiment:
            require_rows(self.experiment, self.rows)
        elif self.rows:
            raise UsageError("rows= names rows of experiment=, which is missing")


@experiment(
    paper="Ruscio et al. 2025 (2508.02546)",
    question="When in training do sinks, drained values, spikes and frames appear?",
    conditions=tuple(SIDES),
    needs=(
        WITH_ATTENTION,
        EQUAL_LENGTHS,
    ),
    measures={**TRAIT_MEASURES, **ONSET_MEASURES},
    says=(
        order_of_onsets,
        traits_over_training,
        "The later-position control of spike is compared with position 0, where the largest entry "
        "is {spike_at_position0:.3g} times the median.",
    ),
    figure=Stack(
        (
            Lines(
                ("share_of_change",),
                "How far each has come",
                "training step",
                "share of the change from first to last",
            ),
            Forest(("onset",)),
        ),
        "Traits of attention over training",
    ),
    draws_controls=False,
    smallest={"checkpoints": ("0", "256", "4000")},
)
def sink_emergence(run: Run[SinkEmergenceConfig]) -> None:
    """Follow traits over the training checkpoints of a model.

    Raises:
        SinklensError: It is not known where the model came from, or it has no checkpoints.
    """
    config = run.config
    checkpoints = find_checkpoints(run.model, config.checkpoints)
    steps = [checkpoint.step for checkpoint in checkpoints]
    passes = len(steps) + 2 * bool(config.draws) + (config.random_weights is not False)
    run.announce(run.batches() * passes)
    curves, last = _follow(run, checkpoints)
    beside = references(run, last, {name: curves[name][steps[-1]] for name in run.conditions})
    random, origin = random_twin(
        run.model, config.random_weights, int(seeded(config.seed, RANDOM_WEIGHTS).integers(2**31))
    )
    if random is not None:
        for name, untrained in read_traits(run, random).items():
            beside[name].append(Reference(untrained, RANDOM_WEIGHTS, "null", models=NOT_TESTED))
    elif origin:
        run.left_out(RANDOM_WEIGHTS, origin)
    for name, curve in curves.items():
        for step, sample in curve.items():
            at_last = beside.get(name, []) if step == steps[-1] else []
            run.add(name, f"step{step}", sample, *at_last)
    appeared = add_onsets(run, curves, SIDES)
    _keep_shares(run, curves, steps, appeared)
    run.facts(steps=steps, random_weights=None if random is None else origin)
    run.note(
        "One training run: intervals are over prompts, not over seeds.",
        "Onset (half-maximum): the first step at which half of the change from the first to the "
        "last checkpoint is reached. The rule is a reconstruction; the papers show curves.",
    )
    if len(appeared) < len(curves):
        missing = [name for name in curves if name not in appeared]
        run.note(f"Without an onset, and not in the figure: {', '.join(missing)}.")
    if not config.draws:
        run.note("No later positions and no permuted rows: draws is 0.")


def _follow(
    run: Run[SinkEmergenceConfig], checkpoints: Sequence[Checkpoint]
) -> tuple[dict[str, dict[int, Sample]], HookedModel]:
    """The curve of each trait, and the model of the last checkpoint."""
    config, model = run.config, run.model
    curves: dict[str, dict[int, Sample]] = {}
    weights: dict[str, str] = {}
    kinds: dict[str, Measure] = {}
    for checkpoint in checkpoints:
        model = load_like(run.model, checkpoint.source, **checkpoint.options)
        weights[str(checkpoint.step)] = weights_hash(model)
        if int(model.cfg.d_vocab) <= int(run.prompts.tokens.max()):
            raise SinklensError(
                f"checkpoint {checkpoint.step} has a vocabulary of {model.cfg.d_vocab} tokens, "
                "which lacks some of the prompts; use prompts of its own tokenizer"
            )
        traits = read_traits(run, model) | follow_rows(run, model, checkpoint.step, kinds)
        for name, sample in traits.items():
            curves.setdefault(name, {})[checkpoint.step] = sample
    for name in config.rows:
        if name not in curves:
            raise UsageError(f"{config.experiment} has no row {name} at any checkpoint")
    run.facts(weights=weights)
    return curves, model


def _keep_shares(
    run: Run[Any], curves: Mapping[str, Curve], steps: list[int], appeared: list[str]
) -> None:
    """How far the traits with an onset are on their way; NaN where one could not be read."""
    shares = torch.full((len(steps), len(appeared)), torch.nan)
    for column, name in enumerate(appeared):  # others would be noise, blown up to the same height
        means = [np.asarray(sample.values, float).mean() for sample in curves[name].values()]
        known = [row for row, step in enumerate(steps) if step in curves[name]]
        shares[known, column] = torch.from_numpy(share_of_change(np.array(means))).float()
    if appeared:
        run.keep("share_of_change", shares, "step trait", step=steps, trait=appeared)
