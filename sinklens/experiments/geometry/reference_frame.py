"""What frame of reference attention spans: how many anchors, where, and what hangs on them.

Follows Ruscio et al. 2025 (2508.02546); the parts (`_parts`) are the conditions: `frame`, `graph`,
`spectrum`, `shares` and `head_kl`. Asked for apart: `topology=True` (persistent homology of every
layer), `fisher=True` (squared gradients of the loss by layer and group, `_fisher`) and
`preset=published` (what the published code gives, beside the repaired rows, `_published`).

Every value is of head-averaged attention, one number per prompt, mean over layers, beside uniform,
row-permuted and (headline rows) untrained attention (`_nulls`). `head_kl` acts on attention rows;
the model is not run on them. Its effect is after less before, so the paper's "KL reduction" is
minus that. There always are sink columns of a percentile; a second control takes others nearby.

Takes as long as 14 plain forwards of the batch (SmolLM2-135M, 16 prompts of 64 tokens, one core);
topology takes 12 more, Fisher traces 7, the published preset less than 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...core.errors import UsageError
from ...functional.frames import FRAME_TYPES
from ...functional.persistence import require_gudhi
from ...models.random_weights import RANDOM_WEIGHTS
from ...probes.divergences import HeadDivergences
from ...probes.patterns import ATTENTION, ROW_PERMUTED, UNIFORM, PatternReader
from ...probes.reference_points import SPACES
from ...results.figures import Heatmap, Lines, Stack
from ...results.record import Record
from ...results.wording import null_verdict, phrase
from ...runner.config import ExperimentConfig, setting
from ...runner.needs import EQUAL_LENGTHS, WITH_ATTENTION, at_least_tokens
from ...runner.registry import experiment
from ...runner.run import Run
from . import _fisher, _head_kl, _parts, _published
from ._nulls import RANDOM_UNIFORM, BesideNulls, untrained_model

PARTS = ("frame", "graph", "spectrum", "shares", "head_kl")
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
        centralised: Least score above its row-permuted null for the frame to be called that.
        distributed: The same for this one.
        bidirectional: The same for this one.
        topology: Whether to compute persistent homology (needs gudhi).
        fisher: Whether to compute squared gradients of the loss.
        preset: `published` adds what the published code gives to the `repaired` rows.
    """

    thresholds: tuple[float, ...] = setting(_published.THRESHOLDS, above=0)
    relative: tuple[float, ...] = setting((1.0, 2.0, 5.0, 10.0), above=0)
    lead: float = 2.0
    shown: tuple[float, ...] = (0.01, 0.1)
    self_loops: bool = False
    percentiles: tuple[float, ...] = setting((0.8, 0.9, 0.95), above=0, below=1)
    column_sets: int = setting(100, least=0)
    reference: float = setting(0.1, above=0, below=1)
    random_weights: bool | None = None
    centralised: float = 0.1
    distributed: float = 0.1
    bidirectional: float = 0.1
    topology: bool = False
    fisher: bool = False
    preset: str = setting("repaired", choices=PRESETS)

    def __post_init__(self) -> None:
        """Refuse settings that do not go together."""
        super().__post_init__()
        if self.lead not in self.relative:
            raise UsageError(f"lead={self.lead:g} is none of relative={list(self.relative)}")
        for threshold in set(self.shown) - set(self.thresholds):
            raise UsageError(f"shown={threshold:g} is none of thresholds={list(self.thresholds)}")
        if not self.percentiles:
            raise UsageError("percentiles needs at least one, such as 0.9")
        if self.random_weights and self.conditions == ("head_kl",):
            raise UsageError(
                "random_weights=True changes nothing in head_kl alone, whose controls are other "
                "columns; ask for another part too"
            )

    @property
    def headlines(self) -> set[tuple[str, str]]:
        """The metrics and conditions that stand beside random weights."""
        scores = ("largest_column", "effective_anchors", *FRAME_TYPES, "stable_rank")
        return {
            *((score, ATTENTION) for score in scores),
            ("star_likeness", _parts.above_uniform(self.lead)),
            *(("reference_share", space) for space in SPACES),
        }


def frame_label(result: Record) -> str:
    """The type of frame whose score is most above row-permuted attention, if by enough.

    Uniform attention has no scatter, and whatever scatters has a distributed score; so there is no
    label without row-permuted attention. A causal model is never labelled bidirectional: its last
    key is seen by the last query alone.
    """
    labels = set(FRAME_TYPES) - ({"bidirectional"} if result.findings.get("causal") else set())
    contrasts = [
        row
        for row in result.effects
        if (row.kind, row.against, row.condition) == ("contrast", ROW_PERMUTED, ATTENTION)
        and row.metric in labels
    ]
    if not contrasts:
        return "not classified, for lack of row-permuted attention (draws is 0)"
    if any(row.ci_low is None for row in contrasts):
        return "not classified, since a single prompt has no interval"
    enough = [
        row
        for row in contrasts
        if null_verdict(row) == "above" and row.effect >= result.settings[row.metric]
    ]
    if not enough:
        return "none (no score is far enough above its row-permuted null)"
    return max(enough, key=lambda row: row.effect).metric


def frame_scores(result: Record) -> Iterator[str]:
    """The label, and the scores that it follows from."""
    rows = {
        row.metric: row
        for row in result.effects
        if (row.condition, row.against) == (ATTENTION, None) and row.metric in FRAME_TYPES
    }
    if rows:
        scores = "; ".join(f"{name} {phrase(result, rows[name])}" for name in FRAME_TYPES)
        yield f"Frame: {frame_label(result)}. Scores (defined by sinklens): {scores}."


def star_likeness(result: Record) -> Iterator[str]:
    """How much of a star the graph is, at the thresholds that are shown."""
    stars = "; ".join(
        f"at {row.condition.removeprefix('above_').replace('_', ' ')}: {phrase(result, row)}"
        for row in result.effects
        if (row.metric, row.against) == ("star_likeness", None)
        and not row.condition.startswith("published")
    )
    if stars:
        yield f"Star-likeness of the graph, by the threshold of its edges: {stars}."


SAYS = (
    frame_scores,
    "The largest column gets {largest_column/attention}; effective anchors: "
    "{effective_anchors/attention}.",
    "The first token gets {first_share/attention}; the last {last_share/attention}.",
    "The leading key is the same in {stability/attention}.",
    star_likeness,
    "The stable rank of attention is {stable_rank/attention}.",
    "Of what other queries read, reference points supply, by space: {reference_share/*}.",
    _head_kl.without_sinks,
    "Persistence sums: components {persistence0/symmetric}; loops {persistence1/symmetric}.",
    "Fisher trace: {fisher_share/*}.",
    "Fisher trace against depth: {fisher_depth/*}.",
    _published.as_published,
)


@experiment(
    paper="Ruscio et al. 2025 (2508.02546)",
    question="What frame of reference does attention span: one anchor, several, or both ends?",
    needs=(
        WITH_ATTENTION,
        EQUAL_LENGTHS,
        at_least_tokens(4),
    ),
    conditions=PARTS,
    measures={**_parts.MEASURES, **_fisher.MEASURES, **_published.MEASURES},
    says=SAYS,
    figure=Stack(
        (
            Heatmap("columns", "Attention that each key gets", "mean attention", most=None),
            Lines(
                ("largest_column", "largest_column:*"),
                "The largest column, beside its nulls",
                "layer",
                "mean attention received",
                from_zero=True,
                names=("this model", ""),
            ),
        ),
        "Reference frame of attention",
    ),
    draws_controls=False,
    smallest={"draws": 2, "column_sets": 2, "fisher": True, "preset": "published"},
)
def reference_frame(run: Run[ReferenceFrameConfig]) -> None:
    """Reduce the attention of a clean run layer by layer, beside its nulls.

    Raises:
        SinklensError: The model has no pattern to read, or something asked for cannot be had here.
    """
    if reason := run.capabilities.lacking("value") or run.capabilities.gate("shares"):
        run.refuse({"shares": reason})
    config, parts = run.config, run.conditions
    if config.topology:
        require_gudhi()
    predictions = _fisher.inputs_and_labels(run) if config.fisher else None
    reader = PatternReader(run.model, run.capabilities, run.prompts.tokens)
    published = config.preset == "published"
    untrained = untrained_model(run)
    sets = config.column_sets if config.draws and "head_kl" in parts else 0
    forwards = run.batches() * (1 + (untrained is not None) + published)
    run.announce(forwards + _head_kl.random_forwards(run, sets))

    divergences = HeadDivergences(
        run.model, reader, config.percentiles, sets=sets, seed=config.seed
    )
    names = [*parts, "topology"] if config.topology else parts
    beside = [divergences] if "head_kl" in parts else []
    read = _parts.read_attention(run, run.model, names, *beside, draws=config.draws)
    if untrained is not None:
        for name, values in _parts.read_attention(run, untrained, parts).items():
            read[name][RANDOM_WEIGHTS] = values[ATTENTION]
            read[name][RANDOM_UNIFORM] = values[UNIFORM]

    nulls = BesideNulls(run, config.headlines)
    if "frame" in parts:
        _parts.add_frame(run, nulls, read["columns"])
    if "graph" in parts:
        _parts.add_graph(run, nulls, read)
    if "spectrum" in parts:
        _parts.add_spectrum(nulls, read)
    if config.topology:
        _parts.add_topology(nulls, read)
    if "shares" in parts:
        _parts.add_shares(nulls, read["reference_share"])
    if "head_kl" in parts:
        random = _head_kl.random_divergences(run, sets)
        _head_kl.add_divergences(run, divergences.compute(), sets, random)
    if published:
        _published.add_published(run, nulls)
    if predictions is not None:
        _fisher.add_fisher(run, *predictions)
    nulls.keep_draws()

    if set(parts) != {"head_kl"}:
        run.note(
            "The baseline is uniform attention over the visible keys (head_kl: all columns; "
            "stability: keys drawn at random)."
        )
    if "frame" in parts:
        run.note(
            "A column is the mean weight that a key gets from the queries that see it (share of "
            "attention); shares of the columns' sum are of all columns together, in which late "
            "keys, seen by few queries, count as much as early ones."
        )
    run.facts(causal=run.capabilities.causal)
    if run.capabilities.causal and "frame" in parts:
        run.note(
            "bidirectional gives no label here: in a causal model the last key is seen by the last "
            "query alone, whose weight on itself it reflects."
        )
    if config.draws == 0:
        run.note("No row-permuted nulls and no random or nearby columns: draws is 0.")
    if run.capabilities.learned_sinks:
        run.note(
            "This model has learned sinks, which take a part of each attention row: rows sum to "
            "less than 1, and uniform attention here spreads over the keys what the learned sinks "
            "leave. (In sink_profile uniform attention gives a learned sink as much as a key.)"
        )
