"""In which order do sinks, drained values, spikes and frames appear in training?

Every trait (`emergence_traits`: sink_mass, value_drain, spike, largest_column) is read at every
checkpoint on the same prompts, beside what no mechanism would give. At the last one its distance
from that is set against that of two others: the same at a later position (or with attention's rows
permuted), and the same trait of the model with weights that were never trained (`random_weights`).

With `experiment=`, rows of any experiment are followed too. Each trait that appears has an onset,
the step at which it is half way from the first checkpoint to the last, with a jackknife interval
over prompts (`onsets`), and a row for its place in the order.

What it cannot show: intervals are over prompts, for one training run. Another seed may order traits
otherwise, and an onset is known no better than the checkpoints lie apart. The half-way rule is
sinklens's own reconstruction; the papers show curves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import SinklensError, UsageError
from ...core.protocol import HookedModel
from ...engine import announce
from ...models import load_like, weights_hash
from ...models.prompts import Prompts
from ...models.random_weights import RANDOM_WEIGHTS, random_twin
from ...results.old_figures import lines
from ...results.record import Array
from ...results.result import ExperimentResult, assemble
from ...runner import registry
from ...runner.config import ExperimentConfig
from ...runner.registry import experiment
from ...stats.effects import Row, paired_row, with_q_values
from ._checkpoints import Checkpoint, find_checkpoints
from ._onsets import described, onset_rows, onset_values
from ._traits import TRAITS, Other, Trait, read_traits, with_others
from ._words import summary

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BESIDE = (
    "Rows named later_position, row_permuted and random_weights are of the last checkpoint: their "
    "column `more than control` holds its distance from its null less that of the row; for spike "
    "it is position 0 that is set against a later one."
)


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
        """Refuse settings that mean nothing here."""
        super().__post_init__()
        if self.metrics or self.screen or self.positions is not None:
            raise UsageError(
                "sink_emergence follows traits (conditions=); it takes no metrics, no positions "
                "and no screening"
            )
        if self.rows and not self.experiment:
            raise UsageError("rows= names rows of experiment=, which is missing")
        if self.experiment == "sink_emergence":
            raise UsageError("sink_emergence cannot follow itself")


@experiment(
    paper="2508.02546",
    question="When in training do sinks, drained values, spikes and frames appear?",
    summary=summary,
    plot=lambda result: plot(result),
)
def sink_emergence(
    model: HookedModel, prompts: Prompts, config: SinkEmergenceConfig
) -> ExperimentResult:
    """Follow traits over the training checkpoints of a model.

    Raises:
        SinklensError: It is not known where the model came from, or it has no checkpoints.
    """
    wanted = config.conditions or TRAITS
    unknown = [name for name in wanted if name not in TRAITS]
    if unknown:
        raise UsageError(f"there is no trait {unknown[0]!r}; there is {', '.join(TRAITS)}")
    checkpoints = find_checkpoints(model, config.checkpoints)
    more = 2 * bool(config.draws) + (config.random_weights is not False)
    announce("sink_emergence", len(checkpoints) + more, prompts, config.progress)
    followed, last, weights, left_out, forwards = _follow(
        model, prompts, config, wanted, checkpoints
    )
    traits = {name: curve[max(curve)] for name, curve in followed.items() if name in TRAITS}
    beside, taken = with_others(traits, last, prompts, config)
    random, how = random_twin(model, config.random_weights, config.seed)
    if random is not None:
        beside = _beside_random_weights(beside, random, prompts, config)
    elif how:
        left_out[RANDOM_WEIGHTS] = how
    forwards += taken + (random is not None)
    rows = [row for name, curve in followed.items() for row in _measured(name, curve)]
    rows += with_q_values(
        [row for name, trait in beside.items() for row in _against(name, trait, config.seed)]
    )
    onsets = {name: onset_values(curve) for name, curve in followed.items()}
    rows += onset_rows(onsets, followed)
    settings = {
        **config.recorded(),
        "left_out": left_out,
        "notes": [
            "One training run: intervals are over prompts, not over seeds.",
            "The half-way rule of an onset is a reconstruction; the papers show curves.",
            *([BESIDE] if any(trait.others for trait in beside.values()) else []),
            *([] if config.draws else ["No later positions, no permuted rows: draws is 0."]),
        ],
        "random_weights": None if random is None else how,
        "steps": [checkpoint.step for checkpoint in checkpoints],
        "weights": weights,
        "onsets": described(onsets, followed),
    }
    return assemble(
        "sink_emergence",
        model,
        prompts,
        rows,
        arrays=_arrays(followed, checkpoints),
        settings=settings,
        forwards=forwards,
    )


def _rows_of(result: ExperimentResult, wanted: Sequence[str]) -> dict[str, Trait]:
    """Model-level rows of another experiment: the contrast where there is one, by prompt."""
    found: dict[str, Trait] = {}
    rank = {"contrast": 0, "treatment": 1, "measurement": 2}
    order = sorted(range(len(result.effects)), key=lambda i: rank.get(result.effects[i].kind, 3))
    for number in order:
        row = result.effects[number]
        name = f"{row.metric}:{row.condition}" + (f"@{row.queries}" if row.queries else "")
        one_place = row.layer is not None or row.head is not None
        spread = row.ci_low is not None or row.n_prompts == 1
        if row.kind not in rank or one_place or not spread or name in found:
            continue
        if wanted and name not in wanted:
            continue
        if not wanted and any(other.split(":")[0] == row.metric for other in found):
            continue
        values, baselines = (
            result.per_prompt[side][number].double().numpy() for side in ("value", "baseline")
        )
        if row.kind == "measurement":
            found[name] = Trait(values, baselines, row.unit, 0)
        else:
            found[name] = Trait(values - baselines, 0.0, row.unit, 0)
    return found


def _measured(name: str, curve: dict[int, Trait]) -> Iterator[Row]:
    """A trait at every checkpoint beside its null."""
    for step, trait in sorted(curve.items()):
        nulls = np.full_like(trait.values, trait.null)
        condition = f"step{step}"
        yield paired_row(name, condition, "measurement", trait.values, nulls, unit=trait.unit)


def _follow(
    model: HookedModel,
    prompts: Prompts,
    config: SinkEmergenceConfig,
    wanted: Sequence[str],
    checkpoints: Sequence[Checkpoint],
) -> tuple[dict[str, dict[int, Trait]], HookedModel, dict[str, str], dict[str, str], int]:
    """The curve of each trait, the last model, hashes of all, what was left out, the forwards."""
    followed: dict[str, dict[int, Trait]] = {}
    weights: dict[str, str] = {}
    left_out: dict[str, str] = {}
    forwards, at = 0, model
    for checkpoint in checkpoints:
        at = load_like(model, checkpoint.source, **checkpoint.how)
        weights[str(checkpoint.step)] = weights_hash(at)
        if int(at.cfg.d_vocab) <= int(prompts.tokens.max()):
            raise SinklensError(f"checkpoint {checkpoint.step} does not know the prompts' tokens")
        traits = read_traits(at, prompts, config, wanted)
        forwards += 1
        if config.experiment:
            try:
                result = registry.run(
                    config.experiment,
                    at,
                    prompts,
                    seed=config.seed,
                    batch_size=config.batch_size,
                    memory=config.memory,
                    progress=False,
                )
                traits |= _rows_of(result, config.rows)
                forwards += int(result.provenance["forwards"])
            except UsageError:
                raise
            except SinklensError as error:
                left_out[f"{config.experiment} at step {checkpoint.step}"] = str(error)
        for name in config.rows:
            if name not in traits:
                left_out.setdefault(
                    f"{name} at step {checkpoint.step}",
                    "the experiment has no such row with an interval",
                )
        for name, trait in traits.items():
            followed.setdefault(name, {})[checkpoint.step] = trait
    never = [name for name in config.rows if name not in followed]
    if never:
        raise UsageError(
            f"{config.experiment} has no row {never[0]} at any checkpoint; rows are named "
            "metric:condition, as in its table, with @1:8 behind it where they name queries"
        )
    return followed, at, weights, left_out, forwards


def _beside_random_weights(
    traits: Mapping[str, Trait],
    random: HookedModel,
    prompts: Prompts,
    config: SinkEmergenceConfig,
) -> dict[str, Trait]:
    """The traits, set against those of weights that were never trained as well."""
    untrained = read_traits(random, prompts, config, list(traits))
    found = {}
    for name, trait in traits.items():
        drawn = untrained[name]
        other = Other(RANDOM_WEIGHTS, "null", drawn.values, drawn.null, trait.values, trait.null, 1)
        found[name] = trait._replace(others=(*trait.others, other))
    return found


def _against(name: str, trait: Trait, seed: int) -> Iterator[Row]:
    """A trait's distance from its null against that of everything that it is set against."""
    for other in trait.others:
        nulls = np.full_like(other.values, other.null)
        how: dict[str, Any] = {"unit": trait.unit, "n_draws": other.draws}
        yield paired_row(name, other.name, other.kind, other.values, nulls, **how)
        yield paired_row(
            name,
            other.name,
            "contrast",
            other.own - other.own_null,
            other.values - nulls,
            tested=True,
            seed=seed,
            **how,
        )


def _arrays(
    followed: dict[str, dict[int, Trait]], checkpoints: Sequence[Checkpoint]
) -> dict[str, Array]:
    """The curves, and their nulls; NaN where a trait could not be read."""
    import torch

    curves = {}
    for name, curve in followed.items():
        means = [
            (float(curve[c.step].values.mean()), float(np.mean(curve[c.step].null)))
            if c.step in curve
            else (float("nan"), float("nan"))
            for c in checkpoints
        ]
        curves[name.replace(":", "_")] = Array(torch.tensor(means), ("step", "value_and_null"))
    return curves


def plot(result: ExperimentResult) -> Figure:
    """Every trait that appears on its way from its first to its last value."""
    curves = {}
    appeared = {name.replace(":", "_") for name, onset in _onsets(result) if onset is not None}
    for name, array in result.arrays.items():
        if name in appeared:  # others would be noise, blown up to the same height
            means = array.values[:, 0]
            known = means[~means.isnan()]
            curves[name] = (means - known[0]) / (known[-1] - known[0])
    missing = ", ".join(name for name, onset in _onsets(result) if onset is None)
    never = f"<br>without an onset: {missing}" if missing else ""
    return lines(
        curves,
        [f"{step:,}" for step in result.settings["steps"]],
        title=f"Traits over training, {result.provenance['model']['name']}{never}",
        x_title="training step",
        y_title="share of the way from first to last",
    )


def _onsets(result: ExperimentResult) -> list[tuple[str, Any]]:
    """Every trait and its onset, None where it has none."""
    return list(result.settings["onsets"].items())
