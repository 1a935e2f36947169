"""What a refusal recommends works on the model that was refused, on every family.

Experiments, probes, functions, conditions and metrics that a reason names besides what it refuses
are tried on the same model. Advice on settings and prompts (lower thresholds, longer prompts, a
shipped model) is about something else than the model, and is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import sinklens
from sinklens import probes
from sinklens.hooks import ablate_heads, patch_position0, replace_bos_embedding
from sinklens.hooks.heads import HEAD_CONDITIONS
from sinklens.models.capabilities import check
from sinklens.runner import registry
from tests import families, odd_models

MODELS: dict[str, Callable[[], Any]] = {
    **families.FAMILIES,
    **{
        name: getattr(odd_models, name)
        for name in (
            *("deepseek_v3", "afmoe", "gated", "hybrid", "jamba", "falcon_h1", "mamba"),
            *("nemotron_h", "chunked", "gpt1", "opt_350m", "gpt_oss", "olmoe"),
        )
    },
}
TOKENS = torch.tensor(
    [
        [families.BOS, 5, 9, 17, 30, 12, 44, 8, 21, 33],
        [families.BOS, 7, 7, 40, 22, 9, 31, 15, 6, 50],
    ]
)
RUN = {"progress": False, "draws": 1, "null_models": 0}
OF_HEADS = {"heads": "all"}


def run(name: str, model: Any, **settings: Any) -> Any:
    smallest = {k: v for k, v in registry.get(name).smallest.items() if k == "scale_free"}
    more = OF_HEADS if name == "sink_head_ablation" else {}
    prompts = sinklens.Prompts(TOKENS, bos=True, source="tokens")
    return sinklens.run(name, model, prompts, **{**RUN, **smallest, **more, **settings})


def read(model: Any, probe: Any) -> Any:
    prompts = sinklens.Prompts(TOKENS, bos=True, source="tokens")
    return sinklens.evaluate(model, prompts, [], [], probes=[probe])


def reasons(model: Any) -> Iterator[tuple[str, str]]:
    """What is refused or left out on a model under the defaults, with the reason."""
    for name in registry.all_experiments():
        try:
            result = run(name, model)
        except sinklens.SinklensError as refused:
            yield name, str(refused)
        else:
            yield from result.settings["left_out"].items()
    for part in ("key", "value"):
        try:
            run("position0_patching", model, conditions=f"zero:{part}")
        except sinklens.SinklensError as refused:
            yield f"position0_patching zero:{part}", str(refused)
    for what, call in CALLS.items():
        try:
            call(model)
        except sinklens.SinklensError as refused:
            yield what, str(refused)


CALLS: dict[str, Callable[[Any], Any]] = {
    "replace_bos_embedding": lambda model: replace_bos_embedding(model, with_="mean"),
    "patch_position0": lambda model: patch_position0(
        model, check(model).n_layers - 1, "zero", part="residual"
    ),
    "ablate_heads": lambda model: ablate_heads(
        model, [(check(model).layers_of("z")[-1], 0)], "zero"
    ),
    "attention_view": lambda model: sinklens.attention_view(model, TOKENS[:1]),
    "sink_scores": lambda model: sinklens.sink_scores(model, TOKENS),
}


def recommended(what: str, reason: str, model: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What a reason names besides what it refuses, and how to try it."""
    words = set(re.findall(r"[a-zA-Z_][a-zA-Z_0-9]*", reason)) - set(re.findall(r"\w+", what))
    # `sink_scores reads blocks.0...`: the subject of the sentence is what was refused.
    words.discard(reason.partition(" ")[0])
    for name in sorted(words & registry.all_experiments().keys()):
        yield name, lambda name=name: run(name, model)
    for name in sorted(words & CALLS.keys()):
        yield name, lambda name=name: CALLS[name](model)
    for name in sorted(words & set(HEAD_CONDITIONS) - {"mean", "zero"}):
        if f"{name} works" in reason:
            yield name, lambda name=name: run("sink_head_ablation", model, conditions=name)
    for name in re.findall(r"probes\.(\w+)", reason):
        yield name, lambda name=name: read(model, getattr(probes, name)(model))
    if "metrics=kl" in reason:
        yield "metrics=kl", lambda: run(what.partition(" ")[0], model, metrics="kl")
    sites = re.search(r"Interventions on ([a-z, ]+) do work", reason)
    for site in sites[1].split(", ") if sites else ():
        yield site, lambda site=site: check(model).require(site, "this")


@pytest.mark.architectures
@pytest.mark.parametrize("name", MODELS)
def test_every_recommendation_works(name: str) -> None:
    model = sinklens.load(MODELS[name](), tokenizer=families.tiny_tokenizer())
    failed = []
    for what, reason in reasons(model):
        assert "\n" not in reason
        for other, attempt in recommended(what, reason, model):
            try:
                attempt()
            except sinklens.SinklensError as refused:
                failed.append(f"{what}: {reason}\n    -> {other}: {refused}")
    assert not failed, "\n".join(failed)
