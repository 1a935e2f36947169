"""Where absolute position comes from: the causal mask, and what position 0 feeds into the stream.

A logit that depends on relative position only is a function of i - j. What attention knows of
absolute position beyond that has two sources (Ruscio et al. 2026, 2606.06160):

- **causal mask**: log A_ij = s_ij - log Z_i, and Z_i sums over the keys 0 .. i. With g(d) the mean
  logit at offset d, C_i = log(sum over d <= i of exp g(d)). Read: its slope against log(i + 1) (1
  for flat logits), what it adds in R^2 (log A on i - j, against i and j), and the nats that it
  costs a query beside one that sees `window` keys (`functional.causal_mask`);
- **residual stream**: r_ij = s_ij - g(i - j), averaged over prompts, with g fitted on the very
  pairs that are read. `component` is its mean square (nats^2 a pair, mean over heads, then over
  layers without layer 0), `residual_share` the component over the variance of the mean logits, by
  layer with heads pooled, then the mean. Both are products of different prompts, so that a single
  prompt's content does not count (`probes.logits`); a part of r that is constant over a query's
  keys cancels in the softmax, and `visible_share` leaves it out. Intervals: jackknife over prompts.

Everything is read with all keys and without key 0: with it, the component is mostly the sink
column. The paper does not say which queries are early, so several ranges are read.

The abstract of Ruscio et al. 2026 (2606.06160) names the components and reports that replacing BOS
removes 40 % at early queries; formulas, replacement and range are not in what we could read. All
estimators here are our reconstruction, and 40 % is a reference, no target.

Takes as long as 51 plain forwards of the batch (SmolLM2-135M, 16 prompts of 64 tokens, one core).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...comparisons import bos, position0
from ...core.errors import UsageError
from ...hooks.intervention import one_per_run
from ...hooks.matching import control_positions
from ...hooks.position0 import PARTS
from ...probes.log_split import LogSplit, SinkReadouts
from ...results.estimates import Measure, proportion
from ...results.figures import Forest, Stack
from ...results.record import Record
from ...runner.compare import in_order, without_control
from ...runner.config import ExperimentConfig, setting
from ...runner.needs import (
    ATTENTION_EVERYWHERE,
    CAUSAL,
    EQUAL_LENGTHS,
    READABLE_SCORES,
    at_least_layers,
    at_least_prompts,
)
from ...runner.registry import experiment
from ...runner.run import Run
from ._checks import in_words, require_split, shifted_positions, toeplitz_share
from ._components import CleanRun, add_shares, by_depth, not_explained
from ._edits import edits_of_position0, read_edits, refusals
from ._fingerprint import add_fingerprint, fingerprint_forwards, identified
from ._mask import add_mask
from ._pairs import KEYS, PairSets, parse_queries, ranges_within
from ._reader import Reader, diagonal_shift
from ._reading_heads import add_reading_heads
from ._removed import add_removed, patching, replacing_bos

BOS_DEFAULTS = tuple(name for name in bos.CONDITIONS if "*" not in name)


@dataclass(frozen=True)
class AbsolutePositionConfig(ExperimentConfig):
    """Settings; `conditions` are those of `bos_replacement`, and of `position0_patching` with part.

    Attributes:
        draws: As elsewhere; fewer by default, since every draw is one run for each condition.
        queries: Ranges of queries, as far as the prompts go; there are no metrics whose
            predictions `positions` could choose.
        layers: Where position 0 is patched; empty takes layer 1 and the middle one, not the last.
        window: The window that the causal mask is set against; 0 takes a quarter of the prompt.
        first_tokens: How many first tokens for the fingerprint; 0 leaves it out.
    """

    draws: int = setting(2, least=0)
    queries: tuple[str, ...] = ("1:8", "1:16", "1:32", "1:64")
    layers: tuple[int, ...] = ()
    window: int = setting(0, least=0)
    first_tokens: int = setting(6, least=0)

    def __post_init__(self) -> None:
        """Refuse ranges of queries that mean nothing."""
        super().__post_init__()
        if not self.queries:
            raise UsageError("queries needs at least one range, such as 1:8")
        for queries in self.queries:
            parse_queries(queries)


MEASURES = {
    "residual_share": Measure("share of the variance", "relative position only", ".0%"),
    "visible_share": Measure("share of the variance", "relative position only", ".0%"),
    "linear_share": Measure("share of the variance", "relative position only", ".0%"),
    "depth_trend": Measure("share, first to last", "no trend", "+.0%"),
    "causal_slope": Measure("nats per log of visible keys", "flat logits", ".2f"),
    "causal_r2": Measure("share of the variance", "flat logits", ".0%"),
    "window_kl": Measure("nats", "flat logits", ".2f"),
    "causal_share": Measure("share of both components", "flat logits", ".0%"),
    "sink_reading_heads": proportion("share of heads", "uniform attention", ".0%"),
    "sink_reading_heads/readout>0.3": proportion(
        "share of heads", "uniform attention over unrelated values", ".0%"
    ),
    "fingerprint": Measure("ratio"),
    "fingerprint/nearest_centroid": proportion("share of first tokens", "chance", ".0%"),
    "position0_cosine": Measure("cosine", "different prompts at the last query", ".2f"),
    **{f"removed_{keys}": Measure("share of the component", form=".0%") for keys in KEYS},
    **{f"component_{keys}": Measure("nats^2", "the clean run") for keys in KEYS},
}


SAYS = (
    not_explained,
    "Causal mask, without key 0: the slope of log Z is {causal_slope/without_key0}. The KL "
    "divergence from its attention over the last {mask_window} keys to that over all is "
    "{window_kl/without_key0}. The causal mask makes up {causal_share/without_key0}.",
    by_depth,
    replacing_bos,
    patching,
    "Heads that give position 0 a weight above 0.3 in a prompt: {sink_reading_heads/weight>0.3}. "
    "Heads in which what position 0 brings in is more than 0.3 of what they write: "
    "{sink_reading_heads/readout>0.3}.",
    identified,
)


def sources_and_removal(result: Record) -> Stack:
    """Both components beside their nulls, and what edits of position 0 remove of the one there is.

    Without key 0 there often is none, and then nothing that could be removed of it.
    """
    first = result.arrays["removed"].labels("queries")[0]
    removed = "removed_without_key0|removed_all_keys|component_all_keys"
    return Stack(
        (Forest(("residual_share", "causal_share")), Forest((removed,), queries=first)),
        f"Absolute position: two sources, and what is removed at queries {first}",
    )


@experiment(
    paper="Ruscio et al. 2026 (2606.06160)",
    question="What tells attention the absolute position: the mask, or what position 0 feeds in?",
    needs=(
        ATTENTION_EVERYWHERE,
        EQUAL_LENGTHS,
        CAUSAL.otherwise("Use sink_profile and bos_replacement."),
        READABLE_SCORES.otherwise(
            "There TransformerLens leaves attention to the model underneath; position0_patching "
            "makes the same edits and reads loss, KL and sink mass."
        ),
        at_least_layers(2, "since in layer 0 nothing has been fed into the residual stream yet"),
        at_least_prompts(3, "since it takes products of different ones and leaves each out once"),
    ),
    conditions=(*bos.CONDITIONS, *position0.CONDITIONS),
    defaults=(*BOS_DEFAULTS, *(f"other_token:{part}" for part in PARTS)),
    measures=MEASURES,
    says=SAYS,
    figure=sources_and_removal,
    smallest={
        "draws": 1,
        "conditions": ("mean", "zero:key"),
        "queries": ("1:8",),
        "first_tokens": 2,
    },
)
def absolute_position(run: Run[AbsolutePositionConfig]) -> None:
    """Split attention, read both components, and edit position 0.

    Raises:
        SinklensError: The model is not causal, its attention scores cannot be read, or it has a
            single layer.
        UsageError: There are fewer than three prompts, or they are too short for every range.
    """
    # What is edited and read. Controls edit a later position, early enough that every range of
    # queries has some after it.
    config, prompts, seed = run.config, run.prompts, run.config.seed
    ranges = ranges_within(config.queries, prompts.length)
    positions = control_positions(min(end for _, end in ranges), config.draws, seed)
    pairs = PairSets(ranges, positions)
    run.refuse(refusals(run))
    comparisons = edits_of_position0(run, patched_layers(run), positions)
    edits = len(one_per_run(in_order(comparisons)))
    queries = sorted({int(label.split(":")[1]) - 1 for label in (pairs.first, pairs.last)})
    reader = Reader(run, pairs)
    first_tokens = fingerprint_forwards(run, queries) * (2 if positions else 1)
    run.announce(run.batches() + reader.forwards * (len(KEYS) + 1 + edits) + first_tokens)

    # The clean run: attention split into scores and log Z, what heads read at position 0, and at
    # each later key with position 0 at the same queries beside it.
    keys_read = [(0, 0), *((key, place) for place in positions for key in (place, 0))]
    gated = run.capabilities.gate("what heads read at position 0")
    readouts = [] if gated else [SinkReadouts(run.model, key, after=p) for key, p in keys_read]
    split, *at_keys = run.read(LogSplit(run.model), *readouts)
    split_error = require_split(run, split)

    # The residual-stream component, beside the null: logits shifted along their diagonals.
    shifts = {keys: diagonal_shift(prompts, keys, pairs.size, seed) for keys in KEYS}
    shifted = {keys: reader.clean(shift) for keys, shift in shifts.items()}
    clean = CleanRun(pairs, reader.clean(), shifted)
    add_shares(run, clean)

    # The causal-mask component, beside flat logits and its control, shuffled offsets.
    window = min(config.window or max(2, prompts.length // 4), pairs.size - 1)
    run.facts(mask_window=window)
    add_mask(run, clean, reader.windows, split.sink_logit, window)

    # Heads that read position 0, beside uniform attention and their control, a later key.
    if gated:
        run.note(f"Heads that read position 0 are left out: {gated}.")
    else:
        at_position0, *at_later = at_keys
        add_reading_heads(run, at_position0, positions, at_later[::2], at_later[1::2])

    # What later queries know of the first token, beside chance and its control, a later position.
    position0_change = None
    if config.first_tokens:
        position0_change = add_fingerprint(run, queries, positions[0] if positions else None)

    # What edits of position 0 remove of the residual-stream component, beside the clean run and
    # their control, the same edits at a later position.
    add_removed(run, clean, read_edits(reader, comparisons))

    checks = {
        "split_error": split_error,
        "toeplitz_share": toeplitz_share(pairs, clean.components.offsets[0, ..., 0]),
        "shifted_positions": shifted_positions(run.model, prompts, reader.windows),
        "position0_change": position0_change,
    }
    run.facts(checks=checks)
    run.note(in_words(checks), *limits(run, window))
    if config.draws:
        run.note(*without_control(comparisons))


def patched_layers(run: Run[AbsolutePositionConfig]) -> list[int]:
    """Where position 0 is patched.

    Raises:
        UsageError: There is no such layer.
    """
    # Without key 0 nothing changes but behind the patched layer, so not in the last.
    n_layers = run.capabilities.n_layers
    usual = (min(at, n_layers - 2) for at in (1, n_layers // 2))
    return sorted({*run.capabilities.chosen_layers(run.config.layers or tuple(usual))})


def limits(run: Run[AbsolutePositionConfig], window: int) -> Iterator[str]:
    """What a reader of the table has to know."""
    visible = run.capabilities.visible_keys(run.prompts.length)
    short = {layer: keys for layer, keys in enumerate(visible) if keys is not None}
    if short:
        yield (
            f"Layers {', '.join(map(str, short))} have a window of "
            f"{', '.join(map(str, sorted({*short.values()})))} keys; beyond it key 0 is hidden and "
            "log Z stops growing."
        )
    else:
        yield (
            "No layer of this model has an attention window shorter than the prompts "
            f"({run.prompts.length} tokens)."
        )
    if run.capabilities.learned_sinks:
        yield "This model has learned sinks: their logit is part of log Z."
    yield (
        f"window_kl is against a window of {window} keys. Shares of the variance and of the "
        "component are averages over layers, without layer 0, and what patches remove over those "
        "that they can change; removed is negative where the component grows, and has a control "
        "where later queries have a component above its null too."
    )
    yield (
        "The estimators are a reconstruction: the abstract of Ruscio et al. 2026 (2606.06160) "
        "names the components and no estimator."
    )
