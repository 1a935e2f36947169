"""In which order do sinks, drained values, spikes and frames appear in training?

Every trait (`emergence_traits`: sink_mass, value_drain, spike, largest_column) is read at every
checkpoint on the same prompts, beside what no mechanism would give. At the last one its distance
from that is set against that of two others: the same at a later position (the control), and the
same trait of the model with weights that were never trained (`random_weights`).

With `experiment=`, rows of any experiment are followed too. The onset of a trait is the step at
which it is half way from the first checkpoint to the last, on a line between the checkpoints around
it in log2(1 + step). There is none with fewer than three checkpoints, where the last does not
differ from the first, or where it does not lie beyond the null on the trait's side (above, for
value_drain below). An onset is that of the mean over prompts, S; the numbers of the prompts are
jackknife pseudo-values around it, S + (n - 1) (mean S_without - S_without_p), so that intervals of
onsets and of their differences are jackknife intervals.

What it cannot show: intervals are over prompts, for one training run. Another seed may order traits
otherwise, and an onset is known no better than the checkpoints lie apart. The half-way rule is
sinklens's own reconstruction; the papers show curves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from ..effects import EffectSize, Row, interval, paired_row, with_q_values
from ..errors import SinklensError, UsageError
from ..models import load_like, weights_hash
from ..plots import lines
from ..protocol import HookedModel
from ..results import Array, ExperimentResult, assemble
from ..text import Prompts
from . import registry
from .checkpoints import Checkpoint, find_checkpoints
from .emergence_traits import TRAITS, Trait, Values, read_traits
from .random_weights import random_weights, too_large
from .registry import ExperimentConfig, experiment

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

RANDOM_WEIGHTS = "random_weights"


@dataclass(frozen=True)
class SinkEmergenceConfig(ExperimentConfig):
    """Settings; `conditions` are the traits, `draws` the positions of the control.

    Attributes:
        checkpoints: Steps of a shipped model, revisions of a model of the hub, or folders; empty
            takes every step of a shipped model.
        experiment: Another experiment whose rows are followed too, with its default settings.
        rows: Which of its rows, as `metric:condition`; empty takes the first of each metric.
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
        if self.metrics or self.screen:
            raise UsageError(
                "sink_emergence follows traits (conditions=); no metrics, no screening"
            )
        if self.rows and not self.experiment:
            raise UsageError("rows= names rows of experiment=, which is missing")
        if self.experiment == "sink_emergence":
            raise UsageError("sink_emergence cannot follow itself")


@experiment(
    paper="2508.02546",
    question="When in training do sinks, drained values, spikes and frames appear?",
    summary=lambda result: summary(result),
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
    followed, weights, left_out, forwards = _follow(model, prompts, config, wanted, checkpoints)
    untrained, how = _untrained(model, prompts, config, wanted, left_out)
    forwards += bool(untrained)
    rows = [row for name, curve in followed.items() for row in _measured(name, curve)]
    compared = [
        row
        for name, curve in followed.items()
        for row in _at_the_last(name, curve, untrained.get(name), config)
    ]
    rows += with_q_values(compared)
    onsets = {name: onset_values(curve) for name, curve in followed.items()}
    rows += _onset_rows(onsets)
    settings = {
        **config.recorded(),
        "left_out": left_out,
        "notes": [
            "One training run: intervals are over prompts, not over seeds.",
            "The half-way rule of an onset is a reconstruction; the papers show curves.",
        ],
        "random_weights_made": how,
        "steps": [checkpoint.step for checkpoint in checkpoints],
        "weights": weights,
        "onsets": _described(onsets, followed),
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
        whole = row.layer is None and row.head is None and row.queries is None
        name = f"{row.metric}:{row.condition}"
        if row.kind not in rank or not whole or name in found or (wanted and name not in wanted):
            continue
        if not wanted and any(other.split(":")[0] == row.metric for other in found):
            continue
        values, baselines = (
            result.per_prompt[side][number].double().numpy() for side in ("value", "baseline")
        )
        if row.kind == "measurement":
            found[name] = Trait(values, row.baseline, row.unit, 0)
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
) -> tuple[dict[str, dict[int, Trait]], dict[str, str], dict[str, str], int]:
    """The curve of each trait, the weights' hashes, what was left out, and the forwards."""
    followed: dict[str, dict[int, Trait]] = {}
    weights: dict[str, str] = {}
    left_out: dict[str, str] = {}
    forwards = 0
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
                    config.experiment, at, prompts, seed=config.seed, progress=False
                )
                traits |= _rows_of(result, config.rows)
                forwards += int(result.provenance["forwards"])
            except UsageError:
                raise
            except SinklensError as error:
                left_out[f"{config.experiment} at step {checkpoint.step}"] = str(error)
        for name in set(config.rows) - traits.keys():
            left_out.setdefault(
                f"{name} at step {checkpoint.step}", "the experiment has no such row"
            )
        for name, trait in traits.items():
            followed.setdefault(name, {})[checkpoint.step] = trait
    never = [name for name in config.rows if name not in followed]
    if never:
        raise UsageError(
            f"{config.experiment} has no row {never[0]} at any checkpoint; rows are named "
            "metric:condition, as in its table"
        )
    return followed, weights, left_out, forwards


def _untrained(
    model: HookedModel,
    prompts: Prompts,
    config: SinkEmergenceConfig,
    wanted: Sequence[str],
    left_out: dict[str, str],
) -> tuple[dict[str, Trait], str]:
    """The traits of a model like this one with random weights, and how it was made."""
    if config.random_weights is False:
        return {}, ""
    if config.random_weights is None and too_large(model):
        left_out[RANDOM_WEIGHTS] = (
            "more than a billion parameters, of which a second model is only made when "
            "random_weights=True asks for it"
        )
        return {}, ""
    try:
        random, how = random_weights(model, config.seed)
    except SinklensError as error:
        left_out[RANDOM_WEIGHTS] = str(error)
        return {}, ""
    return read_traits(random, prompts, config, wanted), how


def _at_the_last(
    name: str, curve: dict[int, Trait], untrained: Trait | None, config: SinkEmergenceConfig
) -> Iterator[Row]:
    """The last checkpoint's distance from its null against that of control and random weights."""
    step = max(curve)
    last = curve[step]
    others: list[tuple[str, str, Values, float, int]] = []
    if last.control is not None:
        draws = config.draws
        others.append((f"step{step}", "control", last.control, last.control_null, draws))
    if untrained is not None:
        others.append((RANDOM_WEIGHTS, "null", untrained.values, untrained.null, 1))
    for condition, kind, values, null, draws in others:
        nulls = np.full_like(values, null)
        yield paired_row(name, condition, kind, values, nulls, unit=last.unit, n_draws=draws)
        yield paired_row(
            name,
            condition,
            "contrast",
            last.values - last.null,
            values - nulls,
            unit=last.unit,
            tested=True,
            seed=config.seed,
            n_draws=draws,
        )


def onset(steps: Float[np.ndarray, " step"], curve: Float[np.ndarray, " step"]) -> float:
    """Where a curve is first half way from its first to its last value, in log2(1 + step)."""
    share = (curve - curve[0]) / (curve[-1] - curve[0])
    after = int(np.argmax(share >= 0.5))  # the last share is 1
    ends = np.log2(1 + steps[[after - 1, after]])
    part = (0.5 - share[after - 1]) / (share[after] - share[after - 1])
    return float(ends[0] + part * (ends[1] - ends[0]))


def onset_values(curve: dict[int, Trait]) -> Values | None:
    """Jackknife pseudo-values around the onset; None where the trait does not appear.

    Intervals of paired differences decide: of the last checkpoint from the first, and from the
    null.
    """
    steps = np.array(sorted(curve), float)
    values = np.stack([curve[int(step)].values for step in steps])
    last = curve[int(steps[-1])]
    count = values.shape[1]
    change, beyond = _side(values[-1] - values[0]), _side(values[-1] - last.null)
    appeared = change and beyond and (not last.side or change == beyond == last.side)
    if min(count, len(steps)) < 3 or not appeared:
        return None
    whole = onset(steps, values.mean(1))
    without = np.array([onset(steps, np.delete(values, p, 1).mean(1)) for p in range(count)])
    # Not corrected for bias, which could move an onset out of the checkpoints around it.
    return np.asarray(whole + (count - 1) * (without.mean() - without))


def _side(differences: Values) -> int:
    """1 or -1 where the interval of the mean lies above or below 0, else 0."""
    low, high = interval(differences)
    if low is None or high is None:
        return 0
    return int(low > 0) - int(high < 0)


def _onset_rows(onsets: dict[str, Values | None]) -> Iterator[Row]:
    """Each onset, and each trait's onset beside that of the one before it."""
    known = {name: values for name, values in onsets.items() if values is not None}
    order = sorted(known, key=lambda name: (float(known[name].mean()), name))
    unit = "log2(1 + step)"
    for name in order:
        yield paired_row("onset", name, "measurement", known[name], 0 * known[name], unit=unit)
    for first, second in itertools.pairwise(order):
        condition = f"{second} after {first}"
        yield paired_row(
            "onset_order", condition, "measurement", known[second], known[first], unit=unit
        )


def _described(
    onsets: dict[str, Values | None], followed: dict[str, dict[int, Trait]]
) -> dict[str, Any]:
    """The onset of each trait as a step, with its interval and the checkpoints around it."""
    found: dict[str, Any] = {}
    for name, values in onsets.items():
        if values is None:
            found[name] = None
            continue
        low, high = interval(values)
        step = 2 ** float(values.mean()) - 1
        steps = sorted(followed[name])
        after = next(number for number, s in enumerate(steps) if s > step or s == steps[-1])
        between = [steps[after - 1], steps[after]]
        ends = [None if end is None else max(0.0, 2**end - 1) for end in (low, high)]
        found[name] = {"step": step, "ci_low": ends[0], "ci_high": ends[1], "between": between}
    return found


def _arrays(
    followed: dict[str, dict[int, Trait]], checkpoints: Sequence[Checkpoint]
) -> dict[str, Array]:
    """The curves, and their nulls; NaN where a trait could not be read."""
    import torch

    curves = {}
    for name, curve in followed.items():
        means = [
            (float(curve[c.step].values.mean()), curve[c.step].null)
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


def _per_prompt(result: ExperimentResult, row: EffectSize) -> Values:
    """The values of a row."""
    return np.asarray(result.per_prompt["value"][result.effects.index(row)].double())


def summary(result: ExperimentResult) -> list[str]:
    """When each trait appears, and which orders can be told apart."""
    lines = []
    kinds: dict[tuple[str, str], list[EffectSize]] = {}
    for row in result.effects:
        kinds.setdefault((row.metric, row.kind), []).append(row)
    for name, found in _onsets(result):
        mine = kinds[name, "measurement"]
        first, last = mine[0], mine[-1]
        said = f"{name} goes from {first.value:.3g} to {last.value:.3g} (null {last.baseline:.3g})"
        against = _against(last, kinds.get((name, "contrast"), []))
        if found is None:
            side = {1: "above", -1: "below"}
            beyond = _side(_per_prompt(result, last) - last.baseline)
            where = f"ends {side[beyond]} its null" if beyond else "not told apart from its null"
            few = len(mine) < 3
            lines.append(
                f"{said}: "
                + ("too few checkpoints" if few else f"it does not appear ({where})")
                + f"{against}."
            )
            continue
        ends = ""
        if found["ci_low"] is not None:
            ends = f" [{found['ci_low']:,.0f}, {found['ci_high']:,.0f}]"
        between = " and ".join(f"{step:,}" for step in found["between"])
        lines.append(
            f"{said}, half of it by step {found['step']:,.0f}{ends}, between checkpoints {between}"
            f"{against}."
        )
    for row in result.effects:
        if row.metric == "onset_order" and row.ci_low is not None and row.ci_high is not None:
            sure = row.ci_low > 0
            lines.append(f"{row.condition}: {'yes' if sure else 'not told apart'}.")
    return [*lines[:11], "One training run; another seed may order them otherwise."]


def _against(last: EffectSize, contrasts: Sequence[EffectSize]) -> str:
    """Whether a trait is further from its null than its control and than random weights."""
    said = []
    for row in contrasts:
        if row.ci_low is None or row.ci_high is None:
            continue
        what = "with random weights" if row.condition == RANDOM_WEIGHTS else "at a later position"
        further = "further" if row.effect * last.effect > 0 else "less far"
        away = row.ci_low > 0 or row.ci_high < 0
        said.append(f"{further} from it than {what}" if away else f"not told apart from {what}")
    return f"; {' and '.join(said)}" if said else ""
