"""The sink mass of each head: a column of the table, on the row that is their mean.

`{"L0H0": 0.051, "L0H1": 0.62, ...}`, as the array `sink_mass` of a result of `sink_profile` has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..core.labels import head_label
from ..results.record import Array

COLUMN = "by_head"
EXPERIMENT, ARRAY = "sink_profile", "sink_mass"
OF_ROW = {"metric": "sink_mass", "condition": "position0", "against": None}
DIGITS = 5
_LABEL = re.compile(r"L(\d+)H(\d+)")


def rows_with_heads(folder: Path, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a result, that of the sink mass with what each head has.

    Args:
        folder: Where the result is, whose files are known to be whole.
        content: Of `result.json`.
    """
    rows: list[dict[str, Any]] = content["effects"]
    axes = content["arrays"].get(ARRAY)
    if content["experiment"] != EXPERIMENT or axes is None:
        return rows
    with safe_open(folder / "values.safetensors", "pt") as tensors:
        values = tensors.get_tensor(f"arrays.{ARRAY}")
    text = as_text(Array(values, tuple(axes["dims"]), axes["coords"]))
    return [
        {**row, COLUMN: text} if all(row[name] == OF_ROW[name] for name in OF_ROW) else row
        for row in rows
    ]


def as_text(masses: Array) -> str:
    """The numbers by label of the head, as JSON."""
    numbers = masses.values.flatten().tolist()
    named = {head_label(masses.head(place)): value for place, value in enumerate(numbers)}
    return json.dumps({name: float(f"{value:.{DIGITS}g}") for name, value in named.items()})


def from_text(text: str) -> Array | None:
    """The numbers by layer and head that a table has; None where the text is of another kind."""
    try:
        found = [(_LABEL.fullmatch(name), float(it)) for name, it in json.loads(text).items()]
    except (AttributeError, TypeError, ValueError):
        return None
    masses = {(int(label[1]), int(label[2])): value for label, value in found if label}
    if len(masses) != len(found):
        return None
    layers, heads = ({place[axis] for place in masses} for axis in (0, 1))
    if not masses or len(masses) != len(layers) * (max(heads) + 1):
        return None
    ordered = [masses[place] for place in sorted(masses)]
    values = torch.tensor(ordered, dtype=torch.float64).reshape(len(layers), -1)
    return Array(values, ("layer", "head"), {"layer": sorted(layers)})
