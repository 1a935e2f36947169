"""Results that version 0.1 saved (schema 1): their rows in today's vocabulary.

Rows of a control or null had no field for it. A second one of the same row hid in the condition's
name (`zero:equal_norm`, `without_key0:moved`), and what was found stood among the settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

SUFFIXES = {
    ":equal_norm": "other_channels",
    ":moved": "diagonal_shift",
    ":nearby": "nearby_columns",
    ":random_weights": "random_weights",
}
CONTROLS = {
    "bos_replacement": "later_position",
    "position0_patching": "later_position",
    "absolute_position": "later_position",
    "sink_head_ablation": "other_heads",
}
BY_METRIC = {
    "logit_gap": "later_key",
    "sink_reading_heads": "later_key",
    "causal_slope": "shuffled_offsets",
    "causal_r2": "shuffled_offsets",
    "causal_share": "shuffled_offsets",
    "head_kl": "random_columns",
}
BY_CONDITION = {
    "drop_edge": "later_key",
    "drop_edge_unnormalised": "later_key",
    "clamp_spikes": "other_channels",
    "both": "combined",
    "interaction": "combined",
}
UNITS = {"share of the columns": "share of the columns' sum", "1": "", "1 to d_model": ""}
"""Units that are written otherwise since, in files of either schema."""
SPIKE_AND_SINKS = ("peak_ratio", "sink_mass", "sink_rate")
FINDINGS = (
    "checks",
    "mask_window",
    "onsets",
    "ranges",
    "rank_correlation",
    "random_weights",
    "screening",
    "steps",
    "thresholds_by_name",
    "uniform_score",
    "weights",
)


def upgraded(
    experiment: str, rows: Sequence[Mapping[str, Any]]
) -> list[tuple[int, dict[str, Any]]]:
    """The rows with `against` and `resampled`, each with its number among the old ones.

    A treatment that stood twice, once for each of its controls, is there once.
    """
    leads = [row for row in rows if row["kind"] in ("treatment", "measurement")]
    kept: list[tuple[int, dict[str, Any]]] = []
    seen = set()
    for number, row in enumerate(rows):
        condition, against = _renamed(experiment, row, leads)
        metric = "window_kl" if row["metric"].startswith("window_kl:") else row["metric"]
        new = {**row, "metric": metric, "condition": condition, "against": against}
        new |= {"resampled": "prompt"}
        if against is not None and row["kind"] == "measurement":  # of another model
            new["kind"] = "control"
        key = tuple(
            new[name]
            for name in ("metric", "condition", "kind", "against", "layer", "head", "queries")
        )
        if key not in seen:
            seen.add(key)
            kept.append((number, new))
    return kept


def _renamed(
    experiment: str, row: Mapping[str, Any], leads: Sequence[Mapping[str, Any]]
) -> tuple[str, str | None]:
    """A row's condition without suffix, and what it is against."""
    condition, metric = row["condition"], row["metric"]
    if experiment == "spike_sink_decoupling" and metric in SPIKE_AND_SINKS:
        models = [one["condition"] for one in leads if one["metric"] == "peak_ratio"]
        if condition in models:
            return models[0], None if condition == models[0] else condition
    lead = row["kind"] in ("treatment", "measurement")
    for suffix, against in SUFFIXES.items():
        if condition.endswith(suffix):
            return condition.removesuffix(suffix), None if lead else against
    if lead:
        return condition, None
    mine = [one["condition"] for one in leads if one["metric"] == metric]
    if condition == "random_weights" and experiment == "reference_frame":
        return "attention", condition
    if experiment == "sink_emergence" and mine:
        return [name for name in mine if name.startswith("step")][-1], condition
    if metric.startswith("window_kl"):
        return condition, "shuffled_offsets"
    if experiment == "reference_frame" and metric != "head_kl":
        return condition, "row_permuted"
    if experiment == "massive_activations" and condition != "position0":
        return condition, "median_entries"
    if experiment == "sink_head_ablation" and row["head"] is not None:
        return condition, "other_heads"
    own = BY_CONDITION.get(condition) or BY_METRIC.get(metric) or CONTROLS.get(experiment)
    return condition, own or "later_position"


def with_unit(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A saved row or measure with its unit in today's words."""
    return {**fields, "unit": UNITS.get(fields["unit"], fields["unit"])}


def from_schema1(
    content: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A saved result as schema 2 has it; its figure is a forest of effects."""
    kept = upgraded(content["experiment"], content["effects"])
    numbers = [number for number, _ in kept]
    found = {n: content["settings"][n] for n in FINDINGS if n in content["settings"]}
    settings = {n: v for n, v in content["settings"].items() if n not in (*found, "draws_made")}
    drawn = content["settings"].get("draws_made", {})
    new = {
        **content,
        "effects": [row for _, row in kept],
        "settings": settings,
        "findings": {**found, **drawn},
        "draws": drawn,
        "measures": {},
        "figure": {"kind": "Forest"},
        "arrays": {name: {"dims": dims, "coords": {}} for name, dims in content["dims"].items()},
    }
    rows = {
        name: values[numbers] if name.startswith("per_prompt.") else values
        for name, values in tensors.items()
    }
    return new, rows
