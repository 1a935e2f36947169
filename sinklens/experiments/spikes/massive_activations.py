"""Massive activations: where they are, which sub-block writes them, and what they are for.

Found without being told where (`_search`): the largest entries of the residual stream after every
sub-block, the channels and positions that hold them, and every step in which the leading one
becomes massive, with the sub-blocks that write and remove it (`_steps`).
Beside each stands its null: Gaussian entries, whose largest would be about 6 times the median one,
and the broken-stick expectation: where n sub-blocks write random shares of the peak, or remove
random shares of what is removed after it, the largest, which is the one named, has
(1 + 1/2 + .. + 1/n) / n on average. Shares can be negative, which random ones are not. The control
of the search is a later position of the residual stream that is intervened on (rows named
position0).

Then the massive entries of the residual stream behind the step-up are set to `zero`, `mean`,
`flipped_mean` or `first_token_mean`, beside as many entries of median size and, for the conditions
in `equal_change`, the same change in other channels (`comparisons.spikes`). Units: nats, shares of
attention, the residual stream's own.

Follows Sun et al. 2024 (2402.17762: definition, zero, mean, median-size control) and Owen et al.
2025 (2503.22329: position 0 apart, the other reading of the median). An intervention shows what a
trained model needs, not what training would have done.

Takes as long as 33 to 37 plain forwards of the batch (SmolLM2-135M, 16 prompts of 64 tokens, one
core of two machines), without the vocabulary sweep; that of 4,096 tokens at two positions takes 20.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...comparisons.spikes import EDITS, MEDIAN_ENTRIES, OTHER_CHANNELS, SpikeEdits
from ...core.errors import UsageError
from ...hooks.matching import control_positions
from ...probes import PositionPeaks, StreamEntries
from ...probes.stream_entries import Entries, EntryValues
from ...results.estimates import Measure, Reference, Sample
from ...results.figures import Lines
from ...results.record import Record
from ...results.wording import Compared, phrase
from ...runner.config import ExperimentConfig, setting
from ...runner.needs import CAUSAL
from ...runner.registry import experiment
from ...runner.run import Run
from ...stats.effects import EffectSize
from ...stats.nulls import gaussian_peak_ratio
from ._search import CRITERIA, add_search, criteria, find_spikes
from ._steps import NAMED_SHARE
from ._vocabulary import sweep_vocabulary

OURS = (
    "Defined by sinklens, not by the papers: the scale-free criterion, how a step is found, "
    "first_token_mean."
)
STEP_SHARE = 0.5  # below it no single sub-block writes or removes the spike
NOTHING = "no entry is massive there; criterion=scale_free with a lower scale_free= asks for less"


@dataclass(frozen=True)
class MassiveActivationsConfig(ExperimentConfig):
    """Settings.

    Attributes:
        criterion: What is intervened on: `absolute:layer_median`, `absolute:token_median`,
            `scale_free`; None takes the first that any prompt meets.
        magnitude: Least size under the absolute criteria.
        times: Least size over the median under the absolute criteria; half of all entries are as
            large as the median.
        scale_free: Least size over the layer's median under the scale-free criterion.
        layer: The block whose input is intervened on, or the number of blocks for what leaves the
            last; None takes the first behind the step-up.
        equal_change: The conditions that have the control `other_channels` as well.
        sweep_tokens: How many tokens of the vocabulary to try as first token, and at
            `sweep_position`; a number at least as large as the vocabulary tries all, 0 none.
        sweep_position: The later position of the sweep, after the start of the first prompt.
    """

    criterion: str | None = setting(None, choices=CRITERIA)
    magnitude: float = setting(100.0, least=0)
    times: float = setting(1000.0, above=1)
    scale_free: float = setting(50.0, above=1)
    layer: int | None = setting(None, least=0)
    equal_change: tuple[str, ...] = setting(("zero", "flipped_mean"), choices=EDITS)
    sweep_tokens: int = setting(0, least=0)
    sweep_position: int = setting(5, least=1)


def steps(result: Record) -> Iterator[str]:
    """For each step its size, and the sub-blocks that write and remove it, as far as they do."""
    several = len(result.findings["steps"]) > 1
    for number, step in enumerate(result.findings["steps"], 1):
        yield (
            f"{f'Step {number}: t' if several else 'T'}he leading entry stands out from "
            f"{step['from']} to {step['to']}, most after {step['peak_after']} "
            f"({step['peak_size']:,.4g}, {step['peak_ratio']:,.0f} times the median). "
            f"{_written(result, step)} {_removed(result, step)}"
        )


def _written(result: Record, step: Mapping[str, Any]) -> str:
    """What writes the entry of a step up to its peak."""
    if step["step_up"] == "embedding":
        return "The embedding already holds the peak."
    row = _row_of("step_up", step, result)
    alone = "by" if row.value >= STEP_SHARE else "by no single sub-block;"
    besides = _besides(step["writers"], step["step_up"])
    return f"Written {alone} {row.condition}: {phrase(result, row)}{besides}."


def _removed(result: Record, step: Mapping[str, Any]) -> str:
    """What removes it again, from its largest size on."""
    row = None if step["step_down"] is None else _row_of("step_down", step, result)
    if row is None or -row.value < NAMED_SHARE:
        return f"No sub-block removes more than {NAMED_SHARE:.0%} of it."
    alone = "by" if -row.value >= STEP_SHARE else "by no single sub-block;"
    besides = _besides(step["removers"], step["step_down"])
    largest = f"{step['largest_size']:,.4g} after {step['largest_after']}"
    return f"Removed {alone} {row.condition}: {phrase(result, row)}{besides} (of {largest})."


def _row_of(metric: str, step: Mapping[str, Any], result: Record) -> EffectSize:
    return next(r for r in result.effects if (r.metric, r.condition) == (metric, step[metric]))


def _besides(shares: Mapping[str, float], named: str) -> str:
    """The others, the embedding included, that have a share of a tenth or more."""
    others = [f"{after} {share:.0%}" for after, share in shares.items() if after != named]
    return f"; besides {', '.join(others)}" if others else ""


def edited_entries(result: Record) -> Iterator[str]:
    """What is intervened on, and how large it is."""
    entries = "; ".join(
        f"channel {entry['channel']} at {entry['place']} (mean {entry['mean']:,.4g}, "
        f"{entry['per_prompt']:.2g} per prompt)"
        for entry in result.findings["entries"][:3]
    )
    yield (
        f"Massive there by {result.findings['criterion']}: {entries}."
        if entries
        else f"Nothing was intervened on: {NOTHING}."
    )


def loss_of_edits(result: Record) -> Iterator[str]:
    """The loss under each intervention that changes something."""
    changing = tuple(edit for edit in EDITS if edit not in result.findings["changes_nothing"])
    yield from Compared("Massive entries set to", "loss", changing)(result)


MEASURES = {
    "peak_ratio": Measure("times the median", "Gaussian entries", ",.1f"),
    "kurtosis": Measure("1 to d_model", "Gaussian entries"),
    "peak_at_position0": Measure("share of prompts", "a random position", ".0%"),
    "massive": Measure("share of prompts", "Gaussian entries", ".0%"),
    "step_up": Measure("share of the peak", "the broken-stick expectation", ".0%"),
    "step_down": Measure("share of the largest size", "the broken-stick expectation", ".0%"),
    "vocabulary_spikes": Measure("share of tokens", "Gaussian entries", ".2%"),
}
SAYS = (
    "The peak, the residual stream's largest entry relative to its layer's median, is found after "
    "{peak_after}: {peak_ratio/layer_median}; its size there is {peak_size:,.4g} on average, in "
    "channels {channels}, and it is at position 0 in {peak_at_position0/peak}.",
    "With a massive activation by the rule of Sun et al. 2024 (the token's own median): "
    "{massive/absolute:token_median}; by that of Owen et al. 2025 (the layer's median): "
    "{massive/absolute:layer_median}; by the ratio to the layer's median alone: "
    "{massive/scale_free}.",
    steps,
    "At position 0 of the residual stream {where} the largest entry is {peak_ratio/position0}.",
    edited_entries,
    "Spiking as first token: {vocabulary_spikes/position0}; at a later position: "
    "{vocabulary_spikes/later_position} ({vocabulary_tried:,} of {vocabulary_size:,} tried).",
    loss_of_edits,
    Compared("Massive entries set to", "sink_mass", ("zero", "flipped_mean")),
)


@experiment(
    paper="Sun et al. 2024 (2402.17762)",
    question="Where are massive activations, what writes them, and does the model need them?",
    needs=(CAUSAL.otherwise("Read the largest entries with probes.ResidualPeaks."),),
    conditions=EDITS,
    metrics=("loss", "kl", "sink_mass", "sink_rate"),
    measures=MEASURES,
    says=SAYS,
    figure=Lines(
        ("top_magnitude", "layer_median"),
        "Largest activations",
        x="residual stream after",
        y="size (mean over prompts)",
        log=True,
    ),
    smallest={"scale_free": 4.0, "sweep_tokens": 8},
)
def massive_activations(run: Run[MassiveActivationsConfig]) -> None:
    """Find the massive entries, and intervene on them where they first are.

    Raises:
        SinklensError: The model is not causal or norms the residual stream itself, or a condition
            was asked for and nothing is massive.
    """
    config, blocks = run.config, run.capabilities.n_layers
    if config.layer is not None and config.layer > blocks:
        raise UsageError(f"there is no layer {config.layer}: this model has {blocks}, from 0")
    candidates = criteria(
        magnitude=config.magnitude, times=config.times, scale_free=config.scale_free
    )
    spikes = find_spikes(run, candidates, config.criterion)
    add_search(run, spikes)
    layer = spikes.layer if config.layer is None else config.layer
    where = f"entering layer {layer}" if layer < blocks else "leaving the last layer"
    run.facts(layer=layer, where=where, **spikes.described())
    reader = StreamEntries(run.model, layer, candidates[spikes.criterion], draws=config.draws)
    peaks = PositionPeaks(run.model, 2 * layer)
    run.read(reader, peaks)
    entries = reader.compute()
    _add_position0(run, peaks, entries, layer)
    run.facts(**_listed(run, entries.massive))
    if config.sweep_tokens:
        sweep_vocabulary(run, spikes, config.sweep_tokens, config.sweep_position)
    if not len(entries.massive.prompt):
        run.refuse(dict.fromkeys(EDITS, NOTHING), none_is_fine=True)
    run.note(OURS)
    edits = SpikeEdits(run, layer, entries)
    equal = set(config.equal_change) & set(run.conditions)
    if equal and config.draws and edits.crowded:
        run.left_out(OTHER_CHANNELS, edits.crowded)
    comparisons = [
        edits.comparison(edit, [MEDIAN_ENTRIES, *([OTHER_CHANNELS] if edit in equal else [])])
        for edit in run.conditions
    ]
    run.facts(changes_nothing=[one.condition for one in comparisons if one.treatment[0].identity])
    run.compare(comparisons)


def _add_position0(
    run: Run[MassiveActivationsConfig], peaks: PositionPeaks, entries: EntryValues, layer: int
) -> None:
    """Position 0 of the stream that enters a block, beside a later one and Gaussian entries."""
    width, length = int(run.model.cfg.d_model), run.prompts.length
    places = control_positions(length, run.config.draws, run.config.seed)
    run.drawn(control_positions=places)
    found = peaks.compute()
    figures = {
        "peak_ratio": (found.largest / entries.median[:, None], gaussian_peak_ratio(width)),
        "kurtosis": (found.kurtosis, 3 * width / (width + 2)),
    }
    for metric, (values, null) in figures.items():
        later = Sample(values[:, places].double().mean(1), null, len(places))
        references = [Reference(later, "later_position")] if places else []
        run.add(metric, "position0", Sample(values[:, 0], null), *references, layer=layer)


def _listed(run: Run[MassiveActivationsConfig], massive: Entries) -> dict[str, Any]:
    """What is massive: by channel and place how often and how large, and at which later tokens."""
    entries = []
    for channel in massive.channel.unique().tolist():
        for place, there in (
            ("position 0", massive.position == 0),
            ("later positions", massive.position > 0),
        ):
            values = massive.value[there & (massive.channel == channel)]
            if len(values):
                found = {"per_prompt": len(values) / len(run.prompts), "mean": float(values.mean())}
                entries.append({"channel": channel, "place": place, **found})
    entries.sort(key=lambda entry: -abs(entry["mean"]))
    later = massive.part(massive.position > 0)
    tokens = Counter(run.prompts.tokens.cpu()[later.prompt, later.position].tolist())
    names: Counter[str] = Counter()  # several tokens can decode to the same text
    tokenizer = run.model.tokenizer
    for token, count in sorted(tokens.items(), key=lambda item: (-item[1], item[0])):
        names[str(token) if tokenizer is None else tokenizer.decode([token])] += count
    return {"entries": entries[:20], "later_tokens": dict(names.most_common(10))}
