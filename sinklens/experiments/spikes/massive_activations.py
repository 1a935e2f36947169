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

Then the massive entries of the residual stream behind each step-up, and behind all of them in one
forward pass (`zero_all`), are set to `zero`, `mean`, `flipped_mean` or `first_token_mean`, beside
as many entries of median size at the same positions and, for the conditions in `equal_change`, the
same change in other channels (`comparisons.spikes`). `spike` tells what is left of the spike behind
the intervention, since later blocks can write it again (`_clamps`). Units: nats, shares of
attention, times the median, the residual stream's own.

Follows Sun et al. 2024 (2402.17762: definition, zero, mean, median-size control) and Owen et al.
2025 (2503.22329: position 0 apart, the other reading of the median). An intervention shows what a
trained model needs, not what training would have done.

The vocabulary sweep of 4,096 tokens at two positions takes as long as 20 plain forwards of the
batch (SmolLM2-135M, 16 prompts of 64 tokens, one core).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...comparisons.spikes import EDITS, MEDIAN_ENTRIES, OTHER_CHANNELS, SpikeEdits, crowded
from ...core.errors import UsageError
from ...hooks.matching import control_positions
from ...models.prompts import token_text
from ...probes import PositionPeaks
from ...probes.stream_entries import Entries, EntryValues
from ...results.estimates import NOT_TESTED, OF_PROMPTS, Measure, Reference, Sample, proportion
from ...results.figures import Forest, Lines, Stack
from ...results.record import Record
from ...results.wording import describe, listed, phrase
from ...runner.compare import Comparison
from ...runner.config import ExperimentConfig, setting
from ...runner.needs import CAUSAL, EQUAL_LENGTHS
from ...runner.registry import experiment
from ...runner.run import Run
from ...stats.nulls import gaussian_peak_ratio
from ._clamps import (
    effects_by_step,
    effects_on_sinks,
    idle,
    rows_of_edit,
    spike_metrics,
    written_again,
)
from ._search import CHANNELS, CRITERIA, add_search, criteria, find_spikes, read_entries
from ._steps import steps_in_words
from ._vocabulary import sweep_vocabulary

OURS = (
    "Defined by sinklens, not by the papers: the scale-free criterion, how a step is found, "
    "first_token_mean."
)
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
            last; None takes the first behind the step-up of every step, each alone and all
            together.
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


def peak_found(result: Record) -> Iterator[str]:
    """Where the peak is: its stage and size, its channels and those beside it, its position."""
    found = result.findings
    ratio, first = (
        phrase(result, result.find(metric=metric, condition=condition))
        for metric, condition in (("peak_ratio", "layer_median"), ("peak_at_position0", "peak"))
    )
    leading = found["leading_channels"]
    beside = [str(channel) for channel in found["channels"] if channel not in leading]
    channels = listed([*map(str, leading[:CHANNELS]), *(["others"] if leading[CHANNELS:] else [])])
    yield (
        "The peak, the residual stream's largest entry relative to its layer's median, is found "
        f"after {found['peak_after']}: {ratio}; its size there is {found['peak_size']:,.4g} on "
        f"average, in channel{'s' if len(leading) > 1 else ''} {channels}"
        f"{(beside and f' ({listed(beside)} large beside it)') or ''}, and it is at position 0 in "
        f"{first}."
    )


def massive_by_rule(result: Record) -> Iterator[str]:
    """In how many prompts anything is massive, by the rules of two papers and by the ratio."""
    rules = {
        "absolute:token_median": "the rule of Sun et al. 2024 (the token's own median)",
        "absolute:layer_median": "that of Owen et al. 2025 (the layer's median)",
        "scale_free": f"the ratio to the layer's median alone ({_least_ratio(result)})",
    }
    shares = [
        f"by {rules[row.condition]}: {phrase(result, row)}"
        for row in result.effects
        if row.metric == "massive"
    ]
    yield f"With a massive activation {'; '.join(shares)}."


def _least_ratio(result: Record) -> str:
    """What the scale-free criterion asks for."""
    return f"{result.settings['scale_free']:g} or more"


def edited_entries(result: Record) -> Iterator[str]:
    """What is intervened on, and how large it is."""
    entries = "; ".join(
        f"channel {entry['channel']} at {entry['place']} (mean {entry['mean']:,.4g}, "
        f"{entry['per_prompt']:.2g} per prompt)"
        for entry in result.findings["entries"][:3]
    )
    main = f"L{result.findings['layer']}"

    def criterion(point: Mapping[str, Any]) -> str:
        name = str(point["criterion"])
        times = f" ({_least_ratio(result)} times the layer's median)"
        return name + (times if name == "scale_free" else "")

    others = "".join(
        f" At {place} by {criterion(point)}: {point['per_prompt']:.2g} per prompt, in channels "
        f"{_first(point['channels'])} at positions {_first(point['positions'])}."
        for place, point in result.findings["entry_points"].items()
        if place != main and point["per_prompt"]
    )
    by = criterion(result.findings["entry_points"][main])
    if entries:
        yield f"Massive {result.findings['where']} by {by}: {entries}.{others}"
    elif others:
        yield f"Nothing is massive {result.findings['where']} by {by}.{others}"
    else:
        yield f"Nothing was intervened on: {NOTHING}."


def _first(numbers: Sequence[int], most: int = 8) -> str:
    """The first of some numbers: `0, 3, 5, ...`."""
    return ", ".join(map(str, numbers[:most])) + (", ..." if len(numbers) > most else "")


def loss_of_edits(result: Record) -> Iterator[str]:
    """The loss under each intervention that changes something."""
    footnotes = result.settings["footnotes"]
    for edit in EDITS:
        for line in effects_by_step(result, "Massive entries set to", "loss", [edit]):
            # Position 0 is its own mean there.
            apart = " Only the other entries change, not those at position 0 (see *)."
            yield line + (apart if edit in footnotes else "")


def zeroed(result: Record) -> Iterator[str]:
    """What zeroing leaves of the spike and of sinks, and what other values do to sinks."""
    yield from written_again(result, "zero")
    lines = [*effects_on_sinks(result, "Massive entries set to", ("zero",))]
    others = [rows_of_edit(result, "sink_mass", edit)[-1:] for edit in EDITS[1:]]
    said = [f"{row.condition} {describe(row)}" for rows in others for row in rows]
    if said:
        lines.append(f"Sink mass under other values: {'; '.join(said)}.")
    if lines:
        yield " ".join(lines)


MEASURES = {
    "peak_ratio": Measure("times the median", "Gaussian entries", ",.1f"),
    "kurtosis": Measure("", "Gaussian entries"),
    "peak_at_position0": proportion(OF_PROMPTS, "a random position", ".0%"),
    "massive": proportion(OF_PROMPTS, "Gaussian entries", ".0%"),
    "step_up": Measure("share of the peak", "the broken-stick expectation", ".0%"),
    "step_down": Measure("share of the largest size", "the broken-stick expectation", ".0%"),
    "vocabulary_spikes": proportion("share of tokens", "Gaussian entries", ".2%"),
}
SAYS = (
    peak_found,
    massive_by_rule,
    steps_in_words,
    "At position 0 of the residual stream {where} the largest entry is {peak_ratio/position0}.",
    edited_entries,
    "Spiking as first token: {vocabulary_spikes/position0}; at a later position: "
    "{vocabulary_spikes/later_position} ({vocabulary_tried:,} of {vocabulary_size:,} tried).",
    loss_of_edits,
    zeroed,
)


@experiment(
    paper="Sun et al. 2024 (2402.17762)",
    question="Where are massive activations, what writes them, and does the model need them?",
    needs=(
        EQUAL_LENGTHS,
        CAUSAL.otherwise("Read the largest entries with probes.ResidualPeaks."),
    ),
    conditions=EDITS,
    metrics=("loss", "kl", "sink_mass", "sink_rate"),
    measures=MEASURES,
    says=SAYS,
    figure=Stack(
        (
            Lines(
                ("top_magnitude", "layer_median"),
                "Where they are",
                x="residual stream after",
                y="size (mean over prompts)",
                log=True,
                names=("largest entry", "median entry"),
                curves=1,
            ),
            Forest(("loss|kl", "sink_mass")),
        ),
        "Massive activations, and what they are for",
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
    layers = spikes.layers if config.layer is None else [config.layer]
    layer = spikes.layer if config.layer is None else config.layer
    where = f"entering layer {layer}" if layer < blocks else "leaving the last layer"
    run.facts(**spikes.described(), layer=layer, where=where)
    entries = read_entries(run, spikes, layers)
    _add_position0(run, entries[layer], layer)
    run.facts(**_listed(run, entries[layer].massive))
    if config.sweep_tokens:
        sweep_vocabulary(run, spikes, config.sweep_tokens, config.sweep_position)
    run.note(OURS)
    massive = {layer: own for layer, own in entries.items() if len(own.massive.prompt)}
    for missing in entries.keys() - massive.keys() if massive else ():
        run.left_out(f"L{missing}", NOTHING)
    if not massive:
        run.refuse(dict.fromkeys(EDITS, NOTHING), none_is_fine=True)
    _intervene(run, massive)


def _intervene(run: Run[MassiveActivationsConfig], massive: Mapping[int, EntryValues]) -> None:
    """Every condition at every entry point and at all of them, with its controls."""
    equal = set(run.config.equal_change) & set(run.conditions)
    reason = next(filter(None, map(crowded, massive.values())), "")
    if equal and run.config.draws and reason:
        run.left_out(OTHER_CHANNELS, reason)

    def comparisons(run: Run[Any]) -> list[Comparison]:
        edits = SpikeEdits(run, massive)
        made = [
            comparison
            for edit in run.conditions
            for comparison in edits.comparisons(
                edit, [MEDIAN_ENTRIES, *([OTHER_CHANNELS] if edit in equal else [])]
            )
        ]
        run.facts(changes_nothing=idle(made))
        return made

    metrics = list(run.metrics)
    if reason:
        run.left_out("spike", "of so many entries set to 0 the median could be 0 as well")
    elif massive and not run.config.metrics:
        metrics += spike_metrics(list(massive))
    run.compare(comparisons, metrics)


def _add_position0(run: Run[MassiveActivationsConfig], entries: EntryValues, layer: int) -> None:
    """Position 0 of the stream that enters a block, beside a later one and Gaussian entries."""
    width, length = int(run.model.cfg.d_model), run.prompts.length
    places = control_positions(length, run.config.draws, run.config.seed)
    run.drawn(control_positions=places)
    (found,) = run.read(PositionPeaks(run.model, 2 * layer))
    figures = {
        "peak_ratio": (found.largest / entries.median[:, None], gaussian_peak_ratio(width)),
        "kurtosis": (found.kurtosis, 3 * width / (width + 2)),
    }
    for metric, (values, null) in figures.items():
        later = Sample(values[:, places].double().T, null, len(places))
        # Not tested: position 0 differs from later ones in more than half of random models too.
        later_ones = Reference(later, "later_position", models=NOT_TESTED)
        references = [later_ones] if places else []
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
    for token, count in sorted(tokens.items(), key=lambda item: (-item[1], item[0])):
        names[token_text(run.model, token)] += count
    return {"entries": entries[:20], "later_tokens": dict(names.most_common(10))}
