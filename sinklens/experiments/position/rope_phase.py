"""Phases of rotary planes: do aligned phases sharpen attention, and does a turn of them matter?

Ruscio and Silvestri 2024 (2410.18067 v1) read rotary positions as waves: phases that are aligned
sharpen attention, shifted ones blur it, and feed-forward blocks add harmonics. Later versions left
that out, and of v1 no formula or number could be read: all here is a reconstruction, to explore.

In plane p the query has q_p and the key k_p as complex numbers, turned. Over all planes of a head

    alignment    Re sum q_p k_p* / sum |q_p| |k_p|, from -1 to 1, of the key with the largest weight
    sharpness    1 - entropy of the row over its maximum
    correlation  Spearman's of the two over queries of a prompt, mean over heads

beside random phases: keys turned by a phase of their own in each plane, which keeps every |q_p| and
|k_p|. The logits are shifted by what that changes, with the slope of log A on Re sum q_p k_p* in
the rows of the head (1 / sqrt(d_head), unless the family scales otherwise). A logit is alignment
times amplitude, so that the correlation is arithmetic as far as random phases have it.

Then the phases of all queries are turned, loss and KL beside the same angles in another order and
with random signs:

    one_token    each plane by its own frequency: every key is one token farther away
    common       every plane by the same angle

Harmonics: the input of every feed-forward block is turned by K angles in the planes of entries i
and i + d / 2, its output is a function of the angle, and `harmonics` is the share of its power
(without the constant) above the first harmonic: 0 for a linear block, whatever is turned. Beside it
planes of random entries. That a block is not linear is all that it can show.

Takes as long as 45 plain forwards of the batch (SmolLM2-135M, 16 prompts of 64 tokens, one core).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core.seeds import content_seed, seeded
from ...hooks.intervention import FwdHooks, Intervention
from ...models.capabilities import hook_name
from ...probes.base import SiteProbe
from ...probes.patterns import PatternReader
from ...results.effect_sentences import Compared
from ...results.estimates import NOT_TESTED, Measure, Reference, Sample
from ...results.figures import Forest, Heatmap, Stack
from ...results.null_sentences import already_of_nulls
from ...results.record import Record
from ...results.wording import portion
from ...runner.compare import Comparison, Control
from ...runner.config import ExperimentConfig, setting
from ...runner.needs import EQUAL_LENGTHS, WITH_ATTENTION, at_least_tokens
from ...runner.registry import experiment
from ...runner.run import Run
from ._harmonics import blocks_with_hooks, forwards_of, with_bar
from ._rotary import PARTS, Planes, require_planes
from ._signals import Extraction, Rows, extraction
from ._spectra import FLOOR, correlation, positional_entropy

CONDITIONS = ("one_token", "common")
RANDOM, OTHER_ENTRIES = "random_phases", "random_entries"
ALIGNED = "alignment_sharpness"
SAME = 0.9
"""Of the correlation: from there on random phases have it."""


@dataclass(frozen=True)
class RopePhaseConfig(ExperimentConfig):
    """Settings; a condition is how the phases of queries are turned.

    Attributes:
        queries: How many rows of each prompt are read at most.
        angle: By how much `common` turns, in radians.
        angles: By how many angles inputs of feed-forward blocks are turned.
    """

    queries: int = setting(32, least=4)
    angle: float = setting(0.785, above=0, most=3.1416)
    angles: int = setting(8, least=4)


class Phases(SiteProbe[dict[str, Tensor]]):
    """Alignment and sharpness of every layer, of attention and with random phases.

    `compute` gives them by name, `[prompt, layer, source, head]`.
    """

    def __init__(
        self, run: Run[Any], planes: Planes, form: Extraction, tokens: Int[Tensor, "prompt pos"]
    ) -> None:
        """Read the layers whose queries are turned."""
        self._turned = ("attn.hook_rot_q", "attn.hook_rot_k")
        super().__init__("pattern", planes.layers, beside=self._turned)
        self._reader = PatternReader(run.model, run.capabilities, tokens)
        self._seeds = [content_seed(row, run.config.seed) for row in tokens.cpu()]
        self._planes, self._form, self._draws = planes, form, run.config.draws

    def compute(self) -> dict[str, Tensor]:
        """By name."""
        found: dict[str, Tensor] = self.stacked()
        return found

    def reduce(self, pattern: Rows, layer: int, /) -> dict[str, Float[Tensor, "batch source head"]]:
        """Of one layer."""
        form, queries = self._form, list(self._form.queries)
        rows = self._reader.checked(pattern, layer)[:, :, queries].cpu().double()
        visible = self._reader.visible(layer)[queries]
        query, key = (as_planes(self.held[name], self._planes) for name in self._turned)
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        query = query[:, :, queries]
        size = (query.abs() @ key.abs().mT).clamp_min(FLOOR)
        own = (query @ key.mH).real
        logits = rows.clamp_min(FLOOR).log()
        slope = slope_within(own, logits, visible)
        made = [aligned(rows, own / size, form)]
        first = self.count[layer]
        for draw in range(self._draws):
            seeds = self._seeds[first : first + len(rows)]
            drawn = [np.random.default_rng([seed, layer, draw]) for seed in seeds]
            phases = np.stack([one.uniform(0, 2 * np.pi, key.shape[1:]) for one in drawn])
            other = (query @ (key * torch.exp(1j * torch.from_numpy(phases))).mH).real
            moved = (logits + slope * (other - own)).masked_fill(~visible, -torch.inf)
            random = moved.softmax(-1) * rows.sum(-1, keepdim=True)
            made.append(aligned(random, other / size, form))
        return {name: torch.stack([one[name] for one in made], 1) for name in made[0]}


def as_planes(turned: Float[Tensor, "batch pos head entry"], planes: Planes) -> Tensor:
    """Queries or keys as complex numbers, `[batch, head, pos, plane]`."""
    entries = turned.detach().cpu().double().transpose(1, 2)
    return torch.complex(entries[..., list(planes.first)], entries[..., list(planes.second)])


def slope_within(of: Rows, logits: Rows, visible: Tensor) -> Float[Tensor, "batch head 1 1"]:
    """Least squares of logits on something within rows, one slope a head."""
    count = visible.sum(-1, keepdim=True)
    sides = []
    for side in (of, logits):
        seen = side.masked_fill(~visible, 0)
        sides.append((seen - seen.sum(-1, keepdim=True) / count).masked_fill(~visible, 0))
    above, below = (sides[0] * sides[1]).sum((-2, -1)), (sides[0] ** 2).sum((-2, -1))
    slope: Tensor = above / below.clamp_min(FLOOR)
    return slope[..., None, None]


def aligned(
    rows: Rows, alignment: Rows, form: Extraction
) -> dict[str, Float[Tensor, "batch head"]]:
    """Alignment with the strongest key, sharpness, and their rank correlation over queries."""
    strongest = rows.argmax(-1, keepdim=True)
    chosen = alignment.gather(-1, strongest)[..., 0]
    sharpness = 1 - positional_entropy(rows) / form.lengths.double().log()
    ranks = [side.argsort(-1).argsort(-1).double() for side in (chosen, sharpness)]
    varies = [side.std(-1) > 1e-6 for side in (chosen, sharpness)]
    found = correlation(*ranks).masked_fill(~(varies[0] & varies[1]), torch.nan)
    return {
        "alignment": chosen.mean(-1),
        "sharpness": sharpness.mean(-1),
        ALIGNED: found,
    }


def turn_planes(
    turned: Float[Tensor, "batch pos head entry"],
    hook: Any,
    *,
    first: list[int],
    second: list[int],
    angles: Float[Tensor, " plane"],
) -> Float[Tensor, "batch pos head entry"]:
    """Turn every plane of all queries by an angle of its own."""
    edited, (one, other) = turned.clone(), (turned[..., first], turned[..., second])
    cos, sin = angles.cos().to(turned), angles.sin().to(turned)
    edited[..., first] = one * cos - other * sin
    edited[..., second] = one * sin + other * cos
    return edited


def phases_in_words(result: Record) -> Iterator[str]:
    """How much of the alignment and of the correlation random phases have too."""
    shares = {
        row.metric: reference.value / row.value
        for row in result.effects
        if row.metric in ("alignment", ALIGNED) and row.against is None and row.value
        for reference, _ in result.references(row)
    }
    if set(shares) == {"alignment", ALIGNED}:
        why = ", which is arithmetic: a logit is alignment times amplitude"
        yield (
            f"Random phases of the same amplitudes give {portion(shares['alignment'])} of that "
            f"alignment and {portion(shares[ALIGNED])} of that correlation"
            f"{why if shares[ALIGNED] >= SAME else ''}."
        )


@experiment(
    paper="Ruscio and Silvestri 2024 (2410.18067)",
    question="Do aligned rotary phases sharpen attention, and does a turn of them matter?",
    needs=(WITH_ATTENTION, EQUAL_LENGTHS, at_least_tokens(12)),
    conditions=CONDITIONS,
    metrics=("loss", "kl", "sink_mass"),
    measures={
        "alignment": Measure("", "phases that cancel", ".2f", lowest=-1.0, highest=1.0),
        "sharpness": Measure("of its maximum", "uniform attention", ".2f", lowest=0.0, highest=1.0),
        ALIGNED: Measure("rho", "unrelated", ".2f", lowest=-1.0, highest=1.0),
        "harmonics": Measure("share of power", "a linear block", ".1%", lowest=0.0, highest=1.0),
    },
    says=(
        "Alignment of a query with its strongest key {alignment/strongest_key}; sharpness of its "
        "row {sharpness/row}.",
        "Rank correlation of alignment and sharpness over queries {alignment_sharpness/queries}.",
        phases_in_words,
        "Above the first harmonic, of the output of feed-forward blocks whose input is turned: "
        "{harmonics/blocks}.",
        already_of_nulls,
        Compared("Phases of queries turned,", "loss", CONDITIONS),
    ),
    figure=Stack(
        (
            Forest((ALIGNED, "alignment", "harmonics")),
            Heatmap(ALIGNED, "Alignment and sharpness, rank correlation", "rho"),
            Forest(("loss|kl",)),
        ),
        "Phases of rotary planes",
    ),
    smallest={"queries": 4, "angles": 4, "null_models": 0},
)
def rope_phase(run: Run[RopePhaseConfig]) -> None:
    """Compare alignment with sharpness, turn phases, and read harmonics.

    Raises:
        SinklensError: No rotary planes are shown, or patterns cannot be read.
    """
    config = run.config
    planes = require_planes(run, "rope_phase")
    causal = run.capabilities.causal
    form = extraction(
        run.prompts.length, config.queries, causal, windows=(), near=0, wavelets=False
    )
    (read,) = run.read(Phases(run, planes, form, run.prompts.tokens))
    blocks = blocks_with_hooks(run)
    later = forwards_of(run) if blocks else 0
    comparisons = _turned(run, planes)
    run.compare(lambda twin: comparisons, later=later)
    for metric, condition in (
        ("alignment", "strongest_key"),
        ("sharpness", "row"),
        (ALIGNED, "queries"),
    ):
        _add(run, metric, condition, read[metric])
    if blocks:
        found = with_bar(run, blocks)
        own, *others = (values.mean(1) for values in found.values())
        beside = [
            Reference(Sample(one), OTHER_ENTRIES, "null", models=NOT_TESTED) for one in others
        ]
        run.add("harmonics", "blocks", Sample(own), *beside)
        run.keep("harmonics", found["entries"].mean(0), "block", block=blocks)
    else:
        run.left_out("harmonics", "no feed-forward block has a hook before and behind it")


def _add(run: Run[Any], metric: str, condition: str, values: Tensor) -> None:
    """The row of a mean over heads and layers, beside random phases."""
    by_head, means = values[:, :, 0].nanmean(0), values.nanmean((1, 3))
    if not bool(torch.isfinite(means).all()):
        run.left_out(f"{metric} of {condition}", "it does not vary over queries")
        return
    draws = run.config.draws
    beside = Sample(means[:, 1:].T, 0.0, draws) if draws else None
    references = [Reference(beside, RANDOM, "null", models=NOT_TESTED)] if beside else []
    run.add(metric, condition, Sample(means[:, 0]), *references)
    if bool(torch.isfinite(by_head).all()):
        run.keep(metric, by_head, "layer head")


def _turned(run: Run[RopePhaseConfig], planes: Planes) -> list[Comparison]:
    """Each condition beside the same angles in another order, with random signs."""
    angles = {
        CONDITIONS[0]: planes.frequency,
        CONDITIONS[1]: torch.full_like(planes.frequency, run.config.angle),
    }
    made = []
    for name in run.conditions:
        drawn = []
        for draw in range(run.config.draws):
            random = seeded(run.config.seed, name, draw)
            order = torch.from_numpy(random.permutation(len(planes)))
            signs = torch.from_numpy(random.choice([-1.0, 1.0], len(planes)))
            drawn.append(_turn(planes, angles[name][order] * signs, f"{name}: {RANDOM}", draw))
        treatment = [_turn(planes, angles[name], name)]
        made.append(Comparison(name, treatment, (Control(RANDOM, drawn),), ""))
    return made


def _turn(planes: Planes, angles: Tensor, name: str, draw: int | None = None) -> Intervention:
    """The queries of all layers turned."""
    turn = partial(turn_planes, first=list(planes.first), second=list(planes.second), angles=angles)
    hooks: FwdHooks = [(hook_name(f"attn.hook_{PARTS[0]}", layer), turn) for layer in planes.layers]
    return Intervention(name, "rotary", planes.layers[0], hooks, draw=draw)
