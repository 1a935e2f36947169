"""Ablate sink heads, or only their edge to the sink, and read loss, KL and the sink.

A sink head has a sink mass (mean over queries i >= 1 of A_i0, averaged over prompts) above 0.3.
What is written is in `hooks.heads`, the controls are in `comparisons.heads`: for the conditions on
the output other heads, for the edge conditions the same heads' edge to a later key, predictions
counted after it. Units: nats; sink mass is a share of attention.

Dropping the edge with and without renormalisation are two experiments. In a model whose sink has
small values, the first hardly changes z's direction and the second hardly changes z at all.
Ablating a head says what the head is for in this model, not what its sink is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...comparisons.heads import MATCHED, HeadAblations
from ...core.errors import SinklensError
from ...core.labels import Head, head_label, heads_of
from ...hooks.heads import EDGE_CONDITIONS, HEAD_CONDITIONS, OUTPUT_CONDITIONS
from ...metrics import SINK_MASS
from ...models.capabilities import Capabilities
from ...probes import SinkScores
from ...results.effect_sentences import NO_CONTROL, Compared
from ...results.figures import Effects
from ...results.record import Record
from ...runner.compare import Comparison
from ...runner.config import ExperimentConfig
from ...runner.needs import WITH_ATTENTION
from ...runner.registry import experiment
from ...runner.run import Run

SATURATED = 0.999
MATCHED_CONDITIONS = tuple(f"{name}{MATCHED}" for name in OUTPUT_CONDITIONS)


@dataclass(frozen=True)
class SinkHeadAblationConfig(ExperimentConfig):
    """Settings.

    Attributes:
        heads: `sink` (sink mass above 0.3), `all`, or labels such as `L18H8`.
        each: One row a head instead of all heads together; the control is then pooled over `draws`
            other heads, each alone.
    """

    heads: tuple[str, ...] = ("sink",)
    each: bool = False


def ablated_heads(result: Record) -> list[str]:
    """How many heads are ablated, and which if they are few."""
    heads, total = result.draws["heads"], result.arrays["sink_mass"].values.numel()
    layers = len({head.partition("H")[0] for head in heads})
    named = f": {', '.join(heads)}" if len(heads) <= 12 else f", in {layers} layers"
    chosen = result.settings["heads"] == ["sink"]
    which = f"sink heads (sink mass above {SINK_MASS}), of {total} heads," if chosen else ""
    return [f"{len(heads)} {which or f'of {total} heads'} are ablated{named}."]


def effects_on_the_sink(result: Record) -> list[str]:
    """The conditions whose effect on sink mass is not by construction."""
    edges = EDGE_CONDITIONS if result.findings.get("edges_removed_in") == "z" else ()
    return list(Compared("Ablating by", "sink_mass", (*OUTPUT_CONDITIONS, *edges))(result))


def ablations(result: Record) -> list[str]:
    """What ablating does to the loss and to the sink; what has a control comes first."""
    lines = [
        *Compared("Ablating by", "loss", HEAD_CONDITIONS)(result),
        *effects_on_the_sink(result),
        *Compared("Ablating by", "loss", MATCHED_CONDITIONS)(result),
        *Compared("Ablating by", "sink_mass", MATCHED_CONDITIONS)(result),
    ]
    return sorted(lines, key=lambda line: NO_CONTROL in line)


@experiment(
    paper="Gu et al. 2025 (2410.10781)",
    question="What does the model lose without its sink heads, or without their edge to the sink?",
    needs=(WITH_ATTENTION,),
    conditions=HEAD_CONDITIONS,
    metrics=("loss", "kl", "sink_mass"),
    says=(ablated_heads, ablations),
    figure=Effects(("loss|kl", "sink_mass"), "Ablating sink heads, or their edge to the sink"),
    smallest={"heads": ("L0H0", "L1H1")},
)
def sink_head_ablation(run: Run[SinkHeadAblationConfig]) -> None:
    """Ablate heads under each condition, together or one by one, with matched controls.

    Raises:
        SinklensError: A condition cannot act on this model, or there is no sink head.
        UsageError: A head label is wrong.
    """
    config, model = run.config, run.model
    run.refuse(_refusals(run))
    labelled = _parse_heads(config.heads, run.capabilities)
    (scores,) = run.read(SinkScores(model))
    by_head = scores.mass.mean(0)
    mass = run.capabilities.by_head(by_head)
    heads = labelled or _choose_heads(config.heads, mass)
    # A control head is no sink head, and none that is ablated in the same run.
    others = [
        head
        for head, own in mass.items()
        if own <= SINK_MASS and (config.each or head not in heads)
    ]
    run.drawn(heads=[head_label(head) for head in heads])
    run.keep("sink_mass", by_head, "layer head")
    _warn(run, mass, heads)

    def ablated(run: Run[Any]) -> list[Comparison]:
        ablations = HeadAblations(run, heads, others)
        made = ablations.each if config.each else ablations.together
        return [one for condition in run.conditions for one in made(condition)]

    run.compare(ablated)


def _refusals(run: Run[SinkHeadAblationConfig]) -> dict[str, str]:
    """The conditions that cannot act here, with reasons."""
    capabilities, reasons = run.capabilities, {}
    for condition in run.conditions:
        in_z = _reason_against_reads(capabilities)
        if condition == "drop_edge_unnormalised" and not capabilities.edits["pattern"]:
            reason = in_z
        elif condition in EDGE_CONDITIONS:
            instead = "" if in_z else "drop_edge_unnormalised works there, by way of hook_z."
            reason = capabilities.refusal("pattern", condition, instead)
        else:
            reason = capabilities.refusal("z", condition)
        if condition == "resample" and len(run.prompts) < 2:
            reason = "resample needs at least two prompts"
        elif run.prompts.length < run.prompts.longest and _by_position(run, condition):
            reason = (
                f"{condition} writes values of every position, and these prompts differ in length; "
                "prompts.up_to(length) cuts them"
            )
        if reason:
            reasons[condition] = reason
    return reasons


def _reason_against_reads(capabilities: Capabilities) -> str:
    """Why what is read from a key cannot be subtracted from z, empty where it can."""
    name = "drop_edge_unnormalised"
    reason = capabilities.refusal("z", name)
    if not reason and (lacking := capabilities.lacking("value")):
        reason = f"{name} needs the values of every layer; on {capabilities.architecture} {lacking}"
    return reason or capabilities.gate(name)


def _by_position(run: Run[SinkHeadAblationConfig], condition: str) -> bool:
    """Whether a condition writes values read at every position of every prompt."""
    read_out = condition == "drop_edge_unnormalised" and not run.capabilities.edits["pattern"]
    return condition == "resample" or read_out


def _parse_heads(asked: tuple[str, ...], capabilities: Capabilities) -> list[Head]:
    """Heads from labels such as `L18H8`; none where heads are chosen by their sink mass."""
    if asked in (("sink",), ("all",)):
        return []
    return heads_of(asked, capabilities.attention, capabilities.n_heads, "use sink, all, or ")


def _choose_heads(asked: tuple[str, ...], mass: Mapping[Head, float]) -> list[Head]:
    """All heads, or those with a sink."""
    heads = [head for head, own in mass.items() if asked == ("all",) or own > SINK_MASS]
    if not heads:
        raise SinklensError(
            f"no head has a sink mass above {SINK_MASS} on these prompts (the largest is "
            f"{max(mass.values()):.2f}); name heads with heads=L0H0,... or use heads=all"
        )
    return heads


def _warn(run: Run[SinkHeadAblationConfig], mass: Mapping[Head, float], heads: list[Head]) -> None:
    """Say what falls by construction, and where rows are scaled up by huge factors."""
    if set(EDGE_CONDITIONS) & set(run.conditions):
        in_pattern = run.capabilities.edits["pattern"]
        run.facts(edges_removed_in="pattern" if in_pattern else "z")
        run.note(
            "Under an edge condition sink_mass falls by construction: the dropped weight is gone."
            if in_pattern
            else "Under an edge condition sink_mass still counts the edge, which is removed in z."
        )
    saturated = sum(mass[head] > SATURATED for head in heads)
    if "drop_edge" in run.conditions and saturated:
        run.note(
            f"{saturated} of the heads give more than {SATURATED:.1%} of their attention to "
            "position 0; drop_edge scales what is left of their rows more than a thousandfold."
        )
