"""Can a model have its sinks without its spikes, and its spikes without its sinks?

Two edits, alone and together, in the trained model:

    clamp_spikes  every massive entry of the stream behind the step-up (`massive_activations`) gets
                  the size of a median entry and keeps its sign
    drop_edge     the edge to position 0 is dropped in all sink heads (sink mass above 0.3) and the
                  rest of each row scaled up
    both          the two together

Each is read on spike size (largest entry over the median, from the edited layer on), sink mass and
rate, logit gap (`sink_logit`) and loss; `interaction` is the effect of both less the sum of the
two effects, paired by prompt, and its control the same of the three controls. Sink figures under
drop_edge, and spike size under clamp_spikes, fall by construction. A spike at position 0 stays
under drop_edge by construction too: that position sees only itself, so that no edge of a later
query reaches it, and what moves there is the median. The other cells are the findings. Controls:
the same change in random other channels, and the same heads' edge to a later key.

Beside them, what makes a spike a sink (2603.05498): how much of the normed stream the spike
channels hold at spike tokens (`sparsity`, beside as many of the largest channels at each other
token), how alike position 0 is over 256 ordinary first tokens, behind the step-up and before it
(`constancy`, beside the likeness of a later position over prompts), how far sink heads' logits for
position 0 lie above the others (`sink_gaps`, beside those for a later key), and for a gated step-up
block its quadratic form (`quadratic_form`), with the share of what it writes that the form
predicts (`quadratic_prediction`, beside what the inputs at ordinary tokens would give). With
`compare=`, spike and sinks of other models on the same prompts, every seed of a shipped one, each
set against this one (`matched_models`).

2603.05498 trains models to separate the two; this asks what one trained model needs, which is
weaker evidence. Its definitions give no measure for sparsity and constancy; those here are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ...core.errors import SinklensError
from ...core.labels import Head, head_label
from ...core.protocol import HookedModel
from ...engine import evaluate
from ...hooks.heads import ablate_heads
from ...hooks.intervention import together
from ...hooks.matching import control_positions
from ...hooks.spikes import replace_entries
from ...metrics import SINK_MASS, Metric, ProbeMetric
from ...models.capabilities import check
from ...models.prompts import Prompts
from ...probes import LogitGaps, Probe, ResidualPeaks, SinkScores, StreamEntries
from ...probes.stream_entries import EntryValues
from ...results.old_figures import interaction
from ...results.record import Array
from ...results.result import ExperimentResult
from ...runner.config import ExperimentConfig
from ...runner.old_compare import NO_POSITION, Comparison
from ...runner.old_comparison import run_comparisons
from ...runner.registry import choose_metrics, experiment
from . import _search as spike_search
from ._decoupling_words import summary
from ._edits import SpikeEdits, crowded
from ._interaction import CONDITIONS, interaction_rows
from ._matched_models import matched_models
from ._mechanism import spike_nature
from ._search import Spikes, find_spikes
from ._sink_logits import SinkGaps
from .massive_activations import MassiveActivationsConfig

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

OURS = "Ours: how sparsity and constancy are measured, for which 2603.05498 gives no definition."
DEFAULT_METRICS = ("loss", "sink_mass", "sink_rate")
BOUND = (
    "All spikes are at position 0, which sees only itself: drop_edge cannot change them, and in "
    "its spike rows only the median moves."
)


@dataclass(frozen=True)
class SpikeSinkDecouplingConfig(ExperimentConfig):
    """Settings.

    Attributes:
        scale_free: Least size over the median of a massive entry where none meets the absolute
            criterion (`massive_activations`).
        compare: Other models, by shipped name or as `load` takes them, to set beside this one.
    """

    scale_free: float = 50.0
    compare: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a threshold that half of all entries meet."""
        super().__post_init__()
        MassiveActivationsConfig(scale_free=self.scale_free)


@experiment(
    paper="2603.05498",
    question="Do sinks need spikes, and spikes sinks?",
    summary=summary,
    plot=lambda result: plot(result),
)
def spike_sink_decoupling(
    model: HookedModel, prompts: Prompts, config: SpikeSinkDecouplingConfig
) -> ExperimentResult:
    """Clamp spikes, drop sink edges, and both.

    Raises:
        SinklensError: The model is not causal or norms the stream itself, or a condition was asked
            for and there is no spike or no sink to take away.
    """
    capabilities = check(model)
    if not capabilities.causal:
        raise SinklensError(
            "spike_sink_decoupling needs a causal model; on "
            f"{capabilities.architecture} use sink_profile and sink_head_ablation"
        )
    compared, other_models = matched_models(model, prompts, config, config.compare)
    criteria = MassiveActivationsConfig(scale_free=config.scale_free).criteria
    spikes = find_spikes(model, prompts, config, criteria)
    reader = StreamEntries(model, spikes.layer, spikes.criteria[spikes.criterion])
    sinks, gaps = SinkScores(model), SinkGaps(model, prompts, config)
    probes: list[Probe] = [reader, sinks, *gaps.probes]
    evaluate(model, prompts, [], [], probes=probes, **config.for_engine())
    entries, mass = reader.compute(), sinks.compute().mass.mean(0)
    heads = [(layer, head) for layer, head in (mass > SINK_MASS).nonzero().tolist()]
    left_out = _left_out(model, config, entries, heads)
    conditions = [c for c in config.conditions or CONDITIONS if c not in left_out]
    edits = _Edits(model, prompts, config, spikes, entries, heads)
    nature, arrays, forwards, no_form = spike_nature(model, prompts, config, spikes, entries)
    if no_form:
        left_out["quadratic_form"] = no_form
    bound = bool(len(entries.massive.position)) and not bool(entries.massive.position.any())
    metrics, missing = choose_metrics(config, DEFAULT_METRICS, causal=True)
    if not config.metrics:
        metrics += _own_metrics(spikes)
    clamped = None
    if set(conditions) == set(CONDITIONS):
        clamped = edits.clamped_after(metrics)
        forwards += 0 if clamped is None else 1 + len(edits.positions)
    return run_comparisons(
        "spike_sink_decoupling",
        model,
        prompts,
        config,
        [edits.comparison(condition) for condition in conditions],
        metrics,
        left_out={**left_out, **missing},
        measured=[*gaps.rows(heads), *nature, *compared],
        derive=partial(interaction_rows, seed=config.seed, clamped=clamped),
        notes=[
            "Under drop_edge the sink figures fall by construction, under clamp_spikes the spike. "
            "The interaction row sets the effect of both against the sum of the two effects; its "
            "control does so with the effects of the controls, at the queries that theirs counts.",
            OURS,
            *([BOUND] if bound and "drop_edge" in conditions else []),
        ]
        if conditions
        else [],
        draws={
            "layer": spikes.layer,
            "spikes": spikes.described(),
            "heads": [head_label(head) for head in heads],
            "control_positions": edits.positions,
            "gap_positions": gaps.places,
            "control_channels": edits.spikes.channels_drawn(),
            "spikes_at_position0_only": bound,
            "compared": other_models,
        },
        arrays={"sink_mass": Array(mass, ("layer", "head")), **arrays},
        extra_forwards=spike_search.FORWARDS + 1 + forwards,
    )


def _left_out(
    model: HookedModel,
    config: SpikeSinkDecouplingConfig,
    entries: EntryValues,
    heads: Sequence[Head],
) -> dict[str, str]:
    """The conditions that cannot be run, with reasons.

    Raises:
        SinklensError: One of them was asked for.
    """
    reasons = {}
    if not len(entries.massive.prompt):
        reasons["clamp_spikes"] = (
            "no entry is massive behind the step-up; a lower scale_free= asks for less"
        )
    if not heads:
        reasons["drop_edge"] = f"no head has a sink mass above {SINK_MASS} on these prompts"
    else:
        try:
            check(model).require("pattern", "drop_edge", "massive_activations clamps spikes there.")
        except SinklensError as error:
            reasons["drop_edge"] = str(error)
    if reasons:
        reasons["both"] = "; ".join(reasons.values())
    refused = [condition for condition in config.conditions if condition in reasons]
    if refused:
        raise SinklensError(f"{refused[0]}: {reasons[refused[0]]}")
    unknown = [condition for condition in config.conditions if condition not in CONDITIONS]
    if unknown:
        raise SinklensError(f"unknown condition {unknown[0]!r}; there is {', '.join(CONDITIONS)}")
    return reasons


class _Edits:
    """Makes the edits of a run and their controls, each once."""

    def __init__(
        self,
        model: HookedModel,
        prompts: Prompts,
        config: ExperimentConfig,
        spikes: Spikes,
        entries: EntryValues,
        heads: Sequence[Head],
    ) -> None:
        self._model, self._config, self._layer = model, config, spikes.layer
        self._prompts = prompts
        self._entries, self._heads = entries.massive, list(heads)
        values = self._entries.value.sign() * entries.median[self._entries.prompt]
        self._values, self._change = values, values - self._entries.value
        self.spikes = SpikeEdits(model, config, spikes.layer, entries)
        self._why_not = crowded(entries) or NO_POSITION
        self.positions = control_positions(
            prompts.length, config.draws, config.seed, config.positions
        )
        self._made: dict[str, Comparison] = {}

    def comparison(self, condition: str) -> Comparison:
        """An edit and its control."""
        if condition not in self._made:
            make = {"clamp_spikes": self._clamp, "drop_edge": self._drop, "both": self._both}
            self._made[condition] = make[condition]()
        return self._made[condition]

    def clamped_after(self, metrics: Sequence[Metric]) -> Float[np.ndarray, "metric prompt"] | None:
        """What clamping's control does to the predictions that the control of both counts.

        The control itself counts all, as its treatment does; None where both have no control.
        """
        pairs = zip(self.comparison("clamp_spikes").control, self.positions, strict=False)
        edits = [replace(edit, position=place) for edit, place in pairs]
        if not edits:
            return None
        found = evaluate(
            self._model, self._prompts, edits, list(metrics), **self._config.for_engine()
        )
        return np.asarray((found.values - found.baselines).double().mean(0))

    def _clamp(self) -> Comparison:
        clamp = replace_entries(
            self._model, self._layer, self._entries, self._values, name="clamp_spikes"
        )
        control = self.spikes.elsewhere("clamp_spikes", self._change, self._config.draws)
        return Comparison("clamp_spikes", [clamp], control, no_control=self._why_not)

    def _drop(self) -> Comparison:
        drop = partial(ablate_heads, self._model, self._heads, "drop_edge")
        control = [drop(position=place, draw=draw) for draw, place in enumerate(self.positions)]
        return Comparison("drop_edge", [drop(position=0)], control)

    def _both(self) -> Comparison:
        one, other = self.comparison("clamp_spikes"), self.comparison("drop_edge")
        # Where one of them has no control, both have none.
        pairs = zip(one.control, other.control, strict=False)
        control = [together("both", *pair) for pair in pairs]
        treatment = together("both", *one.treatment, *other.treatment)
        return Comparison("both", [treatment], control, no_control=self._why_not)


def _own_metrics(spikes: Spikes) -> list[ProbeMetric]:
    """Spike size from the edited layer on, and the mean logit gap."""
    peaks = partial(ResidualPeaks, first=spikes.layer)
    return [
        ProbeMetric("spike", peaks, lambda peaks: peaks.ratio.amax(1), "times the median"),
        ProbeMetric("logit_gap", LogitGaps, lambda gaps: gaps.gap.mean((1, 2)), "nats"),
    ]


def plot(result: ExperimentResult) -> Figure:
    """Spike size and sink mass under each edit."""
    return interaction(result, "spike", "sink_mass", CONDITIONS)
