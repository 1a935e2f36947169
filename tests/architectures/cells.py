"""Every cell: an experiment on an architecture, with or without BOS, in float32 or bfloat16.

Weights are those of bfloat16 in either dtype, so that between the two only arithmetic differs. All
experiments of the registry are run with all of their conditions. Only a `SinklensError` counts as
a refusal: whatever else is raised ends the test.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

import sinklens
from sinklens.models.capabilities import Capabilities, check
from sinklens.runner import registry
from tests import families
from tests.architectures.models import ARCHITECTURES

LENGTH = 12
TOKENS = torch.tensor(
    [
        [families.BOS, *((3 * row + (7 * at + row) * at) % 60 + 4 for at in range(LENGTH - 1))]
        for row in range(4)
    ]
)
SETTINGS: dict[str, dict[str, Any]] = {
    "massive_activations": {"scale_free": 4.0},
    "spike_sink_decoupling": {"scale_free": 4.0},
    "sink_head_ablation": {"heads": "all"},
    "reference_frame": {"column_sets": 2},
    "absolute_position": {"queries": ("1:8",), "first_tokens": 0},
    "positional_spectrum": {"scales": (0.5,), "windows": (8,)},
}
SMALL = {"draws": 1, "null_models": 0, "progress": False}
Key = tuple[Any, ...]

ROOM, LEAST = 0.1, 0.02
"""How far a value in bfloat16 may lie from that in float32: a share of the largest value of its
metric, and in its own unit. A product of bfloat16 is off by up to 0.4 %, three layers of sharp
attention raise that to some 1 % of most values here."""
MISSING, FLIPPED, USUAL = 0.5, 0.3, 0.05
"""The share of rows that may be there in one dtype only (each step of a spike has its own), and of
those that may lie beyond: rounding decides on which side of a threshold a head or step is, what
entries, heads and channels are taken, and the difference of large logits. And the median distance,
as a share of the largest value."""


@dataclass(frozen=True)
class Cell:
    """What one experiment gave.

    Attributes:
        refusal: Why it does not run; empty where it does.
        left_out: What it leaves out, with reasons.
        values: By row, its value; without contrasts, which are differences of these.
    """

    refusal: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[Key, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cells:
    """What all experiments gave on one model.

    Attributes:
        refusal: Why the model cannot be loaded; empty where it can.
        capabilities: What `check` says of it.
        by_experiment: By the names of all experiments, none where it cannot be loaded.
    """

    refusal: str = ""
    capabilities: Capabilities | None = None
    by_experiment: Mapping[str, Cell] = field(default_factory=dict)


@cache
def cells(name: str, dtype: str, bos: bool) -> Cells:
    """Try every experiment on one architecture."""
    made = ARCHITECTURES[name]()
    architecture = type(made).__name__
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = [Path(folder) / step for step in ("a", "b")]
        try:
            for place in checkpoints:
                made.bfloat16().save_pretrained(place)
            model: Any = sinklens.load(
                loaded(type(made), checkpoints[0], dtype), tokenizer=families.tiny_tokenizer()
            )
            capabilities = check(model)
        except sinklens.SinklensError as error:
            return Cells(_said(str(error), architecture))
        found = {
            experiment: _cell(experiment, model, bos, checkpoints, architecture)
            for experiment in registry.all_experiments()
        }
    return Cells("", capabilities, found)


def loaded(kind: type[PreTrainedModel], folder: Path, dtype: str) -> PreTrainedModel:
    """The plain model in a folder, which loads as those that users have."""
    model = kind.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="eager")
    model.config._name_or_path = ""
    return model.eval()


def _cell(name: str, model: Any, bos: bool, checkpoints: list[Path], architecture: str) -> Cell:
    """Run an experiment with few draws."""
    settings: dict[str, Any] = {**SMALL, **SETTINGS.get(name, {})}
    if name == "sink_emergence":
        settings["checkpoints"] = tuple(map(str, checkpoints))
    prompts = sinklens.Prompts(TOKENS if bos else TOKENS[:, 1:], bos=bos, source="tokens")
    try:
        result = sinklens.run(name, model, prompts, **settings)
    except sinklens.SinklensError as error:
        return Cell(_said(str(error), architecture))
    left_out = result.settings["left_out"].items()
    values = {
        (row.metric, row.condition, row.kind, row.against, row.layer, row.head, row.queries): (
            float(row.value)
        )
        for row in result.effects
        if row.kind != "contrast"
    }
    return Cell("", {what: _said(why, architecture) for what, why in left_out}, values)


def _said(reason: str, architecture: str) -> str:
    return " ".join(reason.replace(architecture, "this model").replace("|", "\\|").split())


def unlike(whole: Cell, half: Cell) -> Iterator[str]:
    """How the values of a cell in bfloat16 are not those in float32."""
    largest: dict[str, float] = {}
    for key, value in whole.values.items():
        largest[key[0]] = max(largest.get(key[0], 0.0), abs(value))
    distances = {
        key: abs(whole.values[key] - half.values[key])
        for key in whole.values.keys() & half.values.keys()
    }
    common, every = len(distances), len(whole.values.keys() | half.values.keys())
    if not (whole.refusal or half.refusal) and common < (1 - MISSING) * every:
        yield f"{every - common} of {every} rows are in one dtype only"
    beyond = {
        f"{key}: {whole.values[key]:.3g} and {half.values[key]:.3g}"
        for key, distance in distances.items()
        if not distance <= ROOM * largest[key[0]] + LEAST
    }
    if len(beyond) > max(1, FLIPPED * common):
        yield f"{len(beyond)} of {common} rows differ: {'; '.join(sorted(beyond)[:5])}"
    shares = [d / (largest[key[0]] + LEAST) for key, d in distances.items()]
    if shares and median(shares) > USUAL:
        yield f"the median row differs by {median(shares):.1%} of the largest"
