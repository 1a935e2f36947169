"""Patch position 0 layer by layer and read loss, KL and the sink.

Each row is one condition at one layer. What is written is in `hooks.position0`, the control at a
later position in `comparisons.position0`. With `places=`, further positions are patched, each in
the way of the control (`zero:residual@5`): a map over layers and positions, of which `screen=True`
runs the largest. Units: nats; sink mass is a share of attention. An effect at layer l is that of
the residual stream from l on: a patch at an early layer also changes what later layers would have
written at position 0. Each place counts the predictions after it, so that rows of different places
are means over different predictions.

Source: the act is named by Ruscio et al. 2026 (2606.06160); the conditions and controls are
sinklens's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...comparisons.position0 import CONDITIONS, PLACE, Position0Patches, parse_condition
from ...core.errors import UsageError
from ...functional.counted import counted_positions
from ...hooks.matching import control_positions
from ...hooks.position0 import PARTS, POSITION0_CONDITIONS
from ...metrics import LogitMetric
from ...models.capabilities import Capabilities
from ...results.effect_sentences import Compared
from ...results.figures import Effects
from ...results.record import Record
from ...results.wording import describe
from ...runner.compare import Comparison
from ...runner.config import ExperimentConfig, setting
from ...runner.needs import CAUSAL
from ...runner.registry import experiment
from ...runner.run import Run
from ...stats.effects import EffectSize


@dataclass(frozen=True)
class Position0PatchingConfig(ExperimentConfig):
    """Settings.

    Attributes:
        part: `residual`, `key` or `value`, for conditions that do not name theirs (`zero:key`).
        layers: Which layers; empty means all.
        places: Which positions, if not 0 alone; those besides 0 have no control of their own.
    """

    part: str = setting("residual", choices=PARTS)
    layers: tuple[int, ...] = ()
    places: tuple[int, ...] = setting((0,), least=0)

    def __post_init__(self) -> None:
        """Give every condition its part."""
        super().__post_init__()
        if not self.places:
            raise UsageError("places needs at least one position, from 0")
        named = tuple(c if ":" in c else f"{c}:{self.part}" for c in self.conditions)
        for condition in named:
            if condition.partition(":")[0] in POSITION0_CONDITIONS:
                parse_condition(condition)
        object.__setattr__(self, "conditions", named)


ELSEWHERE = (
    "Conditions ending in @p patch position p as a control does; they have no control of their own "
    "and count the predictions after p."
)


def of_part(config: Position0PatchingConfig) -> list[str]:
    """The conditions of the part that is patched."""
    return [name for name in CONDITIONS if name.endswith(f":{config.part}")]


def at_position0(metric: str) -> Compared:
    """The layer at which each condition at position 0 does most."""
    return Compared("Patching position 0 with", metric, CONDITIONS)


def at_other_places(result: Record) -> Iterator[str]:
    """For each condition the largest effect at positions besides 0."""
    found: dict[str, list[EffectSize]] = {}
    for row in result.effects:
        name, _, place = row.condition.partition(PLACE)
        if place and (row.metric, row.kind) == ("loss", "treatment"):
            found.setdefault(name, []).append(row)
    for name, rows in found.items():
        largest = max(rows, key=lambda row: abs(row.effect))
        place = largest.condition.partition(PLACE)[2]
        yield (
            f"At other positions {name} has its largest effect at position {place}, "
            f"L{largest.layer} (of {len(rows)} rows): loss {describe(largest)}."
        )


@experiment(
    paper="Ruscio et al. 2026 (2606.06160)",
    question="In which layers does the model depend on what position 0 holds?",
    needs=(CAUSAL.otherwise("Use bos_replacement or sink_head_ablation."),),
    conditions=CONDITIONS,
    defaults=of_part,
    metrics=("loss", "kl", "sink_mass"),
    says=(at_position0("loss"), at_other_places, at_position0("sink_mass")),
    figure=Effects(("loss|kl", "sink_mass"), "Patching position 0, layer by layer"),
    smallest={"layers": (1,)},
)
def position0_patching(run: Run[Position0PatchingConfig]) -> None:
    """Patch position 0 at each layer under each condition, and a later position as control.

    Raises:
        SinklensError: The model is not causal, or a part cannot be edited.
    """
    config, length = run.config, run.prompts.length
    layers = run.capabilities.chosen_layers(config.layers)
    run.refuse(
        {
            condition: reason
            for condition in run.conditions
            if (reason := _refusal(run.capabilities, condition, layers))
        }
    )
    places = list(dict.fromkeys(config.places))
    for place in places:  # refuses a place after which no prediction is left
        counted = counted_positions(length, place, config.positions)
        for metric in run.metrics:
            if isinstance(metric, LogitMetric):
                metric.counts(counted, length)
    positions = control_positions(length, config.draws, config.seed, config.positions)
    if any(places):
        run.note(ELSEWHERE)

    def patched(run: Run[Any]) -> list[Comparison]:
        controls = positions if 0 in places else []
        patches = Position0Patches(run, run.conditions, layers, controls, places)
        return [
            patches.comparison(condition, layer, place)
            for condition in run.conditions
            for place in places
            for layer in layers
            if layer in run.capabilities.layers_of(condition.partition(":")[2])
        ]

    run.compare(patched)


def _refusal(capabilities: Capabilities, condition: str, layers: Sequence[int]) -> str:
    """Why a condition cannot act in any of these layers, empty where it can."""
    part = condition.partition(":")[2]
    of_part = capabilities.layers_of(part)
    if reason := capabilities.refusal(part, condition):
        return reason
    if not {*layers} & {*of_part}:
        return (
            f"{condition} acts in layers with attention, which are {', '.join(map(str, of_part))}"
        )
    return ""
