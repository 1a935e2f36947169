"""Every experiment on every member: each works, or says why it does not.

With a single draw of what is random; the tests of each experiment have more.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

import sinklens
from sinklens import zoo
from sinklens.runner import registry

pytestmark = pytest.mark.slow

SETTINGS: dict[str, dict[str, Any]] = {
    "massive_activations": {"conditions": "zero"},
    "reference_frame": {"column_sets": 1},
    "absolute_position": {"conditions": "zero:key", "first_tokens": 2, "queries": "1:8"},
    "spike_sink_decoupling": {"conditions": "drop_edge"},
    "sink_emergence": {"checkpoints": "0,512,4000"},
}
NO_SPIKE, NO_SINK = "no entry is massive there", "no head has a sink mass above 0.3"
REFUSED = {
    ("encoder", "massive_activations"): "needs a causal model",
    ("encoder", "absolute_position"): "needs a causal model",
    ("encoder", "spike_sink_decoupling"): "needs a causal model",
    ("backcopy-1", "absolute_position"): "needs a model of at least 2 layers",
}
REFUSED |= {
    (name, "massive_activations"): NO_SPIKE
    for name in zoo.names()
    if name not in ("rope", "ntk", "nope", "window", "layernorm", "encoder")
}
REFUSED |= {
    (name, "spike_sink_decoupling"): NO_SINK
    for name in ("learned-sink", "no-bos", "postnorm", "sandwich")
}
REFUSED |= {
    ("encoder", name): "needs a causal model"
    for name in ("position_bias", "bias_constancy", "position0_patching")
}
REFUSED |= {
    (name, "rope_phase"): "turns rotary planes"
    for name in ("alibi", "backcopy-1", "backcopy-3", "encoder", "learned", "nope")
}
REFUSED |= {(name, "attention_likelihood"): "whole words" for name in ("backcopy-1", "backcopy-3")}
REFUSED |= {(name, "qk_eigenspectrum"): "no bilinear form" for name in ("postnorm", "qknorm")}
REFUSED |= {
    ("no-bos", "bos_replacement"): "prompts that start with BOS",
    ("postnorm", "outlier_dimensions"): "has none",
}
REFUSED |= {
    (name, "sink_emergence"): "no checkpoint of step 512"
    for name in zoo.names()
    if name not in ("rope", "postnorm")
}


TRIED = ("postnorm", "alibi", "encoder", "backcopy-1")
"""Of every kind of refusal one; the others run where `--heavy` is given."""
PLACES = ("heads", "layers", "conditions")
"""Of small settings those that not every member has."""


def settings_of(experiment: str) -> dict[str, Any]:
    """Settings with which it is fast, and which every member can have."""
    small = registry.get(experiment).smallest
    own = {name: value for name, value in small.items() if name not in PLACES}
    if experiment == "sink_head_ablation":
        own["heads"] = "all"
    return {"draws": 1, "null_models": 2, "progress": False, **SETTINGS.get(experiment, own)}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[] if name in TRIED else pytest.mark.heavy) for name in zoo.names()
    ],
)
def member(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, sinklens.load(request.param)


@pytest.mark.parametrize(
    "experiment",
    [
        pytest.param(name, marks=[] if name in SETTINGS else pytest.mark.heavy)
        for name in registry.all_experiments()
    ],
)
def test_every_member_works_or_says_why_not(member: tuple[str, Any], experiment: str) -> None:
    name, model = member
    prompts = sinklens.prompts(model, n=3, length=16 if experiment in SETTINGS else 24)
    settings = settings_of(experiment)
    reason = REFUSED.get((name, experiment))
    if reason is not None:
        with pytest.raises(sinklens.SinklensError, match=reason):
            sinklens.run(experiment, model, prompts, **settings)
        return
    result = sinklens.run(experiment, model, prompts, **settings)
    assert all(math.isfinite(row.value) for row in result.effects)
    assert 0 < len(result.summary) <= 12 and result.plot().data and "<table" in result._repr_html_()
