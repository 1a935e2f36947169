"""Where absolute position comes from: the causal mask, and the stream that position 0 feeds.

A logit that knows positions by their difference only is a function of i - j. What attention knows
of absolute position beyond that has two sources (2606.06160):

- **causal mask**: log A_ij = s_ij - log Z_i, and Z_i sums over the keys 0 .. i. With g(d) the mean
  logit at offset d, C_i = log(sum over d <= i of exp g(d)). Read: its slope against log(i + 1) (1
  for flat logits), what it adds in R^2 (log A on i - j, against i and j), and the nats that it
  costs a query beside one that sees `window` keys;
- **residual stream**: r_ij = s_ij - g(i - j), averaged over prompts, with g fitted on the very
  pairs that are read. `component` is its mean square (nats^2 a pair, mean over heads, then over
  layers without layer 0), `residual_share` the component over the variance of the mean logits, by
  layer with heads pooled, then the mean. Both are products of different prompts, so that a single
  prompt's content does not count (`probes.logits`).

Everything is read with all keys and without key 0: with it, the component is mostly the sink
column. Ranges of queries: the paper does not say which are early, so 1:8, 1:16, 1:32, 1:64 are
read, and the curve over queries. Then BOS is replaced (`bos_replacement`) and position 0 patched
(`position0_patching`: residual, key, value at `layers`), against the same edit at a position
1 <= p <= a quarter of the shortest range: `removed` is 1 - component after / before, where the
component before is above its null.

Nulls: a function of the offset has share 0 (analytic); `moved` rows read the same prompts with each
one's logits moved along their diagonals (empirical). Controls of what is read: for the mask the
same mean logits in another order of offsets, for heads that read position 0 those that read a later
key, for the first token's fingerprint that of a token at a later position. Intervals: jackknife
over prompts (`position_components`). Not part of any share: a part of r that is constant over a
query's keys cancels in the softmax; `visible_share` leaves it out.

The abstract of 2606.06160 names the components and reports that replacing BOS removes 40 % at early
queries; formulas, replacement and range are not in what we could read. All estimators here are our
reconstruction, and 40 % is a reference, no target.

Takes as long as 51 plain forwards of the batch (SmolLM2-135M, 16 prompts of 64 tokens, one core).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...core.errors import SinklensError, UsageError, unknown_name
from ...core.protocol import HookedModel
from ...engine import announce, evaluate
from ...hooks.matching import control_positions
from ...hooks.position0 import PARTS
from ...models.capabilities import Capabilities, check
from ...models.prompts import Prompts
from ...probes.log_split import LogSplit, SinkReadouts
from ...probes.logits import DiagonalShift
from ...results.old_figures import lines
from ...results.result import ExperimentResult, assemble
from ...runner.config import ExperimentConfig
from ...runner.registry import choose_conditions, experiment
from ...stats.effects import with_q_values
from . import _rows as tables
from ._arrays import arrays
from ._components import FEWEST_PROMPTS, rank_correlation
from ._conditions import compare_edits, is_patch, refusals
from ._edits import KEYS, PairSets, Reader, diagonal_shifts, read_edits
from ._fingerprint import fingerprint, shifted_positions, toeplitz_share
from ._masks import causal_masks
from ._old_patches import DEFAULT_CONDITIONS as BOS_DEFAULTS
from ._old_patches import RANDOM, parse_condition
from ._words import notes, summary

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

DEFAULT_CONDITIONS = (*BOS_DEFAULTS, *(f"other_token:{part}" for part in PARTS))
SPLIT_ERROR = {torch.float32: 1e-3, torch.float64: 1e-3}
HALF_PRECISION_ERROR = 0.05
FEWEST_QUERIES = 3


@dataclass(frozen=True)
class AbsolutePositionConfig(ExperimentConfig):
    """Settings; `conditions` are those of `bos_replacement`, and of `position0_patching` with part.

    Attributes:
        draws: As elsewhere; fewer by default, since every draw is one run for each condition.
        queries: Ranges of queries, as far as the prompts go.
        layers: Where position 0 is patched; empty takes layer 1 and the middle one, not the last.
        window: The window that the causal mask is set against; 0 takes a quarter of the prompt.
        first_tokens: How many first tokens for the fingerprint; 0 leaves it out.
    """

    draws: int = 2
    queries: tuple[str, ...] = ("1:8", "1:16", "1:32", "1:64")
    layers: tuple[int, ...] = ()
    window: int = 0
    first_tokens: int = 6

    def __post_init__(self) -> None:
        """Refuse what means nothing here."""
        super().__post_init__()
        if self.metrics:
            raise UsageError("absolute_position has measures of its own; it takes no metrics")
        if self.screen:
            raise UsageError("absolute_position reads no logits, so there is nothing to screen")
        if self.positions is not None:
            raise UsageError("absolute_position counts no predictions; set queries= (1:8,1:16)")
        if not self.queries:
            raise UsageError("queries needs at least one range, such as 1:8")
        for queries in self.queries:
            parse_queries(queries)
        for condition in self.conditions:
            if is_patch(condition):
                parse_condition(condition)
            elif condition not in BOS_DEFAULTS and not condition.startswith("token:"):
                names = (*BOS_DEFAULTS, "token:<text>", *DEFAULT_CONDITIONS)
                raise unknown_name("condition", condition, names)
        if self.window < 0 or self.first_tokens < 0:
            raise UsageError("window and first_tokens are 0 or more")


def parse_queries(text: str) -> tuple[int, int]:
    """Start and end of a range of queries such as `1:8`.

    Raises:
        UsageError: It is none, it holds query 0, or it is too short.
    """
    start, _, end = text.partition(":")
    if not (start.isdigit() and end.isdigit()):
        raise UsageError(f"queries={text!r} is no range; one looks like 1:8")
    if int(start) < 1 or int(end) - int(start) < FEWEST_QUERIES:
        raise UsageError(
            f"queries={text!r}: a range starts at 1 or later (query 0 sees only itself) and holds "
            f"at least {FEWEST_QUERIES} queries"
        )
    return int(start), int(end)


@experiment(
    paper="2606.06160",
    question="What tells attention the absolute position: the mask, or what position 0 feeds in?",
    summary=summary,
    plot=lambda result: plot(result),
)
def absolute_position(
    model: HookedModel, prompts: Prompts, config: AbsolutePositionConfig
) -> ExperimentResult:
    """Split attention, read both components, and edit position 0.

    Raises:
        SinklensError: The model is not causal, its attention scores cannot be read, or it has a
            single layer.
        UsageError: There are fewer than three prompts, or they are too short for every range.
    """
    capabilities = check(model)
    _require(capabilities, prompts)
    windows = [min(w or prompts.length, prompts.length) for w in capabilities.windows]
    ranges = _ranges(config, prompts.length)
    positions = _control_positions(config, ranges)
    sets = PairSets(ranges, positions)
    conditions, left_out = choose_conditions(config, DEFAULT_CONDITIONS, refusals(model, prompts))
    layers = _layers(config, capabilities.n_layers)
    announce("absolute_position", _forwards(config, conditions, layers), prompts, config.progress)

    splitting = LogSplit(model)
    reading = {(0, 0): SinkReadouts(model)}
    for place in positions:
        reading |= {(key, place): SinkReadouts(model, key, place) for key in (place, 0)}
    probes: list[Any] = [splitting, *reading.values()]
    evaluate(model, prompts, [], [], probes=probes, **config.for_engine())
    split = splitting.compute()
    readouts = {at: probe.compute() for at, probe in reading.items()}
    pairs = [(place, readouts[place, place], readouts[0, place]) for place in positions]
    error = float(split.error.max())
    if not error <= SPLIT_ERROR.get(model.cfg.dtype, HALF_PRECISION_ERROR):
        raise SinklensError(
            f"on {capabilities.architecture} log A differs from score - log Z by {error:.2g} nats: "
            "the scores that hook_attn_scores shows are not what the softmax gets. sink_profile "
            "and bos_replacement read the pattern alone"
        )
    reader = Reader(model, prompts, config, sets, windows)
    values, clean = reader.clean()
    steps = diagonal_shifts(prompts, config.seed, sets.ranges[-1][1])
    moved = {
        keys: reader.clean(DiagonalShift(steps, first_key))[1]
        for first_key, keys in enumerate(KEYS)
    }
    masks, shuffled = causal_masks(values.offsets, windows, split.sink_logit, config)
    comparisons, drawn, forwards = compare_edits(
        model, prompts, config, conditions, layers, positions
    )
    runs = read_edits(reader, comparisons, config.progress)
    told = None
    if config.first_tokens:
        queries = sorted({sets.ranges[0][1] - 1, sets.ranges[-1][1] - 1})
        control = positions[0] if positions else None
        told = fingerprint(model, prompts, config, config.first_tokens, queries, control)
        forwards += told.forwards
        drawn["first_tokens"] = told.tokens
    window = min(config.window or max(2, prompts.length // 4), sets.ranges[-1][1] - 1)
    checks = {
        "split_error": error,
        "toeplitz_share": toeplitz_share(sets, masks["all_keys"].offsets[0]),
        "shifted_positions": shifted_positions(model, prompts, windows),
        "position0_change": None if told is None else told.position0_change,
    }
    settings = {
        **config.recorded(),
        "left_out": {**left_out, **tables.nothing_to_remove(runs, sets, clean, moved)},
        "notes": notes(capabilities, windows, prompts, config.draws, positions, checks),
        "footnotes": tables.footnotes(conditions),
        "checks": checks,
        "ranges": sets.labels,
        "mask_window": window,
        "rank_correlation": {
            keys: rank_correlation(clean.shares(sets.number(sets.labels[-1], keys)))
            for keys in KEYS
        },
        "compared": [tables.name(one) for one in runs],
        "draws_made": {**drawn, "control_positions": positions, "layers": layers},
    }
    rows = [
        *tables.shares(sets, clean, moved, config.seed),
        *tables.mask(masks, shuffled, clean, sets, window, config.seed),
        *tables.heads(readouts[0, 0], pairs, prompts.length, windows, config.seed),
        *([] if told is None else tables.first_token(told, config.seed)),
        *tables.edits(runs, sets, clean, moved, config.seed),
    ]
    return assemble(
        "absolute_position",
        model,
        prompts,
        with_q_values(rows),
        arrays=arrays(sets, clean, runs, masks, readouts[0, 0], told),
        settings=settings,
        fired=reader.fired,
        forwards=1 + reader.forwards + forwards,
    )


def _require(capabilities: Capabilities, prompts: Prompts) -> None:
    """Refuse models and prompts that the measure has no meaning for."""
    what = f"absolute_position on {capabilities.architecture}"
    if not capabilities.causal:
        raise SinklensError(
            f"{what}: it needs a causal model, since without a causal mask there is no component "
            "of it and position 0 sees all tokens; use sink_profile and bos_replacement"
        )
    if not capabilities.edits["scores"]:
        raise SinklensError(
            f"{what}: it needs attn.hook_attn_scores to hold the scores that the softmax gets; "
            "here TransformerLens leaves attention to the model underneath and the hook holds "
            "something else. bos_replacement and position0_patching do the same edits and read "
            "loss, KL and sink mass"
        )
    if capabilities.n_layers < 2:
        raise SinklensError(
            f"{what}: it needs at least two layers, since in layer 0 nothing has been fed into the "
            "stream yet"
        )
    if len(prompts) < FEWEST_PROMPTS:
        raise UsageError(
            f"absolute_position averages over prompts and takes products of different ones: it "
            f"needs at least {FEWEST_PROMPTS} (16 and more for intervals), not {len(prompts)}"
        )


def _ranges(config: AbsolutePositionConfig, length: int) -> list[tuple[int, int]]:
    """The ranges of queries, as far as the prompts go.

    Raises:
        UsageError: None is left.
    """
    cut = [(start, min(end, length)) for start, end in map(parse_queries, config.queries)]
    left = [one for one in dict.fromkeys(cut) if one[1] - one[0] >= FEWEST_QUERIES]
    if not left:
        raise UsageError(
            f"no range of queries is left in prompts of {length} tokens: one needs at least "
            f"{FEWEST_QUERIES} queries behind query 0; use longer prompts (--length)"
        )
    return left


def _control_positions(
    config: AbsolutePositionConfig, ranges: Sequence[tuple[int, int]]
) -> list[int]:
    """Where controls edit: early enough that every range has queries after it."""
    first_end = min(end for _, end in ranges)
    return control_positions(first_end, config.draws, config.seed)


def _layers(config: AbsolutePositionConfig, n_layers: int) -> list[int]:
    """Where position 0 is patched."""
    # Without key 0 nothing changes but behind the patched layer.
    usual = (min(at, n_layers - 2) for at in (1, n_layers // 2))
    layers = sorted(set(config.layers or usual))
    wrong = [layer for layer in layers if not 0 <= layer < n_layers]
    if wrong:
        raise UsageError(f"there is no layer {wrong[0]}: this model has {n_layers}, from 0")
    return layers


def _forwards(
    config: AbsolutePositionConfig, conditions: Sequence[str], layers: Sequence[int]
) -> int:
    """About how many forwards a run takes."""
    runs = 0
    for condition in conditions:
        treatments = max(1, config.draws) if condition in RANDOM else 1
        runs += (treatments + config.draws) * (len(layers) if is_patch(condition) else 1)
    return 4 + runs + config.first_tokens * (2 if config.draws else 1)


def plot(result: ExperimentResult) -> Figure:
    """The residual-stream component over queries, without key 0: clean, and with BOS replaced.

    Averaged over ranges that double, since a single query's estimate is mostly noise; unbiased
    estimates of nothing lie on either side of 0, so that the axis is no logarithm.
    """
    arrays, compared = result.arrays, result.settings["compared"]
    curves = {"clean": arrays["curve"].values[1]}
    edited = arrays["curve_after"].values[:, 1]
    names = [name for name in compared if "@" not in name] or compared
    curves |= {name: edited[compared.index(name)] for name in names}
    length = len(curves["clean"])
    ranges = [(2**k, min(2 ** (k + 1), length)) for k in range((length - 1).bit_length())]
    return lines(
        {
            name: torch.stack([curve[start:end].mean() for start, end in ranges])
            for name, curve in curves.items()
        },
        [f"{start}:{end}" for start, end in ranges],
        title=f"Residual-stream component of attention, {result.provenance['model']['name']}",
        x_title="queries",
        y_title="component without key 0 (nats^2 a pair)",
    )
