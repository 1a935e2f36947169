"""In which order do sinks, drained values, spikes and frames appear in training?

Every trait is read at every checkpoint on the same prompts, beside what no mechanism would give:

    sink_mass        attention of later queries to position 0; null: uniform attention
    value_drain      norm of the value at position 0 over that of later positions, mean over layers
                     and heads (2410.13835); falls where sinks read nothing; null: 1
    spike            largest entry of the stream over the median one; null: Gaussian entries
    largest_column   mean attention that the most attended key gets, head average by layer, keys up
                     to T / 2 (a central frame, 2508.02546); null: uniform attention

With `experiment=`, rows of any experiment are followed too. The onset of a trait is the step at
which it is half way from the first checkpoint to the last, on a line between the checkpoints around
it in log2(1 + step). There is none with fewer than three checkpoints, where the last does not
differ from the first, or where it does not lie beyond the null on the trait's side (above, for
value_drain below). An onset is that of the mean over prompts, S; the numbers of the prompts are
jackknife pseudo-values around it, S + (n - 1) (mean S_without - S_without_p), so that intervals of
onsets and of their differences are jackknife intervals.

What it cannot show: intervals are over prompts, for one training run. Another seed may order traits
otherwise, and an onset is known no better than the checkpoints lie apart. The half-way rule is
sinklens's own; the papers show curves.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from .. import zoo
from ..capabilities import check
from ..controls import gaussian_peak_ratio, uniform_sink_mass, uniform_sink_scores
from ..effects import EffectSize, Row, interval, paired_row
from ..engine import evaluate
from ..errors import SinklensError, UsageError
from ..metrics import mean_sink_mass
from ..models import load_like, origin, weights_hash
from ..plots import lines
from ..probes import ResidualPeaks, SinkScores, ValueNorms
from ..protocol import HookedModel
from ..results import Array, ExperimentResult, assemble
from ..text import Prompts
from . import registry
from .registry import ExperimentConfig, experiment

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

TRAITS = ("sink_mass", "value_drain", "spike", "largest_column")
Values = Float[np.ndarray, " prompt"]


@dataclass(frozen=True)
class SinkEmergenceConfig(ExperimentConfig):
    """Settings; `conditions` are the traits.

    Attributes:
        checkpoints: Steps of a shipped model, revisions of a model of the hub, or folders; empty
            takes every step of a shipped model.
        experiment: Another experiment whose rows are followed too, with its default settings.
        rows: Which of its rows, as `metric:condition`; empty takes the first of each metric.
    """

    checkpoints: tuple[str, ...] = ()
    experiment: str = ""
    rows: tuple[str, ...] = ()

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


class Trait(NamedTuple):
    """One trait at one checkpoint, by prompt.

    Attributes:
        values: One number a prompt.
        null: What no mechanism would give.
        unit: The unit.
        side: Where the trait lies once it has appeared: 1 above the null, -1 below, 0 either.
    """

    values: Values
    null: float
    unit: str
    side: int


class Checkpoint(NamedTuple):
    """Where a checkpoint is: a step, and what `load` takes."""

    step: int
    source: str
    how: dict[str, Any]


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
    followed: dict[str, dict[int, Trait]] = {}
    left_out: dict[str, str] = {}
    weights: dict[str, str] = {}
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
    rows = [row for name, curve in followed.items() for row in _measured(name, curve)]
    onsets = {name: onset_values(curve) for name, curve in followed.items()}
    rows += _onset_rows(onsets)
    settings = {
        **config.recorded(),
        "left_out": left_out,
        "notes": ["One training run: intervals are over prompts, not over seeds."],
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


def find_checkpoints(model: HookedModel, asked: Sequence[str]) -> list[Checkpoint]:
    """The checkpoints of a model's training, by step.

    Raises:
        SinklensError: It is not known where the model came from, or which checkpoints it has.
        UsageError: A checkpoint does not exist.
    """
    own = origin(model)
    numbered = [name for name in asked if _number_in(Path(name).name) is not None]
    if numbered and len(numbered) < len(asked):
        raise UsageError(
            f"no step can be read from checkpoint {next(n for n in asked if n not in numbered)}, "
            f"and it can from {numbered[0]}; name all by their step, or none, in their order"
        )
    if asked and all(Path(name).is_dir() for name in asked):
        found = [Checkpoint(_step_of(name, i), name, {}) for i, name in enumerate(asked)]
    elif own.kind == "shipped":
        steps = zoo.steps(own.name, own.seed)
        chosen = [_step_of(name, -1) for name in asked] or steps
        missing = [step for step in chosen if step not in steps]
        if missing:
            raise UsageError(
                f"{own.name} has no checkpoint of step {asked[chosen.index(missing[0])]}; there "
                f"is: {', '.join(map(str, steps))}"
            )
        found = [Checkpoint(s, own.name, {"step": s, "seed": own.seed}) for s in chosen]
    elif own.kind == "hub":
        if not asked:
            raise SinklensError(
                f"name the revisions of {own.name} to follow: checkpoints=step1000,step4000 "
                "(Pythia's are called so)"
            )
        found = [
            Checkpoint(_step_of(name, i), own.name, {"revision": name})
            for i, name in enumerate(asked)
        ]
    else:
        raise SinklensError(
            "sink_emergence finds checkpoints by where a model came from, and this one came as "
            f"{own.kind}; load a shipped model or one of the hub, or give folders in checkpoints="
        )
    found = sorted(found, key=lambda checkpoint: checkpoint.step)
    known = {checkpoint.step for checkpoint in found}
    if len(known) < len(found):
        raise UsageError(
            f"two of these checkpoints are of the same step: {', '.join(asked)}; a step is the "
            "number after `step` in a name, else the one at its end"
        )
    if len(known) < 2:
        raise SinklensError(
            f"emergence needs at least two checkpoints, and {own.name} is given with "
            f"{len(found)}; rope and postnorm ship with several"
        )
    return found


def _step_of(name: str, number: int) -> int:
    """The step that a name tells, else its number in the list."""
    step = _number_in(Path(name).name)
    return number if step is None else step


def _number_in(name: str) -> int | None:
    """The number after `step` (step1000-tokens4B is OLMo's way), else the one at the end."""
    digits = re.search(r"step[-_]?(\d+)", name) or re.search(r"(\d+)$", name)
    return int(digits[1]) if digits else None


def read_traits(
    model: HookedModel, prompts: Prompts, config: ExperimentConfig, wanted: Sequence[str]
) -> dict[str, Trait]:
    """The traits of one model."""
    capabilities = check(model)
    length, width = prompts.length, int(model.cfg.d_model)
    sinks, values, peaks = SinkScores(model), ValueNorms(model), ResidualPeaks(model)
    evaluate(model, prompts, [], [], probes=[sinks, values, peaks], **config.for_engine())
    scores, norms = sinks.compute(), values.compute()
    windows = [None if w is None or w >= length else w for w in capabilities.windows]
    causal = capabilities.causal
    masses = [uniform_sink_mass(length, window=w, causal=causal) for w in windows]
    uniform = [uniform_sink_scores(length, window=w, causal=causal) for w in windows]
    half = length // 2 + 1
    columns = scores.scores.mean(2)[..., :half].amax(-1).mean(1)
    ratio = peaks.compute().ratio
    drain = (norms.position0 / norms.others).flatten(1).mean(1)
    attention = "share of attention"
    traits = {
        "sink_mass": Trait(_array(mean_sink_mass(scores)), float(np.mean(masses)), attention, 1),
        "value_drain": Trait(_array(drain), 1.0, "times later positions", -1),
        "spike": Trait(
            _array(ratio.amax(1)),
            gaussian_peak_ratio(ratio.shape[1] * length * width),
            "times the median",
            1,
        ),
        "largest_column": Trait(
            _array(columns), float(np.mean([one[:half].max() for one in uniform])), attention, 1
        ),
    }
    return {name: traits[name] for name in wanted}


def _array(values: Any) -> Values:
    return np.asarray(values.double())


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
    rows = [row for row in result.effects if row.metric not in ("onset", "onset_order")]
    for name, found in _onsets(result):
        mine = [row for row in rows if row.metric == name]
        first, last = mine[0], mine[-1]
        said = f"{name} goes from {first.value:.3g} to {last.value:.3g} (null {last.baseline:.3g})"
        if found is None:
            side = {1: "above", -1: "below"}
            beyond = _side(_per_prompt(result, last) - last.baseline)
            where = f"ends {side[beyond]} its null" if beyond else "not told apart from its null"
            few = len(mine) < 3
            lines.append(
                f"{said}: " + ("too few checkpoints." if few else f"it does not appear ({where}).")
            )
            continue
        ends = ""
        if found["ci_low"] is not None:
            ends = f" [{found['ci_low']:,.0f}, {found['ci_high']:,.0f}]"
        between = " and ".join(f"{step:,}" for step in found["between"])
        lines.append(
            f"{said}, half of it by step {found['step']:,.0f}{ends}, between checkpoints {between}."
        )
    for row in result.effects:
        if row.metric == "onset_order" and row.ci_low is not None and row.ci_high is not None:
            sure = row.ci_low > 0
            lines.append(f"{row.condition}: {'yes' if sure else 'not told apart'}.")
    return [*lines[:11], "One training run; another seed may order them otherwise."]
