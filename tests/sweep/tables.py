"""Tables of effects made by hand, as `sinklens merge` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pandas as pd

from sinklens.sweep.table import COLUMNS, NUMBERS, WHOLE

HOSTILE = "</script><script>alert(1)</script>\"'<!-- ../../\u202e\x07 =1+1"
FRAME = ("reference_frame", "centralised", "attention")
SHOWN = HOSTILE.replace("\u202e", r"\u202e").replace("\x07", r"\x07")
"""As a page shows it."""
KINDS = {"position_encoding": "rotary", "norm_placement": "pre", "family": "llama", "bos": True}
KINDS |= {"parameters": 10**6, "dtype": "float32", "norm": "RMS", "architecture": "Llama"}
RUN = {"text": "sotu", "n": 8, "length": 16, "seed": 0, "settings": "{}", "schema": 2}
RUN |= {"sinklens": "0.2.0", "resampled": "prompt", "n_prompts": 8, "n_draws": 1, "device": "cpu"}


def row(
    experiment: str,
    metric: str,
    condition: str,
    kind: str,
    baseline: float,
    value: float,
    half: float | None = 0.1,
    **more: Any,
) -> dict[str, Any]:
    """A row whose interval is `half` wide on each side."""
    effect = value - baseline
    ends = {} if half is None else {"ci_low": effect - half, "ci_high": effect + half}
    made = {"experiment": experiment, "metric": metric, "condition": condition, "kind": kind}
    numbers = {"baseline": baseline, "value": value, "effect": effect}
    return {**KINDS, **RUN, **made, **numbers, "unit": "share of attention", **ends, **more}


def rows_of(model: str, mass: float, **more: Any) -> Iterator[dict[str, Any]]:
    """A result of each experiment that an atlas shows, of a model with this sink mass."""
    own = {"model": model, "weights": f"hash of {model}", **more}
    beside = {"against": "later_position"}
    profile, edge = "sink_profile", "sink_head_ablation"
    heads = json.dumps({"L0H0": 0.05, "L0H1": 0.31, "L2H0": mass, "L2H1": 0.3})
    made = [
        row(profile, "sink_mass", "position0", "measurement", 0.2, mass, by_head=heads, **own),
        row(profile, "sink_mass", "position0:no_bos", "measurement", 0.2, 0.21, **own),
        row("bos_replacement", "sink_mass", "mean", "treatment", mass, 0.1, **own),
        row("bos_replacement", "sink_mass", "mean", "control", mass, mass, **own, **beside),
        row("bos_replacement", "sink_mass", "mean", "contrast", 0, 0.1 - mass, **own, **beside),
        row("bos_replacement", "loss", "mean", "treatment", 2.0, 2.5, **own),
        row(edge, "loss", "drop_edge", "treatment", 2.0, 2.25, **{**own, "unit": "nats"}),
        row(*FRAME, "measurement", 0.0, 0.2, **own),
        row(*FRAME, "null", 0.0, 0.05, **own, against="row_permuted"),
        row(*FRAME, "contrast", 0.05, 0.2, **own, against="row_permuted"),
        row("massive_activations", "peak_ratio", "layer_median", "measurement", 4.0, 90.0, **own),
    ]
    for one in made:
        parts = (model, more.get("step"), one["experiment"], more.get("seed", 0))
        yield {**one, "task": "-".join(map(str, parts))}


def framed(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows with all columns and their types."""
    kinds = dict.fromkeys(WHOLE, "Int64") | dict.fromkeys(NUMBERS, "float64") | {"bos": "boolean"}
    return pd.DataFrame(
        {
            name: pd.Series([one.get(name) for one in rows], dtype=kinds.get(name, "str"))
            for name in COLUMNS
        }
    )


def several() -> pd.DataFrame:
    """Five rotary models with sink masses 0.3 to 0.7, one of them with two seeds and two steps; two
    others, one with a hostile name, one without an interval."""
    rows = [one for number in (3, 4, 5, 6) for one in rows_of(f"m{number}", number / 10)]
    for step, masses in {0: (0.2, 0.2), 4000: (0.6, 0.8)}.items():
        for seed, mass in enumerate(masses):
            rows += rows_of("trained", mass, step=step, seed=seed, weights=f"step {step}")
    other = {"position_encoding": "absolute", "family": HOSTILE, "parameters": 5 * 10**6}
    rows += rows_of(HOSTILE, 0.9, **other)
    rows += rows_of("alone", 0.5, half=None, position_encoding="none")
    return framed(rows)
