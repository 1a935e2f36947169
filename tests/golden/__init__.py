"""Numbers of all experiments as they were last reviewed: `python -m tests.golden`.

Each case is an experiment on a model with settings that are small and reach most of its code. What
is stored are its rows; a case that the experiment refuses stores its message. `test_golden.py` runs
the cases again and compares, so that no number changes unnoticed. The command lists which cases
change, and stores them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import sinklens
from sinklens.models.prompts import corpus
from tests import families

STORED = Path(__file__).parent / "results.json.gz"
MODELS = ("rope", "gpt2", "llama", "gemma2")
LENGTH, N_PROMPTS = 16, 5
SHARED = {"draws": 2, "null_models": 2, "progress": False}
EVERYWHERE: dict[str, tuple[dict[str, Any], ...]] = {
    "sink_profile": ({},),
    "bos_replacement": ({"conditions": "mean,zero,random_token,gaussian"},),
    "position0_patching": ({"layers": "1"}, {"layers": "1", "part": "key"}),
    "sink_head_ablation": (
        {"heads": "L0H0,L1H3"},
        {"heads": "L0H0,L1H3", "each": True, "conditions": "zero,drop_edge"},
    ),
    "massive_activations": ({"scale_free": 4.0},),
    "spike_sink_decoupling": ({"scale_free": 3.0},),
    "reference_frame": ({"column_sets": 5},),
    "absolute_position": ({"queries": "1:8,1:16", "first_tokens": 3},),
    "attention_allocation": ({},),
    "token_synchronisation": ({},),
}
ON_ROPE: dict[str, tuple[dict[str, Any], ...]] = {
    "bos_replacement": ({"conditions": "token:e", "positions": "3,5,9", "draws": 0},),
    "position0_patching": (
        {"layers": "0,2,4", "places": "0,3", "screen": True, "top": 2, "metrics": "loss,kl"},
    ),
    "sink_head_ablation": ({"heads": "sink"}, {"heads": "all", "conditions": "zero,mean"}),
    "massive_activations": ({"sweep_tokens": 40}, {"conditions": "zero"}),
    "spike_sink_decoupling": ({"compare": "rope,sandwich"},),
    "reference_frame": (
        {"topology": True, "fisher": True, "preset": "published", "column_sets": 3},
    ),
    "positional_spectrum": (
        {"queries": 4, "scales": "0.5", "windows": "4,8", "conditions": "fast"},
    ),
    "rope_phase": ({"queries": 4, "angles": 4, "conditions": "common"},),
    "position_bias": ({},),
    "active_dormant": ({"removed": "0.25,0.5", "random_weights": False},),
    "input_dependence": ({"random_weights": False},),
    "bias_constancy": ({"burn_in": 4},),
    "qk_eigenspectrum": ({},),
    "outlier_dimensions": ({"deviations": 1.0, "share": 0.5},),
    "sink_emergence": (
        {"checkpoints": "0,256,512,4000"},
        {"checkpoints": "0,512,4000", "experiment": "sink_profile", "conditions": "spike"},
    ),
}


class Case(NamedTuple):
    """An experiment on a model with settings."""

    model: str
    experiment: str
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """How the case is stored."""
        said = ",".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.model} {self.experiment} {said}".strip()


def cases() -> Iterator[Case]:
    """All cases."""
    for model in MODELS:
        for experiment, all_settings in EVERYWHERE.items():
            for settings in all_settings:
                yield Case(model, experiment, settings)
    for experiment, all_settings in ON_ROPE.items():
        for settings in all_settings:
            yield Case("rope", experiment, settings)


@cache
def model_and_prompts(name: str) -> tuple[Any, sinklens.Prompts]:
    """A shipped model or a tiny family, with its prompts."""
    if name in families.FAMILIES:
        model: Any = families.boot(name)
        text = corpus()[:2000]
        return model, sinklens.prompts(model, text, n=N_PROMPTS, length=LENGTH, bos=True)
    model = sinklens.load(name)
    return model, sinklens.prompts(model, n=N_PROMPTS, length=LENGTH)


def run(case: Case) -> sinklens.ExperimentResult:
    """Run a case."""
    model, prompts = model_and_prompts(case.model)
    return sinklens.run(case.experiment, model, prompts, **{**SHARED, **case.settings})


def content_of(case: Case) -> dict[str, Any]:
    """What is stored of a case: its rows, or why it was refused."""
    try:
        return {"effects": [asdict(effect) for effect in run(case).effects]}
    except sinklens.SinklensError as error:
        return {"refused": str(error)}


def stored() -> dict[str, dict[str, Any]]:
    """What was stored, by case."""
    content: dict[str, dict[str, Any]] = json.loads(gzip.decompress(STORED.read_bytes()))
    return content
