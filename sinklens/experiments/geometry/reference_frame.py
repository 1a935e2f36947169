"""What frame of reference attention spans: how many anchors, where, and what hangs on them.

Follows 2508.02546; parts, each of which is a condition:

    frame      scores of the attention that keys get, over keys and layers (`functional.frames`;
               ours, since the paper's rule for its three types of frame is unknown)
    graph      star-likeness, Gini, centralisation, Fiedler value and so on of the graph of
               head-averaged attention (`functional.graphs`), over absolute thresholds and
               thresholds c / (number of visible keys), self-loops off
    spectrum   singular values of head-averaged attention
    shares     how much of what queries read comes from the reference points, in hidden-state, value
               and output space (`probes.reference_points`)
    head_kl    KL of heads to their mean when the sink columns are taken away
               (`functional.divergence`), against random sets of as many columns and (rows named
               :nearby) of as many that are no sinks and stand at about the same places; its effect
               is after less before, so the paper's "KL reduction" is minus that. Percentile sinks
               always exist. It acts on attention rows; the model is not run on them.

and, asked for apart, `topology=True` (persistent homology of every layer),
`fisher=True` (squared gradients of the loss by layer and group, `_fisher`) and
`preset=published` (what the published code gives, in rows named so beside the repaired ones,
`_published`).

Every value stands beside uniform attention over the visible keys (`baseline`) and row-permuted
attention (rows of kind `null`; the contrast sets the value against it). The leading figures
(`frame_table.HEADLINES`) stand beside a model of the same configuration with random weights as well
(rows named so); the others, but for head_kl and topology, have curves of it in `arrays`.
Head-averaged attention, one number a prompt, mean over layers. A frame has a name only beside
row-permuted attention: scatter alone makes a distributed one.

Takes as long as 14 plain forwards of the batch (SmolLM2-135M, 16 prompts of 64 tokens, one core);
topology takes 12 more, Fisher traces 7, the published preset less than 1.

It describes attention. That a frame is there does not say that the model needs it; for that,
`bos_replacement` and `sink_head_ablation` take anchors away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...core.errors import UsageError, unknown_name
from ...core.protocol import HookedModel
from ...engine import announce, evaluate
from ...functional.persistence import require_gudhi
from ...models.capabilities import Capabilities, check
from ...models.prompts import Prompts
from ...models.random_weights import RANDOM_WEIGHTS, random_twin
from ...probes.divergences import HeadDivergences
from ...probes.patterns import ATTENTION, MeanPatterns, PatternReader, Reduction
from ...probes.reference_points import ReferenceShares
from ...results.result import ExperimentResult, assemble
from ...runner.config import ExperimentConfig
from ...runner.registry import experiment
from ...stats.effects import with_q_values
from . import _reductions as frame_reductions
from . import _rows as frame_rows
from ._fisher import fisher_rows
from ._published import (
    DIFFERENCE,
    THRESHOLDS,
    PublishedReductions,
    published_reduction,
    published_rows,
)
from ._report import plot, summary
from ._table import Read, Table

PARTS = ("frame", "graph", "spectrum", "shares", "head_kl")
SHORTEST = 4
PRESETS = ("repaired", "published")


@dataclass(frozen=True)
class ReferenceFrameConfig(ExperimentConfig):
    """Settings; `conditions` are the parts, `draws` the row-permuted patterns.

    Attributes:
        thresholds: Absolute thresholds of the graph.
        relative: Thresholds as multiples of uniform attention.
        lead: The multiple whose graph is in the table.
        shown: Absolute thresholds whose star-likeness is in the table.
        self_loops: Whether a query's weight on itself is an edge.
        percentiles: What makes a sink column for `head_kl`.
        column_sets: Random sets of columns, and sets near the sinks; 0 leaves these controls out.
        reference: Mean received attention of a reference point.
        random_weights: Whether to run a model with random weights; None does for models of up to a
            billion parameters.
        centralised: Least score above its null for the frame to be called that.
        distributed: The same for this one.
        bidirectional: The same for this one.
        topology: Whether to compute persistent homology (needs gudhi).
        fisher: Whether to compute squared gradients of the loss.
        preset: `published` adds what the published code gives to the `repaired` rows.
    """

    thresholds: tuple[float, ...] = THRESHOLDS
    relative: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0)
    lead: float = 2.0
    shown: tuple[float, ...] = (0.01, 0.1)
    self_loops: bool = False
    percentiles: tuple[float, ...] = (0.8, 0.9, 0.95)
    column_sets: int = 100
    reference: float = 0.1
    random_weights: bool | None = None
    centralised: float = 0.1
    distributed: float = 0.1
    bidirectional: float = 0.1
    topology: bool = False
    fisher: bool = False
    preset: str = "repaired"

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        super().__post_init__()
        for condition in self.conditions:
            if condition not in PARTS:
                raise unknown_name("condition", condition, PARTS)
        if self.preset not in PRESETS:
            raise unknown_name("preset", self.preset, PRESETS)
        if self.metrics:
            raise UsageError("reference_frame has metrics of its own; choose parts by conditions")
        if self.screen:
            raise UsageError("reference_frame edits nothing, so there is nothing to screen")
        if self.positions is not None:
            raise UsageError("reference_frame counts no predictions, so it takes no positions")
        if self.lead not in self.relative:
            raise UsageError(f"lead={self.lead:g} is none of relative={list(self.relative)}")
        lacking = [one for one in self.shown if one not in self.thresholds]
        if lacking:
            raise UsageError(f"shown={lacking[0]:g} is none of thresholds={list(self.thresholds)}")
        if not self.percentiles or not all(0 < one < 1 for one in self.percentiles):
            raise UsageError("percentiles lie between 0 and 1, such as 0.9; there is at least one")
        if not 0 < self.reference < 1:
            raise UsageError("reference lies between 0 and 1: it is a mean share of attention")
        if not all(one > 0 for one in (*self.thresholds, *self.relative)):
            raise UsageError("thresholds and relative are positive")
        if self.column_sets < 0:
            raise UsageError("column_sets is 0 or more")
        if self.random_weights and self.conditions == ("head_kl",):
            raise UsageError("random_weights has nothing to be set beside in head_kl alone")

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts to run."""
        return self.conditions or PARTS

    @property
    def threshold_names(self) -> list[str]:
        """The names of the graph's thresholds, in order."""
        return frame_reductions.threshold_names(self.thresholds, self.relative)


@experiment(
    paper="2508.02546",
    question="What frame of reference does attention span: one anchor, several, or both ends?",
    summary=summary,
    plot=plot,
)
def reference_frame(
    model: HookedModel, prompts: Prompts, config: ReferenceFrameConfig
) -> ExperimentResult:
    """Read the attention of a clean run and its nulls.

    Raises:
        SinklensError: The model has no pattern to read, or something asked for cannot be had here.
        UsageError: The prompts are too short.
    """
    capabilities = check(model)
    if prompts.length < SHORTEST:
        raise UsageError(f"reference_frame needs prompts of at least {SHORTEST} tokens")
    if config.topology:
        require_gudhi()
    read = _Run(model, prompts, config, capabilities)
    table = Table(config.seed)
    read.into(table)
    settings = {
        **config.recorded(),
        "left_out": read.left_out,
        "notes": read.notes,
        "thresholds_by_name": config.threshold_names,
        "draws_made": {"null_rows": list(table.by_draw), **read.made},
    }
    arrays = table.arrays | dict(frame_rows.draw_array(table))
    return assemble(
        "reference_frame",
        model,
        prompts,
        with_q_values(table.rows),
        arrays=arrays,
        settings=settings,
        forwards=read.forwards,
        shortcuts=read.shortcuts,
    )


class _Run:
    """Runs the probes that the parts need, on the model and on its random twin."""

    def __init__(
        self,
        model: HookedModel,
        prompts: Prompts,
        config: ReferenceFrameConfig,
        capabilities: Capabilities,
    ) -> None:
        self._model, self._prompts, self._config = model, prompts, config
        self._capabilities = capabilities
        self.left_out: dict[str, str] = {}
        self.notes: list[str] = []
        self.made: dict[str, Any] = {}
        self.forwards = 0
        self.shortcuts: dict[str, bool] = {}

    def into(self, table: Table) -> None:
        """Run everything and fill the table."""
        config, parts = self._config, self._config.parts
        random = self._random() if set(parts) != {"head_kl"} else None
        announce("reference_frame", 1 + (random is not None), self._prompts, config.progress)
        reader = self._reader(self._model, draws=config.draws)
        patterns = MeanPatterns(self._model, reader, self._reductions())
        sets = config.column_sets if config.draws else 0
        divergences = HeadDivergences(
            self._model, reader, config.percentiles, sets=sets, seed=config.seed
        )
        shares = ReferenceShares(self._model, reader, threshold=config.reference)
        probes = {"shares": shares, "head_kl": divergences}
        chosen = [patterns, *(probe for part, probe in probes.items() if part in parts)]
        self._evaluate(self._model, chosen)
        read = patterns.compute()
        supplied = shares.compute() if "shares" in parts else {}
        if random is not None:
            self._read_twin(random, read, supplied)
        if "frame" in parts:
            frame_rows.frame_rows(table, read, self._groups())
        if "graph" in parts:
            self._graph_rows(table, read)
        if "spectrum" in parts:
            frame_rows.spectrum_rows(table, read)
        if config.topology:
            frame_rows.topology_rows(table, read)
        if "shares" in parts:
            frame_rows.share_rows(table, supplied)
        if "head_kl" in parts:
            frame_rows.divergence_rows(table, divergences.compute(), config.percentiles, sets)
        if config.preset == "published":
            self._published(table)
        if config.fisher:
            fisher_rows(
                table,
                self._model,
                self._prompts,
                causal=self._capabilities.causal,
                seed=config.seed,
                progress=config.progress,
            )
        self._remarks()

    def _reader(self, model: HookedModel, *, draws: int) -> PatternReader:
        return PatternReader(
            model, self._capabilities, self._prompts.tokens, draws=draws, seed=self._config.seed
        )

    def _evaluate(self, model: HookedModel, probes: Sequence[Any]) -> None:
        run = evaluate(model, self._prompts, [], [], probes=probes, **self._config.for_engine())
        self.forwards += run.forwards
        self.shortcuts = self.shortcuts or run.shortcuts

    def _reductions(self) -> list[Reduction]:
        """What to make of every head-averaged pattern."""
        config = self._config
        made: dict[str, Reduction] = {
            "frame": frame_reductions.columns,
            "graph": frame_reductions.graph(
                config.thresholds, config.relative, self_loops=config.self_loops
            ),
            "spectrum": frame_reductions.spectrum,
        }
        chosen = [made[part] for part in made if part in config.parts]
        return [*chosen, frame_reductions.topology] if config.topology else chosen

    def _random(self) -> HookedModel | None:
        """A model with random weights, unless it is not wanted or cannot be made."""
        random, said = random_twin(self._model, self._config.random_weights, self._config.seed)
        if random is None:
            if said:
                self.left_out["random_weights"] = said
            return None
        self.made["random_weights"] = said
        return random

    def _read_twin(self, random: HookedModel, read: Read, supplied: dict[str, Any]) -> None:
        """Add what a model with random weights gives to what was read of the model."""
        reader = self._reader(random, draws=0)
        # Topology takes long, and row-permuted attention is the null that it needs.
        reductions = [one for one in self._reductions() if one is not frame_reductions.topology]
        patterns = MeanPatterns(random, reader, reductions, uniform=False)
        shares = ReferenceShares(random, reader, threshold=self._config.reference)
        self._evaluate(random, [patterns, *([shares] if supplied else [])])
        for (_, name), values in patterns.compute().items():
            read[RANDOM_WEIGHTS, name] = values
        if supplied:
            supplied[RANDOM_WEIGHTS] = shares.compute()[ATTENTION]

    def _groups(self) -> list[tuple[str, list[int]]]:
        """All layers, and where windows are shorter than the prompts, each kind apart."""
        layers = list(range(self._capabilities.n_layers))
        windows = self._capabilities.windows
        short = [i for i in layers if (windows[i] or self._prompts.length) < self._prompts.length]
        full = [i for i in layers if i not in short]
        kinds = [(":full", full), (":window", short)] if short and full else []
        return [("", layers), *kinds]

    def _graph_rows(self, table: Table, read: Read) -> None:
        lead = f"above_{self._config.lead:g}x_uniform"
        shown = [f"above_{one:g}" for one in self._config.shown]
        frame_rows.graph_rows(table, read, self._config.threshold_names, lead, shown)

    def _published(self, table: Table) -> None:
        """What the published code gives, from a run of its own."""
        reader = self._reader(self._model, draws=0)
        reduction = partial(published_reduction, causal=self._capabilities.causal)
        patterns = MeanPatterns(self._model, reader, [reduction])
        reductions = PublishedReductions(self._model, reader)
        self._evaluate(self._model, [patterns, reductions])
        published_rows(table, patterns.compute(), reductions.compute())
        self.notes.append(DIFFERENCE)
        if not self._capabilities.causal:
            self.left_out["published topology and eigenvalues"] = (
                "they have no closed form for a model that sees both ways"
            )

    def _remarks(self) -> None:
        """What a reader of the table has to know."""
        config = self._config
        if config.draws == 0:
            beside = ", contrasts are with random weights" if "random_weights" in self.made else ""
            self.notes.append(f"No row-permuted nulls and no random columns{beside}: draws is 0.")
        else:
            against = []
            if set(config.parts) != {"head_kl"}:
                against.append("row-permuted attention (random_weights: against those)")
            if config.column_sets and "head_kl" in config.parts:
                against.append("for head_kl random columns (:nearby: near the sinks)")
            if against:
                self.notes.append(
                    "baseline: uniform attention over the visible keys; more than control: against "
                    f"{', '.join(against)}."
                )
        if self._capabilities.learned_sinks:
            self.notes.append("This model has learned sinks: attention rows sum to less than 1.")
