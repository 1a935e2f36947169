"""What a refusal recommends works on the model that was refused, on every architecture.

Experiments, probes, functions, conditions and metrics that a reason names besides what it refuses
are tried on the same model. Advice on settings and prompts (lower thresholds, longer prompts, a
shipped model) is about something else than the model, and is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import sinklens
from sinklens import probes
from sinklens.hooks import ablate_heads, patch_position0, replace_bos_embedding
from sinklens.hooks.heads import HEAD_CONDITIONS
from sinklens.models.capabilities import check
from sinklens.runner import registry
from tests.architectures.beside import bridge, of_every
from tests.architectures.cells import SETTINGS, SMALL, TOKENS, cells

Attempt = Callable[[Any], Any]


def prompts() -> sinklens.Prompts:
    return sinklens.Prompts(TOKENS, bos=True, source="tokens")


def run(experiment: str, **settings: Any) -> Attempt:
    """An experiment, as an attempt on a model."""
    settings = {**SMALL, **SETTINGS.get(experiment, {}), **settings}
    return lambda model: sinklens.run(experiment, model, prompts(), **settings)


def read(probe: str) -> Attempt:
    """A probe, as an attempt on a model."""
    make = getattr(probes, probe)
    return lambda model: sinklens.evaluate(model, prompts(), [], [], probes=[make(model)])


def edit(site: str) -> Attempt:
    """An intervention on a kind of site."""
    return lambda model: check(model).require(site, "this")


CALLS: dict[str, Attempt] = {
    "replace_bos_embedding": lambda model: replace_bos_embedding(model, with_="mean"),
    "patch_position0": lambda model: patch_position0(
        model, check(model).n_layers - 1, "zero", part="residual"
    ),
    "ablate_heads": lambda model: ablate_heads(
        model, [(check(model).layers_of("z")[-1], 0)], "zero"
    ),
    "attention_view": lambda model: sinklens.attention_view(model, TOKENS[:1]),
    "sink_scores": lambda model: sinklens.sink_scores(model, TOKENS),
    "position0_patching zero:key": run("position0_patching", conditions="zero:key"),
    "position0_patching zero:value": run("position0_patching", conditions="zero:value"),
}


def reasons(name: str) -> Iterator[tuple[str, str]]:
    """What is refused or left out on an architecture under the defaults, with the reason."""
    for experiment, cell in cells(name, "float32", True).by_experiment.items():
        yield from [(experiment, cell.refusal)] if cell.refusal else cell.left_out.items()
    for what, call in CALLS.items():
        try:
            call(bridge(name))
        except sinklens.SinklensError as refused:
            yield what, str(refused)


def recommended(what: str, reason: str) -> Iterator[tuple[str, Attempt]]:
    """What a reason names besides what it refuses, and how to try it."""
    words = set(re.findall(r"[a-zA-Z_][a-zA-Z_0-9]*", reason)) - set(re.findall(r"\w+", what))
    # `sink_scores reads blocks.0...`: the subject of the sentence is what was refused.
    words.discard(reason.partition(" ")[0])
    for name in sorted(words & registry.all_experiments().keys()):
        yield name, run(name)
    for name in sorted(words & CALLS.keys()):
        yield name, CALLS[name]
    for name in sorted(words & set(HEAD_CONDITIONS) - {"mean", "zero"}):
        if f"{name} works" in reason:
            yield name, run("sink_head_ablation", conditions=name)
    for name in re.findall(r"probes\.(\w+)", reason):
        yield f"probes.{name}", read(name)
    if "metrics=kl" in reason:
        experiment = what.partition(" ")[0]
        yield f"{experiment} metrics=kl", run(experiment, metrics="kl")
    sites = re.search(r"Interventions on ([a-z, ]+) do work", reason)
    for site in sites[1].split(", ") if sites else ():
        yield f"intervention on {site}", edit(site)


@of_every("Mamba")
def test_every_recommendation_works(name: str) -> None:
    if cells(name, "float32", True).refusal:
        return  # such a sentence names other models
    tried: dict[str, str] = {}
    failed = []
    for what, reason in reasons(name):
        assert "\n" not in reason
        for other, attempt in recommended(what, reason):
            if other not in tried:
                tried[other] = _failure(attempt, bridge(name))
            if tried[other]:
                failed.append(f"{what}: {reason}\n    -> {other}: {tried[other]}")
    assert not failed, "\n".join(failed)


def _failure(attempt: Attempt, model: Any) -> str:
    """Why an attempt fails, empty where it does not."""
    try:
        attempt(model)
    except sinklens.SinklensError as refused:
        return str(refused)
    return ""
