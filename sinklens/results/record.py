"""The content of a result: rows, arrays, findings, settings and provenance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from ..core.errors import SinklensError, unknown_name
from ..core.labels import Head
from ..stats.effects import OVER_PROMPTS, EffectSize
from .estimates import RANDOM_MODELS, Measure
from .lookup import the_row

CHECKPOINT = ("revision", "step", "seed")
OF_A_ROW = ("metric", "condition", "kind", "against", "layer", "head", "queries", "layers", "unit")


@dataclass(frozen=True, eq=False)
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

    def head(self, place: int) -> Head:
        """Layer and head of a place in the numbers by layer and head, counted row by row."""
        row, head = divmod(place, self.values.shape[1])
        return int(self.labels("layer")[row]), head

    def labelled(self, name: str) -> Any:
        """The numbers with the labels of their axes, under a name.

        Returns:
            A pandas DataFrame for one or two axes, an `xarray.DataArray` for more.

        Raises:
            SinklensError: There are more than two axes and xarray is not installed.
        """
        if self.values.ndim > 2:
            return self.to_xarray(name)
        axes = [
            pd.Index(self.coords.get(dim, range(size)), name=dim)
            for dim, size in zip(self.dims, self.values.shape, strict=True)
        ]
        index, columns = [*axes, None, None][:2]
        columns = pd.Index([name]) if columns is None else columns
        return pd.DataFrame(np.asarray(self).reshape(-1, len(columns)), index, columns)

    def to_xarray(self, name: str) -> Any:
        """The numbers as `xarray.DataArray` with names and labels of their axes.

        Raises:
            SinklensError: xarray is not installed.
        """
        try:
            from xarray import DataArray
        except ImportError as error:
            raise SinklensError(
                f"{name} with its axes {', '.join(self.dims)} needs xarray: "
                "pip install 'sinklens[xarray]'"
            ) from error
        return DataArray(np.asarray(self), dict(self.coords), self.dims, name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        numbers = self.values.detach().cpu().numpy()
        return np.array(numbers, dtype=dtype, copy=copy)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array):
            return NotImplemented
        return self._axes() == other._axes() and _are_same(self.values, other.values)

    def _axes(self) -> list[tuple[str, list[Any] | None]]:
        """The names of the axes with their labels, which are lists in a file."""
        return [(dim, list(self.coords[dim]) if dim in self.coords else None) for dim in self.dims]


@dataclass(frozen=True, eq=False)
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
    figure: dict[str, Any] = field(default_factory=lambda: {"kind": "Effects"})
    run: dict[str, Any] = field(default_factory=dict, compare=False)

    def __eq__(self, other: object) -> bool:
        """Whether two results hold the same; times and machines do not count."""
        if type(self) is not type(other):
            return NotImplemented
        return all(
            _are_same(getattr(self, part.name), getattr(other, part.name))
            for part in fields(self)
            if part.compare
        )

    def model_name(self) -> str:
        """The model with its revision, training step and seed, as far as they are known."""
        model = self.provenance["model"]
        parts = (f"{name} {model[name]}" for name in CHECKPOINT if model.get(name) is not None)
        return ", ".join([str(model["name"]), *parts])

    def source(self) -> dict[str, Any]:
        """Experiment, model and prompts, the first columns of every data frame."""
        model = self.provenance["model"]
        return {
            "experiment": self.experiment,
            "model": model["name"],
            "revision": model.get("revision"),
            "step": model.get("step"),
            "model_seed": model.get("seed"),
            "prompts": self.provenance["prompts"].get("hash"),
        }

    def to_dataframe(self) -> pd.DataFrame:
        """All rows in long form: `source`, then one column per field of `EffectSize`."""
        return pd.DataFrame(self.lines())

    def lines(self) -> list[dict[str, Any]]:
        """The rows of `to_dataframe`."""
        source = self.source()
        return [{**source, **asdict(effect)} for effect in self.effects]

    def per_prompt_frame(self) -> pd.DataFrame:
        """The values behind the rows in long form: a line for each row and prompt.

        Its columns are those of `source`, what names the row, `prompt` (its number), `value`,
        `baseline` and `effect` (their difference). Rows over tokens, seeds or models are left out.
        """
        source, lines = self.source(), []
        value, baseline = (self.per_prompt[side].tolist() for side in ("value", "baseline"))
        for number, row in enumerate(self.effects):
            if row.resampled not in OVER_PROMPTS:
                continue
            named = source | {name: getattr(row, name) for name in OF_A_ROW}
            for prompt, pair in enumerate(zip(value[number], baseline[number], strict=True)):
                both = {"value": pair[0], "baseline": pair[1], "effect": pair[0] - pair[1]}
                lines.append({**named, "prompt": prompt, **both})
        return pd.DataFrame(lines)

    def array(self, name: str) -> Any:
        """An array with its labels, as a pandas DataFrame or, of more than two axes, from xarray.

        Raises:
            UsageError: There is no such array.
            SinklensError: It has more than two axes and xarray is not installed.
        """
        if name not in self.arrays:
            raise unknown_name(f"array of {self.experiment}", name, self.arrays)
        return self.arrays[name].labelled(name)

    def to_xarray(self) -> dict[str, Any]:
        """The arrays by name, as `xarray.DataArray` with names and labels of their axes.

        Raises:
            SinklensError: xarray is not installed.
        """
        return {name: array.to_xarray(name) for name, array in self.arrays.items()}

    def find(self, **wanted: Any) -> EffectSize:
        """The one row with these fields, such as `find(metric="loss", condition="zero", kind=...)`.

        Raises:
            UsageError: No row or several rows have them, or a row has no such field; it says what
                is near, or what differs.
        """
        return the_row(self.effects, wanted)

    def references(self, row: EffectSize) -> list[tuple[EffectSize, EffectSize]]:
        """Each control or null that a row is compared with, and the contrast."""
        mine = [other for other in self._by_place[_place(row)] if other.against]
        contrasts = {other.against: other for other in mine if other.kind == "contrast"}
        return [
            (other, contrasts[other.against])
            for other in mine
            if other.kind != "contrast" and other.against in contrasts
        ]

    @cached_property
    def _by_place(self) -> dict[tuple[Any, ...], list[EffectSize]]:
        """The rows that differ in their reference alone, by what they have in common."""
        places: dict[tuple[Any, ...], list[EffectSize]] = defaultdict(list)
        for row in self.effects:
            places[_place(row)].append(row)
        return places

    def of_random_models(self, contrast: EffectSize) -> EffectSize | None:
        """The same contrast of models with random weights, if it is judged by these."""
        name = f"{RANDOM_MODELS}:{contrast.against}"
        rows = (row for row in self._by_place[_place(contrast)] if row.against == name)
        return next(rows, None)

    def measure(self, metric: str, condition: str = "") -> Measure:
        """What kind of number a metric is, under a condition that has a measure of its own."""
        for name in (f"{metric}/{condition}", metric):
            if name in self.measures:
                return self.measures[name]
        return Measure(next(row.unit for row in self.effects if row.metric == metric))


def _place(row: EffectSize) -> tuple[Any, ...]:
    """What a row has in common with its references and contrasts."""
    return row.metric, row.condition, row.layer, row.head, row.queries


def _are_same(one: Any, other: Any) -> bool:
    """Whether two parts of a result are equal, tensors entry by entry, NaN being equal to NaN."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        return bool(((one == other) | (one.isnan() & other.isnan())).all())
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_are_same(one[key], other[key]) for key in one)
    return bool(one == other)
