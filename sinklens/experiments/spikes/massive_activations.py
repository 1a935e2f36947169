"""Massive activations: where they are, which sub-block writes them, and what they are for.

Found without being told where (`spike_search`): the largest entries of the stream after every
sub-block, the channels and positions that hold them, and the sub-blocks that write and remove them.
Beside each figure stands its null: of Gaussian entries the largest would be about 6 times the
median one; where n sub-blocks write random shares of the peak, or take random shares away of what
goes after it, the largest, which is the one named, has (1 + 1/2 + .. + 1/n) / n on average. Shares
can be negative, which random ones are not. All above 10 % are named. The control of the search is
position 0 against a later one, in the stream that is edited (rows named position0).

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

Takes as long as 33 to 37 plain forwards of the batch (SmolLM2-135M, 16 prompts of 64 tokens, one
core of two machines), without the vocabulary sweep; that of 4,096 tokens at two positions takes 20.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...core.errors import SinklensError, UsageError, unknown_name
from ...core.labels import stage_name
from ...core.protocol import HookedModel
from ...engine import evaluate
from ...hooks.matching import control_positions
from ...models.capabilities import check
from ...models.prompts import Prompts
from ...probes.residual_trace import Criterion, PositionPeaks
from ...probes.stream_entries import Entries, EntryValues, StreamEntries
from ...results.old_figures import lines
from ...results.record import Array
from ...results.result import ExperimentResult
from ...runner.config import ExperimentConfig
from ...runner.old_comparison import run_comparisons
from ...runner.registry import choose_metrics, experiment
from . import _search as spike_search
from ._edits import EDITS, EQUAL_NORM, SpikeEdits, crowded
from ._massive_words import summary
from ._rows import peak_rows, position_rows
from ._search import Spikes, find_spikes
from ._vocabulary import sweep_vocabulary

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
    summary=summary,
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
    peaks = PositionPeaks(model, 2 * layer)
    evaluate(model, prompts, [], [], probes=[reader, peaks], **config.for_engine())
    entries = reader.compute()
    places = control_positions(prompts.length, config.draws, config.seed)
    width = int(model.cfg.d_model)
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
        measured=[
            *peak_rows(model, prompts, spikes),
            *position_rows(peaks.compute(), entries.median, width, places, layer, config.seed),
        ],
        notes=[*(notes if conditions and config.draws else []), OURS],
        footnotes=footnotes,
        draws={
            "layer": layer,
            "entries": _listed(model, prompts, entries.massive),
            "spikes": spikes.described(),
            "control_channels": edits.channels_drawn(),
            "control_positions": places,
            "vocabulary": sweep_vocabulary(
                model, prompts, config, spikes, config.sweep_tokens, config.sweep_position
            ),
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
