"""Is what heads read from the sink a constant bias?

Query t of a head adds u_t = A_t0 v_0 W_O from key 0 to the residual stream. Over the queries t >=
`burn_in` of all prompts, by head, averaged over sink heads (sink mass above 0.3) and over others:

    inconstancy  mean |u_t - u| / |u|, with u the mean of u_t over queries and prompts; 0 for a
                 constant. Beside it the same of a random earlier key, at positions 1 to
                 `burn_in` - 1. Where all prompts begin with the same token, v_0 is the same, and
                 what varies is the weight alone; a weight that is nearly 1 is nearly constant
    tag_share    share of the variance of the head's output over queries that lies along v_0
                 (Zhang et al. 2025, 2502.00919, for whom the sink tags tokens by that direction);
                 null: a random direction, 1 / d_head. Beside it the value of that earlier key

Then in sink heads, or those of `heads=`, at positions from 1 on,

    constant      u_t is replaced by its mean over queries and prompts: the weight on key 0 is set
                  to 0, the rest of the row left as it is, and the mean added to the output.
                  Control: the same of a later key
    no_direction  the component of the output along v_0 is removed. Control: a random direction

A bias that is constant costs nothing to replace; that it costs little can also mean that it is
small. The statistic is a proposal that no paper has published; no published value exists.

Takes as long as 34 plain forwards of the batch (SmolLM2-135M, 16 prompts of 64 tokens, one core).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.errors import SinklensError, UsageError
from ...core.labels import Head, head_label, heads_of
from ...core.protocol import HookedModel
from ...core.seeds import seeded
from ...hooks.heads import drop_edge_unnormalised
from ...hooks.intervention import FwdHooks, Intervention
from ...hooks.matching import control_positions
from ...metrics import SINK_MASS
from ...models.capabilities import Capabilities, hook_name
from ...models.prompts import Prompts
from ...models.weights import projection
from ...probes.base import SiteProbe
from ...results.effect_sentences import Compared
from ...results.estimates import NOT_TESTED, Measure, Reference, Sample
from ...results.figures import Forest
from ...results.record import Record
from ...runner.compare import Comparison, Control
from ...runner.config import ExperimentConfig, setting
from ...runner.needs import CAUSAL, EQUAL_LENGTHS, WITH_ATTENTION, at_least_tokens
from ...runner.registry import experiment
from ...runner.run import Run

CONSTANT, NO_DIRECTION = "constant", "no_direction"
EARLIER, LATER, RANDOM = "earlier_key", "later_key", "random_direction"
NO_SINK = f"no head has a sink mass above {SINK_MASS}"
GROUPS = ("sink_heads", "other_heads")


@dataclass(frozen=True)
class BiasConstancyConfig(ExperimentConfig):
    """Settings.

    Attributes:
        burn_in: The first query that counts in the measurements, after the earlier keys.
        heads: Where is intervened: `sink` (sink mass above 0.3), or labels such as `L18H8`.
    """

    burn_in: int = setting(8, least=2)
    heads: tuple[str, ...] = ("sink",)


class Read(NamedTuple):
    """What is kept of a layer: weights on a key, its value, the output of heads."""

    weight: Float[Tensor, "prompt head query"]
    value: Float[Tensor, "prompt head d_head"]


class KeyReads(SiteProbe[Read]):
    """The weights on one key and its value, by layer."""

    def __init__(self, capabilities: Capabilities, key: int) -> None:
        """Read pattern and values of every layer with attention."""
        super().__init__("pattern", capabilities.attention, beside=["value"])
        self._key = key
        self._heads = [capabilities.key_value_head(head) for head in range(capabilities.n_heads)]

    def reduce(self, pattern: Float[Tensor, "batch head query key"], layer: Any, /) -> Read:
        """Of one layer."""
        return Read(pattern[..., self._key].float(), self.held["value"][:, self._key, self._heads])

    def compute(self) -> dict[int, Read]:
        """Of all prompts, by layer."""
        return {layer: self.at(layer) for layer in self.layers}


class Outputs(SiteProbe[Tensor]):
    """The outputs of heads, by layer."""

    def reduce(
        self, z: Float[Tensor, "batch pos head d_head"], layer: Any, /
    ) -> Float[Tensor, "batch head pos d_head"]:
        """All of it."""
        return z.transpose(1, 2)

    def compute(self) -> dict[int, Float[Tensor, "prompt head pos d_head"]]:
        """Of all prompts, by layer."""
        return {layer: self.at(layer) for layer in self.layers}


def inconstancy(
    weight: Float[Tensor, "prompt head query"], written: Float[Tensor, "prompt head d_model"]
) -> Float[Tensor, "prompt head"]:
    """Mean |u_t - u| / |u| of u_t = weight * written; NaN for a head that reads nothing."""
    weight, written = weight.double(), written.double()
    mean = (weight.mean(-1, keepdim=True) * written).mean(0)
    norm, along = written.norm(dim=-1)[..., None], (written * mean).sum(-1)[..., None]
    squares = weight**2 * norm**2 - 2 * weight * along + (mean**2).sum(-1)[:, None]
    distance = squares.clamp_min(0).sqrt().mean(-1)
    share: Tensor = distance / mean.norm(dim=-1)
    return share


def tag_share(
    z: Float[Tensor, "prompt head query d_head"], value: Float[Tensor, "prompt head d_head"]
) -> Float[Tensor, "prompt head"]:
    """Share of the variance over queries along a value; NaN where there is none of either."""
    centred = (z - z.mean(-2, keepdim=True)).double()
    unit = (value / value.norm(dim=-1, keepdim=True)).double()
    along = (centred * unit[:, :, None]).sum(-1)
    share: Tensor = (along**2).sum(-1) / (centred**2).sum((-2, -1))
    return share


def add_bias(
    z: Float[Tensor, "batch pos head d_head"],
    hook: Any,
    *,
    heads: list[int],
    bias: Float[Tensor, "chosen d_head"],
    first: int,
) -> Float[Tensor, "batch pos head d_head"]:
    """Add a constant to the output of heads, from a position on."""
    edited = z.clone()
    edited[:, first:, heads] += bias.to(z)
    return edited


def remove_direction(
    z: Float[Tensor, "batch pos head d_head"],
    hook: Any,
    *,
    heads: list[int],
    unit: Float[Tensor, "chosen d_head"],
) -> Float[Tensor, "batch pos head d_head"]:
    """Remove the component of heads' output along a direction, from position 1 on."""
    edited, unit = z.clone(), unit.to(z)
    part = edited[:, 1:, heads]
    edited[:, 1:, heads] = part - (part * unit).sum(-1, keepdim=True) * unit
    return edited


def edited_heads(result: Record) -> Iterator[str]:
    """In which heads is intervened."""
    heads = result.draws["heads"]
    if any(row.kind == "treatment" for row in result.effects):
        which = f"sink mass above {SINK_MASS}" if result.settings["heads"] == ["sink"] else "given"
        named = f": {', '.join(heads)}" if len(heads) <= 12 else ""
        yield f"{len(heads)} heads are intervened on ({which}){named}."


@experiment(
    paper="Zhang et al. 2025 (2502.00919)",
    question="Is what heads read from the sink a constant bias, or a tag of tokens?",
    needs=(
        WITH_ATTENTION,
        CAUSAL.otherwise("input_dependence reads patterns of bidirectional models."),
        EQUAL_LENGTHS,
        at_least_tokens(4),
    ),
    conditions=(CONSTANT, NO_DIRECTION),
    metrics=("loss", "kl"),
    measures={
        "inconstancy": Measure("share of its mean norm", "a constant", ".0%", lowest=0.0),
        "tag_share": Measure("share of variance", "a random direction", ".1%"),
    },
    says=(
        "What is read from position 0 differs from its mean, by heads: {inconstancy/*}.",
        "Along the value of position 0 varies, of the output, by heads: {tag_share/*}.",
        edited_heads,
        Compared("In these heads, what is read from position 0 made", "loss", (CONSTANT,)),
        Compared("In these heads, the output with", "loss", (NO_DIRECTION,)),
    ),
    figure=Forest(("inconstancy", "tag_share", "loss|kl"), "Is the sink a constant bias?"),
    smallest={"heads": ("L0H0", "L1H1")},
)
def bias_constancy(run: Run[BiasConstancyConfig]) -> None:
    """Measure how constant reads of position 0 are, and replace them by their mean.

    Raises:
        SinklensError: Patterns, values or outputs of heads cannot be read here.
        UsageError: The prompts are shorter than `burn_in` allows, or a head's label is wrong.
    """
    config, capabilities = run.config, run.capabilities
    if run.prompts.length < config.burn_in + 2:
        raise UsageError(
            f"burn_in={config.burn_in} leaves fewer than 2 queries of prompts of "
            f"{run.prompts.length} tokens; use longer prompts (--length) or a smaller burn_in"
        )
    reasons = [capabilities.lacking(site) for site in ("pattern", "value", "z")]
    for reason in (*reasons, capabilities.gate("bias_constancy")):
        if reason:
            raise SinklensError(f"bias_constancy, on {capabilities.architecture}: {reason}")
    keys = seeded(config.seed, "earlier").integers(1, config.burn_in, config.draws).tolist()
    run.drawn(earlier_keys=keys)
    probes = [KeyReads(capabilities, key) for key in (0, *keys)]
    *reads, outputs = run.read(*probes, Outputs("z", capabilities.attention))
    mass = torch.stack([read.weight[..., 1:].mean((0, 2)) for read in reads[0].values()])
    run.keep("sink_mass", mass, "layer head")
    chosen = {GROUPS[0]: mass > SINK_MASS, GROUPS[1]: mass <= SINK_MASS}
    by_key = [_measured(run.model, read, outputs, config.burn_in) for read in reads]
    for metric in ("inconstancy", "tag_share"):
        null = 1 / int(run.model.cfg.d_head) if metric == "tag_share" else 0.0
        for group, which in chosen.items():
            if not bool(which.any()):
                continue
            values = [found[metric][:, which].nanmean(1) for found in by_key]
            if not all(bool(torch.isfinite(one).all()) for one in values):
                run.left_out(f"{metric} of {group}", "a key is read by no head, or nothing varies")
                continue
            sample = Sample(torch.stack(values[1:]), null, len(keys)) if keys else None
            beside = [Reference(sample, EARLIER, "null", models=NOT_TESTED)] if sample else []
            run.add(metric, group, Sample(values[0], null), *beside)
    heads = [head for head, one in capabilities.by_head(mass).items() if one > SINK_MASS]
    if config.heads != ("sink",):
        heads = heads_of(
            config.heads, capabilities.attention, capabilities.n_heads, "use sink, or "
        )
    run.drawn(heads=[head_label(head) for head in heads])
    run.refuse(_refusals(run, heads), none_is_fine=True)
    if run.conditions:
        # Models with random weights read all prompts: a mean of fewer would be nearer to each.
        more = run.batches() - run.batches(run.few)
        run.compare(lambda twin: _edits(twin, run.prompts, heads), twin_reads=more)


def _measured(
    model: HookedModel, reads: Mapping[int, Read], outputs: Mapping[int, Tensor], first: int
) -> Mapping[str, Float[Tensor, "prompt layer head"]]:
    """Both measures of one key."""
    found: dict[str, list[Tensor]] = {"inconstancy": [], "tag_share": []}
    for layer, read in reads.items():
        output = projection(model, layer, "W_O").float().cpu()
        written = torch.einsum("phd,hdm->phm", read.value, output)
        found["inconstancy"].append(inconstancy(read.weight[..., first:], written))
        found["tag_share"].append(tag_share(outputs[layer][:, :, first:], read.value))
    return {name: torch.stack(values, 1) for name, values in found.items()}


def _refusals(run: Run[Any], heads: Sequence[Head]) -> dict[str, str]:
    """The conditions that cannot act here, with reasons."""
    reasons = {}
    for name in run.conditions:
        sites = ("pattern", "z") if name == CONSTANT else ("z",)
        refused = [run.capabilities.refusal(site, name) for site in sites]
        reason = NO_SINK if not heads else next(filter(None, refused), "")
        if reason:
            reasons[name] = reason
    return reasons


def _edits(run: Run[Any], prompts: Prompts, heads: Sequence[Head]) -> list[Comparison]:
    """The conditions that are asked for, with their controls; means are over some prompts."""
    config, length = run.config, run.prompts.length
    places = control_positions(length, config.draws, config.seed, config.positions)
    keys = list(dict.fromkeys([0, *places]))
    found = run.read(*(KeyReads(run.capabilities, key) for key in keys), prompts=prompts)
    reads = dict(zip(keys, found, strict=True))
    run.drawn(control_positions=places)
    made = []
    for name in run.conditions:
        if name == CONSTANT:
            later = {key: _constant(reads[key], heads, key) for key in keys}
            control = Control(LATER, [later[key] for key in places])
            made.append(Comparison(name, [later[0]], (control,)))
            continue
        values = {layer: read.value.mean(0) for layer, read in reads[0].items()}
        drawn = []
        for draw in range(config.draws):
            random = seeded(config.seed, "direction", draw)
            noise = {
                layer: torch.from_numpy(random.standard_normal(value.shape))
                for layer, value in values.items()
            }
            drawn.append(_without(f"{name} at random", noise, heads, draw))
        control = Control(RANDOM, drawn)
        made.append(Comparison(name, [_without(name, values, heads, None)], (control,), ""))
    return made


def _constant(reads: Mapping[int, Read], heads: Sequence[Head], key: int) -> Intervention:
    """What heads read from a key replaced by its mean over later queries and prompts."""
    hooks: FwdHooks = []
    for layer, chosen in sorted(_by_layer(heads).items()):
        read = reads[layer]
        mean = (read.weight[..., key + 1 :].mean(-1, keepdim=True) * read.value).mean(0)
        drop = partial(drop_edge_unnormalised, heads=chosen, position=key)
        add = partial(add_bias, heads=chosen, bias=mean[chosen], first=key + 1)
        hooks += [(hook_name("pattern", layer), drop), (hook_name("z", layer), add)]
    return Intervention(CONSTANT, "z", min(layer for layer, _ in heads), hooks, position=key)


def _without(
    name: str, values: Mapping[int, Tensor], heads: Sequence[Head], draw: int | None
) -> Intervention:
    """The component of heads' output along a direction removed."""
    hooks: FwdHooks = []
    for layer, chosen in sorted(_by_layer(heads).items()):
        unit = torch.nn.functional.normalize(values[layer][chosen].float(), dim=-1)
        remove = partial(remove_direction, heads=chosen, unit=unit)
        hooks.append((hook_name("z", layer), remove))
    return Intervention(name, "z", min(layer for layer, _ in heads), hooks, draw=draw)


def _by_layer(heads: Sequence[Head]) -> dict[int, list[int]]:
    return {layer: [head for at, head in heads if at == layer] for layer, _ in heads}
