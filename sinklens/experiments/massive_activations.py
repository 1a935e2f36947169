"""Massive activations: where they are, which sub-block writes them, and what they are for.

Found without being told where (`spike_search`): the largest entries of the stream after every
sub-block, the channels and positions that hold them, and the sub-blocks that write and remove them.
Beside each figure stands its null: of Gaussian entries the largest would be about 6 times the
median one; where n sub-blocks write random shares of the peak, or take random shares away of what
goes after it, the largest, which is the one named, has (1 + 1/2 + .. + 1/n) / n on average. Shares
can be negative, which random ones are not. All above 10 % are named.

Then the massive entries of the stream behind the step-up are edited:

    zero              0
    mean              the mean over the massive entries of that channel, position 0 and later
                      positions apart
    flipped_mean      minus that
    first_token_mean  the same, but at position 0 the mean over 256 ordinary first tokens, each run
                      as a prompt of length 1

against two controls: as many entries of median size (which take 0 under `zero`, else their
channel's mean), and, under `zero:equal_norm` and so on, the same change made to random other
channels of the same positions.
Units: nats, shares of attention, the stream's own.

Follows 2402.17762 (definition, zero, mean, median-size control) and 2503.22329 (position 0 apart,
the other reading of the median). Where prompts share a BOS, position 0 is the same in all of them:
each of its entries is its own mean, and `mean` does nothing there by construction, which the table
says; `first_token_mean` (ours) does something. A clamp tells what a trained model needs, not what
training would have done.

Takes as long as 32 to 36 plain forwards of the batch (SmolLM2-135M, 16 prompts of 64 tokens, one
core; the median and the fastest forward), without the vocabulary sweep; that of 4,096 tokens at two
positions takes 22.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ..capabilities import check
from ..controls import (
    gaussian_exceeds,
    gaussian_peak_kurtosis,
    gaussian_peak_ratio,
    largest_share,
)
from ..effects import Row, is_significant, paired_row
from ..engine import evaluate
from ..errors import SinklensError, UsageError, unknown_name
from ..hooks.intervention import seeded
from ..models import ordinary_tokens
from ..plots import lines
from ..probes.entries import Entries, EntryValues, LargestEntry, StreamEntries
from ..probes.sub_blocks import Criterion, stage_name
from ..protocol import HookedModel
from ..results import Array, ExperimentResult, describe
from ..text import Prompts
from . import spike_search
from .comparison import ROUNDING, beside_null, run_comparisons
from .registry import ExperimentConfig, choose_metrics, experiment
from .spike_edits import EDITS, EQUAL_NORM, SpikeEdits, crowded
from .spike_search import Spikes, find_spikes

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

CONDITIONS = (*EDITS, *(f"{edit}{EQUAL_NORM}" for edit in EDITS))
DEFAULT_CONDITIONS = (*EDITS, f"zero{EQUAL_NORM}", f"flipped_mean{EQUAL_NORM}")
DEFAULT_METRICS = ("loss", "kl", "sink_mass", "sink_rate")
OURS = "Ours, and not the papers': the scale-free criterion, how a step is found, first_token_mean."
CRITERIA = ("absolute:layer_median", "absolute:token_median", "scale_free")


@dataclass(frozen=True)
class MassiveActivationsConfig(ExperimentConfig):
    """Settings.

    Attributes:
        criterion: What is edited: `absolute:layer_median`, `absolute:token_median`, `scale_free`;
            empty takes the first that any prompt meets.
        magnitude: Least size under the absolute criteria.
        times: Least size over the median under the absolute criteria.
        scale_free: Least size over the layer's median under the scale-free criterion.
        layer: The block whose input is edited; None takes the first behind the step-up.
        sweep_tokens: How many tokens of the vocabulary to try as first token, and at
            `sweep_position`; a number at least as large as the vocabulary tries all, 0 none.
        sweep_position: The later position of the sweep, after the start of the first prompt.
    """

    criterion: str = ""
    magnitude: float = 100.0
    times: float = 1000.0
    scale_free: float = 50.0
    layer: int | None = None
    sweep_tokens: int = 0
    sweep_position: int = 5

    def __post_init__(self) -> None:
        """Refuse what does not exist."""
        super().__post_init__()
        if self.criterion and self.criterion not in CRITERIA:
            raise unknown_name("criterion", self.criterion, CRITERIA)
        for condition in self.conditions:
            if condition not in CONDITIONS:
                raise unknown_name("condition", condition, CONDITIONS)
            if not self.draws and condition.endswith(EQUAL_NORM):
                raise UsageError(
                    f"{condition} is an edit beside its control, and draws=0 leaves controls out; "
                    f"ask for {condition.removesuffix(EQUAL_NORM)}"
                )
        if self.sweep_tokens < 0 or self.sweep_position < 1:
            raise UsageError("sweep_tokens is 0 or more, sweep_position 1 or more")
        if not (self.times > 1 and self.scale_free > 1 and self.magnitude >= 0):
            raise UsageError(
                "times and scale_free are above 1 (half of all entries are as large as the "
                "median), magnitude is 0 or more"
            )

    @property
    def criteria(self) -> dict[str, Criterion]:
        """The criteria by name, in the order in which they are tried."""
        return {
            "absolute:layer_median": Criterion(self.magnitude, self.times),
            "absolute:token_median": Criterion(self.magnitude, self.times, "token_median"),
            "scale_free": Criterion(0.0, self.scale_free),
        }


@experiment(
    paper="2402.17762",
    question="Where are massive activations, what writes them, and does the model need them?",
    summary=lambda result: summary(result),
    plot=lambda result: plot(result),
)
def massive_activations(
    model: HookedModel, prompts: Prompts, config: MassiveActivationsConfig
) -> ExperimentResult:
    """Find the massive entries, and edit them where they first are.

    Raises:
        SinklensError: The model is not causal or norms the stream itself, or a condition was asked
            for and nothing is massive.
    """
    capabilities = check(model)
    if not capabilities.causal:
        raise SinklensError(
            "massive_activations needs a causal model, whose position 0 sees only itself; on "
            f"{capabilities.architecture} read the largest entries with probes.ResidualPeaks"
        )
    spikes = find_spikes(model, prompts, config, config.criteria, config.criterion or None)
    layer = spikes.layer if config.layer is None else config.layer
    if not 0 <= layer <= capabilities.n_layers:
        raise UsageError(f"there is no layer {layer}: this model has {capabilities.n_layers}")
    reader = StreamEntries(model, layer, spikes.criteria[spikes.criterion], draws=config.draws)
    evaluate(model, prompts, [], [], probes=[reader], **config.for_engine())
    entries = reader.compute()
    conditions, left_out = _conditions(config, entries)
    metrics, missing = choose_metrics(config, DEFAULT_METRICS, causal=True)
    edits = SpikeEdits(model, config, layer, entries)
    comparisons = [edits.comparison(condition) for condition in conditions]
    footnotes = edits.own_means()
    notes = [
        "Conditions ending in :equal_norm set the same edit against an equal change of other "
        "channels, the others against as many entries of median size."
    ]
    return run_comparisons(
        "massive_activations",
        model,
        prompts,
        config,
        comparisons,
        metrics,
        left_out={**left_out, **missing},
        measured=_measured(model, prompts, spikes),
        notes=[*(notes if conditions and config.draws else []), OURS],
        footnotes=footnotes,
        draws={
            "layer": layer,
            "entries": _listed(model, prompts, entries.massive),
            "spikes": spikes.described(),
            "control_channels": edits.channels_drawn(),
            "vocabulary": _sweep(model, prompts, config, spikes),
        },
        arrays=_arrays(spikes),
        extra_forwards=spike_search.FORWARDS + 1,
    )


def _conditions(
    config: MassiveActivationsConfig, entries: EntryValues
) -> tuple[list[str], dict[str, str]]:
    """The conditions to run, and those left out with their reasons.

    Raises:
        SinklensError: A condition was asked for that has nothing to edit or no control.
    """
    asked = list(config.conditions or DEFAULT_CONDITIONS)
    if not config.draws:
        asked = [condition for condition in asked if not condition.endswith(EQUAL_NORM)]
    refused = [condition for condition in asked if condition.endswith(EQUAL_NORM)]
    reason = crowded(entries)
    if not len(entries.massive.prompt):
        refused = asked
        reason = (
            "no entry is massive there; criterion=scale_free with a lower scale_free= asks for less"
        )
    if not reason:
        return asked, {}
    if config.conditions and refused:
        raise SinklensError(f"{refused[0]} cannot be run: {reason}")
    kept = [condition for condition in asked if condition not in refused]
    return kept, dict.fromkeys(refused, reason)


def _measured(model: HookedModel, prompts: Prompts, spikes: Spikes) -> list[Row]:
    """What was found, each beside what no mechanism would give."""
    trace, stages = spikes.trace, spikes.shares.shape[1]
    width = int(model.cfg.d_model)
    size = trace.magnitude[:, spikes.peak, 0]
    # The peak is the largest of all stages; taken as independent, they give the largest null.
    looked_at = stages * prompts.length
    gaussian = gaussian_peak_ratio(looked_at * width)

    def row(
        metric: str,
        condition: str,
        values: Tensor,
        null: float,
        unit: str,
        layer: int | None = None,
    ) -> Row:
        numbers = values.double().numpy()
        nulls = np.full_like(numbers, null)
        kind = "measurement"
        return paired_row(metric, condition, kind, numbers, nulls, unit=unit, layer=layer)

    rows = [
        row("peak_ratio", name, size / median[:, spikes.peak], gaussian, "times the median")
        for name, median in (
            ("layer_median", trace.layer_median),
            ("token_median", trace.token_median),
        )
    ]
    kurtosis = trace.kurtosis[:, spikes.peak]
    null = gaussian_peak_kurtosis(looked_at, width)
    rows.append(row("kurtosis", "peak", kurtosis, null, "1 to d_model"))
    at_first = (spikes.positions == 0).float()
    rows.append(row("peak_at_position0", "peak", at_first, 1 / prompts.length, "share of prompts"))
    for number, (name, criterion) in enumerate(spikes.criteria.items()):
        massive = trace.massive[..., number].amax(1)
        typical = getattr(trace, criterion.median)[:, spikes.peak].mean()
        times = max(criterion.times, criterion.magnitude / float(typical))
        null = gaussian_exceeds(looked_at * width, times)
        rows.append(row("massive", name, massive, null, "share of prompts"))
    steps = {"step_up": spikes.step_up, "step_down": spikes.step_down}
    for name, stage in steps.items():
        if stage:
            shares = spikes.shares[:, stage]
            null = _step_null(spikes, name)
            unit, layer = "share of the peak", (stage - 1) // 2
            rows.append(row(name, stage_name(stage), shares, null, unit, layer))
    return rows


def _step_null(spikes: Spikes, name: str) -> float:
    """What the largest of random shares would be, in all that is written or taken away again."""
    if name == "step_up":
        return largest_share(spikes.peak + 1)
    after = spikes.shares[:, spikes.peak + 1 :]
    return min(0.0, float(after.sum(1).mean())) * largest_share(after.shape[1])


def _sweep(
    model: HookedModel, prompts: Prompts, config: MassiveActivationsConfig, spikes: Spikes
) -> dict[str, dict[str, float]]:
    """The share of the vocabulary that spikes as first token, and after the start of a prompt.

    Its unit is the token, so it is no row of the table; each position is the other's control, and
    the null is that of Gaussian entries. The median of a single position is another than that of a
    prompt; the sweep takes the prompts'.
    """
    if not config.sweep_tokens:
        return {}
    criterion = spikes.criteria[spikes.criterion]
    median = getattr(spikes.trace, criterion.median)[:, spikes.peak].mean()
    threshold = max(criterion.magnitude, criterion.times * float(median))
    tokens = ordinary_tokens(model)
    if config.sweep_tokens < len(tokens):
        random = seeded(config.seed, "sweep")
        chosen = random.choice(len(tokens), config.sweep_tokens, replace=False)
        tokens = tokens[torch.from_numpy(np.sort(chosen))]
    shares = {}
    for position in (0, min(config.sweep_position, prompts.length)):
        start = prompts.tokens[0, :position].cpu().expand(len(tokens), -1)
        tried = torch.cat([start, tokens[:, None]], 1)
        probe = LargestEntry(model, (spikes.peak + 1) // 2, position)
        inputs = replace(prompts, tokens=tried, answers=None, source="sweep")
        evaluate(model, inputs, [], [], probes=[probe], progress=config.progress)
        count = int((probe.compute() >= threshold).sum())
        interval = stats.binomtest(count, len(tokens)).proportion_ci(method="wilson")
        shares[f"position {position}"] = {
            "share": count / len(tokens),
            "ci_low": float(interval.low),
            "ci_high": float(interval.high),
            "tokens": len(tokens),
            "of": len(ordinary_tokens(model)),
            "threshold": threshold,
            "null": gaussian_exceeds(int(model.cfg.d_model), threshold / float(median)),
        }
    return shares


def _listed(model: HookedModel, prompts: Prompts, massive: Entries) -> dict[str, Any]:
    """What is edited: by channel and place how often and how large, and at which later tokens."""
    channels = []
    for channel in massive.channel.unique().tolist():
        for place, there in (
            ("position 0", massive.position == 0),
            ("later", massive.position > 0),
        ):
            part = massive.part(there & (massive.channel == channel))
            if len(part.value):
                mean = float(part.value.mean())
                share = len(part.value) / len(prompts)
                channels.append(
                    {"channel": channel, "place": place, "per_prompt": share, "mean": mean}
                )
    later = massive.part(massive.position > 0)
    tokens = Counter(prompts.tokens.cpu()[later.prompt, later.position].tolist())
    names: Counter[str] = Counter()  # several tokens can decode to the same text
    for token, count in sorted(tokens.items(), key=lambda item: (-item[1], item[0])):
        text = str(token) if model.tokenizer is None else model.tokenizer.decode([token])
        names[text] += count
    channels.sort(key=lambda entry: -abs(entry["mean"]))
    return {"channels": channels[:20], "later_tokens": dict(names.most_common(10))}


def _arrays(spikes: Spikes) -> dict[str, Array]:
    """What the figure shows, and the leading entry's way through the model."""
    trace = spikes.trace
    return {
        "top_magnitude": Array(trace.magnitude.mean(0), ("stage", "rank")),
        "layer_median": Array(trace.layer_median.mean(0), ("stage",)),
        "token_median": Array(trace.token_median.mean(0), ("stage",)),
        "kurtosis": Array(trace.kurtosis.mean(0), ("stage",)),
        "written_share": Array(spikes.shares.mean(0), ("stage",)),
        "spike_channels": Array(spikes.written.mean(0), ("stage", "channel")),
    }


def plot(result: ExperimentResult) -> Figure:
    """The largest entries after every sub-block, beside the median one."""
    top = result.arrays["top_magnitude"].values
    curves = {f"rank {rank + 1}": top[:, rank] for rank in range(top.shape[1])}
    curves["median"] = result.arrays["layer_median"].values
    return lines(
        curves,
        [stage_name(stage) for stage in range(len(top))],
        title=f"Largest activations, {result.provenance['model']['name']}",
        x_title="residual stream after",
        y_title="size (mean over prompts)",
        log=True,
    )


def summary(result: ExperimentResult) -> list[str]:
    """Where the largest entry is, what writes it, and what its edits do."""
    return [*_found(result), *_effects(result)][:12]


def _found(result: ExperimentResult) -> Iterator[str]:
    """What the search found, beside its nulls."""
    drawn = result.settings["draws_made"]
    spikes, entries = drawn["spikes"], drawn["entries"]["channels"]
    rows = {(row.metric, row.condition): row for row in result.effects if row.kind == "measurement"}
    ratio, first = rows["peak_ratio", "layer_median"], rows["peak_at_position0", "peak"]
    size = float(result.arrays["top_magnitude"].values[:, 0].max())
    yield (
        f"The largest activation is {size:,.4g} on average, after {spikes['peak_after']}: "
        f"{ratio.value:,.4g} times the median, {beside_null(ratio)} Gaussian entries "
        f"({ratio.baseline:.2g}); it leads in channel {spikes['channels'][0]}, "
        f"and at position 0 in {first.value:.0%} of prompts ({beside_null(first)} "
        f"{first.baseline:.0%})."
    )
    shares = ", ".join(
        f"{row.value:.0%} ({name}, {beside_null(row)} {row.baseline:.2g})"
        for (metric, name), row in rows.items()
        if metric == "massive"
    )
    yield f"Prompts with a massive activation: {shares}."
    for name, verb in (("up", "writes"), ("down", "takes away")):
        step = spikes["steps"][name]
        if step and step["block"]:
            share = max(0.0, step["share"] if name == "up" else -step["share"])
            enough = share >= spike_search.STEP_SHARE
            said = f"{step['after']} (block {step['block']}) {verb} {share:.0%} of it"
            row = rows[f"step_{name}", step["after"]]
            end = row.ci_low if name == "up" else row.ci_high
            sign = 1 if name == "up" else -1
            beyond = "more" if end is not None and sign * end > ROUNDING else "not more"
            said += f" ({beyond} than the largest of as many random shares, "
            said += f"{abs(row.baseline):.1%})"
            said += _others(spikes, name)
            yield f"{said}." if enough else f"No single sub-block steps {name}: {said}."
        elif step:
            yield "The embedding already holds it."
    if entries:
        what = "; ".join(
            f"channel {one['channel']} at {one['place']}: {one['mean']:,.4g}, "
            f"{one['per_prompt']:.2g} a prompt"
            for one in entries[:3]
        )
        yield f"Edited where they enter layer {drawn['layer']} ({spikes['criterion']}): {what}."
    else:
        yield f"Nothing was edited: {next(iter(result.settings['left_out'].values()))}."
    if drawn["vocabulary"]:
        swept = next(iter(drawn["vocabulary"].values()))
        shares = ", ".join(
            f"{one['share']:.2%} [{one['ci_low']:.2%}, {one['ci_high']:.2%}] at {place} "
            f"({'above' if one['ci_low'] > one['null'] else 'not above'} Gaussian entries)"
            for place, one in drawn["vocabulary"].items()
        )
        tried = f"{swept['tokens']:,} of {swept['of']:,} tried"
        yield f"Of the tokens of the vocabulary spike: {shares} ({tried})."


def _others(spikes: Mapping[str, Any], name: str) -> str:
    """What sub-blocks besides the largest write, or take away, of the peak."""
    sign = 1 if name == "up" else -1
    largest = spikes["steps"][name]["after"]
    others = ", ".join(
        f"{sign * share:.0%} ({after})"
        for after, share in spikes["writers"].items()
        if sign * share > 0 and after != largest
    )
    return f", besides {others}" if others else ""


def _effects(result: ExperimentResult) -> Iterator[str]:
    """What each edit does, against its controls."""
    found = {(row.metric, row.condition, row.kind): row for row in result.effects}
    for metric, edits in (("loss", EDITS), ("sink_mass", ("zero", "flipped_mean"))):
        for edit in edits:
            same = (edit, f"{edit}{EQUAL_NORM}")
            treated = next((r for c in same if (r := found.get((metric, c, "treatment")))), None)
            if treated is None:
                continue
            names = ("median-size entries", "an equal change elsewhere")
            against = [
                f"{row.effect:+.3g} against {name}{_doubt(is_significant(row))}"
                for c, name in zip(same, names, strict=True)
                if (row := found.get((metric, c, "contrast")))
            ]
            said = "; ".join(against) or "there is no control"
            footnote = result.settings["footnotes"].get(edit, "")
            note = " (by construction)" if "the effect is 0" in footnote else ""
            yield f"{edit}: {metric} {describe(treated)}{note}; {said}."


def _doubt(significant: bool) -> str:
    return "" if significant else " (not told apart)"
