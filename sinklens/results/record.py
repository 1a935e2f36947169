"""The content of a result: rows, arrays, findings, settings and provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
from torch import Tensor

from ..core.errors import SinklensError, UsageError
from ..stats.effects import EffectSize
from .estimates import RANDOM_MODELS, Measure


@dataclass(frozen=True)
class Array:
    """A tensor with named axes, and labels where indices alone are ambiguous.

    Attributes:
        values: The numbers.
        dims: One name per axis, such as `("layer", "head")`.
        coords: By name of an axis its labels, such as thresholds, stages or conditions.
    """

    values: Tensor
    dims: tuple[str, ...]
    coords: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse names and labels that do not fit."""
        if self.values.ndim != len(self.dims):
            raise ValueError(f"{len(self.dims)} names for {self.values.ndim} axes")
        for name, labels in self.coords.items():
            if name not in self.dims or len(labels) != self.values.shape[self.dims.index(name)]:
                raise ValueError(f"{len(labels)} labels do not fit axis {name} of {self.dims}")

    def labels(self, dim: str) -> list[str]:
        """The labels of an axis; the numbers of its places where it has none."""
        size = self.values.shape[self.dims.index(dim)]
        return [str(label) for label in self.coords.get(dim, range(size))]


@dataclass(frozen=True)
class Record:
    """The outcome of one experiment on one model, as data.

    Attributes:
        experiment: The experiment's name.
        effects: The rows.
        summary: At most 12 sentences.
        arrays: Named tensors, such as the sink mass by layer and head.
        per_prompt: `value` and `baseline`, `[effect, prompt]`, in the order of `effects`; NaN in
            rows whose resampling unit is not the prompt.
        settings: The configuration, `left_out` (conditions and metrics, with reasons) and `notes`.
        provenance: Model, weights hash, dtype, device, BOS, text hash, seed, versions, fire counts.
        findings: Other findings, such as the layer of a step.
        draws: The random draws (tokens, positions, heads), for replication.
        measures: By metric its unit, the words of its null and how it is written; a condition with
            a unit or null of its own stands beside it (`fingerprint/nearest_centroid`).
        figure: What `plot` draws.
        run: Times and machine; not part of the reproducible result.
    """

    experiment: str
    effects: list[EffectSize]
    summary: list[str]
    arrays: dict[str, Array]
    per_prompt: dict[str, Tensor]
    settings: dict[str, Any]
    provenance: dict[str, Any]
    findings: dict[str, Any] = field(default_factory=dict)
    draws: dict[str, Any] = field(default_factory=dict)
    measures: dict[str, Measure] = field(default_factory=dict)
    figure: dict[str, Any] = field(default_factory=lambda: {"kind": "Forest"})
    run: dict[str, Any] = field(default_factory=dict, compare=False)

    def to_dataframe(self) -> pd.DataFrame:
        """All rows in long form, one column per field of `EffectSize`."""
        return pd.DataFrame([asdict(effect) for effect in self.effects])

    def to_xarray(self) -> dict[str, Any]:
        """The arrays by name, as `xarray.DataArray` with names and labels of their axes.

        Raises:
            SinklensError: xarray is not installed.
        """
        try:
            from xarray import DataArray
        except ImportError as error:
            raise SinklensError("to_xarray needs xarray: pip install 'sinklens[xarray]'") from error
        return {
            name: DataArray(array.values.numpy(), dict(array.coords), array.dims, name)
            for name, array in self.arrays.items()
        }

    def find(self, **fields: Any) -> EffectSize:
        """The one row with these fields, such as `find(metric="loss", condition="zero", kind=...)`.

        Raises:
            UsageError: No row or several rows have them.
        """
        rows = [
            effect
            for effect in self.effects
            if all(getattr(effect, name) == value for name, value in fields.items())
        ]
        if len(rows) != 1:
            raise UsageError(f"{len(rows)} rows match {fields}; exactly one has to")
        return rows[0]

    def references(self, row: EffectSize) -> list[tuple[EffectSize, EffectSize]]:
        """Each control or null that a row is compared with, and the contrast."""
        mine = [other for other in self.effects if _same_row(other, row) and other.against]
        contrasts = {other.against: other for other in mine if other.kind == "contrast"}
        return [
            (other, contrasts[other.against])
            for other in mine
            if other.kind != "contrast" and other.against in contrasts
        ]

    def of_random_models(self, contrast: EffectSize) -> EffectSize | None:
        """The same contrast of models with random weights, if it is judged by these."""
        name = f"{RANDOM_MODELS}:{contrast.against}"
        rows = (row for row in self.effects if row.against == name and _same_row(row, contrast))
        return next(rows, None)

    def measure(self, metric: str, condition: str = "") -> Measure:
        """What kind of number a metric is, under a condition that has a measure of its own."""
        for name in (f"{metric}/{condition}", metric):
            if name in self.measures:
                return self.measures[name]
        return Measure(next(row.unit for row in self.effects if row.metric == metric))


def _same_row(one: EffectSize, other: EffectSize) -> bool:
    """Whether two rows differ in their reference alone."""
    return all(
        getattr(one, name) == getattr(other, name)
        for name in ("metric", "condition", "layer", "head", "queries")
    )
