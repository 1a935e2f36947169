"""What an experiment returns: rows, arrays, settings and where they came from; and how it is kept.

On disk a result is a folder: `result.json` (the same bytes for the same seed, versions, device and
thread count), `run.json` (times and machine) and `values.safetensors` (arrays and the values of
each prompt). Loading runs no code. `result.json` holds the hash of `values.safetensors`, so that a
folder that was cut off or mixed up is refused.
"""

from __future__ import annotations

import hashlib
import html
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from ..core.errors import SinklensError, UsageError
from ..core.labels import head_label
from ..core.protocol import HookedModel
from ..core.storage import json_bytes, read_json, require_free, write_files
from ..models import origin, weights_hash
from ..models.prompts import Prompts
from ..stats.effects import EffectSize, Row, hopeless_families

SCHEMA = 1
LONGEST_SUMMARY = 12
TABLE_STYLE = "<style>.sinklens td, .sinklens th {white-space: nowrap; text-align: left}</style>"


@dataclass(frozen=True)
class Array:
    """A tensor whose axes have names.

    Attributes:
        values: The numbers.
        dims: One name an axis, such as `("layer", "head")`.
    """

    values: Tensor
    dims: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse names that do not fit."""
        if self.values.ndim != len(self.dims):
            raise ValueError(f"{len(self.dims)} names for {self.values.ndim} axes")


@dataclass(frozen=True)
class ExperimentResult:
    """The outcome of one experiment on one model.

    Attributes:
        experiment: The experiment's name.
        effects: The rows.
        summary: At most 12 sentences.
        arrays: Named tensors, such as the sink mass by layer and head.
        per_prompt: `value` and `baseline`, `[effect, prompt]`, in the order of `effects`.
        settings: The configuration, `left_out` (conditions and metrics, with reasons) and `notes`.
        provenance: Model, weights hash, dtype, device, BOS, text hash, seed, versions, fire counts.
        run: Times and machine; not part of the result proper.
    """

    experiment: str
    effects: list[EffectSize]
    summary: list[str]
    arrays: dict[str, Array]
    per_prompt: dict[str, Tensor]
    settings: dict[str, Any]
    provenance: dict[str, Any]
    run: dict[str, Any] = field(default_factory=dict, compare=False)

    def to_dataframe(self) -> pd.DataFrame:
        """All rows in long form, one column a field of `EffectSize`."""
        return pd.DataFrame([asdict(effect) for effect in self.effects])

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
            raise UsageError(f"{len(rows)} rows have {fields}; one was asked for")
        return rows[0]

    def table(self) -> pd.DataFrame:
        """One row a condition and metric: effect, interval, p, q, and the control beside it."""
        groups: dict[tuple[Any, ...], dict[str, EffectSize]] = {}
        for row in self.effects:
            key = (row.condition, row.metric, row.layer, row.head, row.queries)
            groups.setdefault(key, {})[row.kind] = row
        starred = self.settings.get("footnotes", {})
        rows = [_table_row(kinds, starred) for kinds in groups.values()]
        return pd.DataFrame(rows).dropna(axis="columns", how="all")

    def notes(self) -> list[str]:
        """What a reader of the table has to know: BOS, prompts, what is missing and why."""
        bos = "with" if self.provenance["bos"] else "without"
        prompts = self.provenance["prompts"]
        lines = [
            f"{self.provenance['model']['name']}: {prompts['n']} prompts of "
            f"{prompts['length']} tokens {bos} BOS from {prompts['source']}."
        ]
        lines += [f"* {line}" for line in self.settings.get("footnotes", {}).values()]
        lines += self.settings.get("notes", [])
        lines += [
            f"Left out: {what}, since {why}."
            for what, why in self.settings.get("left_out", {}).items()
        ]
        return lines + hopeless_families(self.effects)

    def plot(self) -> Any:
        """The experiment's figure (plotly)."""
        from .figures import figure

        return figure(self)

    def __str__(self) -> str:
        """Summary, table and notes as plain text."""
        table = self.table().to_string(index=False, na_rep="")
        return "\n".join([self.experiment, *self.summary, "", table, "", *self.notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Summary, table and notes for Jupyter."""
        sentences = "".join(f"<li>{html.escape(line)}</li>" for line in self.summary)
        table = self.table().to_html(
            index=False, na_rep="", border=0, justify="left", classes="sinklens"
        )
        notes = "<br>".join(html.escape(line) for line in self.notes())
        return (
            f"<h4>{html.escape(self.experiment)}</h4><ul>{sentences}</ul>"
            f"{TABLE_STYLE}<div style='overflow-x: auto'>{table}</div>"
            f"<p><small>{notes}</small></p>"
        )

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the result into a folder that is absent or empty.

        Args:
            folder: Where. It appears whole or not at all.
            overwrite: Replace the files of a result that is there already.

        Raises:
            SinklensError: The folder holds something, or cannot be written.
        """
        target = Path(folder)
        require_free(target, overwrite)
        write_files(target, self._files())
        return target

    def _files(self) -> dict[str, bytes]:
        """The files of the result; `result.json` last, since it vouches for the values."""
        values = save_safetensors(self._tensors())
        content = {
            "schema": SCHEMA,
            "experiment": self.experiment,
            "summary": self.summary,
            "effects": [asdict(effect) for effect in self.effects],
            "settings": self.settings,
            "provenance": self.provenance,
            "dims": {name: list(array.dims) for name, array in self.arrays.items()},
            "values_sha256": hashlib.sha256(values).hexdigest(),
        }
        return {
            "values.safetensors": values,
            "run.json": json_bytes(self.run),
            "result.json": json_bytes(content),
        }

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"arrays.{name}": array.values for name, array in self.arrays.items()}
        tensors |= {f"per_prompt.{name}": values for name, values in self.per_prompt.items()}
        return {name: values.contiguous().clone() for name, values in tensors.items()}

    @classmethod
    def load(cls, folder: str | Path) -> ExperimentResult:
        """Read a result that `save` wrote.

        Raises:
            SinklensError: There is none, or it is damaged or of another version.
        """
        source = Path(folder)
        content = read_json(source / "result.json")
        if content.get("schema") != SCHEMA:
            raise SinklensError(
                f"{source} has result schema {content.get('schema')}, this version reads {SCHEMA}"
            )
        try:
            raw = (source / "values.safetensors").read_bytes()
            if hashlib.sha256(raw).hexdigest() != content["values_sha256"]:
                raise SinklensError(
                    f"{source / 'values.safetensors'} is truncated or belongs to another result; "
                    "run the experiment again"
                )
            tensors = load_safetensors(raw)
            return cls(
                experiment=content["experiment"],
                effects=[EffectSize(**row) for row in content["effects"]],
                summary=content["summary"],
                arrays={
                    name: Array(tensors[f"arrays.{name}"], tuple(dims))
                    for name, dims in content["dims"].items()
                },
                per_prompt={
                    name.removeprefix("per_prompt."): values
                    for name, values in tensors.items()
                    if name.startswith("per_prompt.")
                },
                settings=content["settings"],
                provenance=content["provenance"],
                run=read_json(source / "run.json"),
            )
        except (OSError, KeyError, TypeError, AttributeError, ValueError, SafetensorError) as error:
            raise SinklensError(f"the result in {source} is damaged: {error}") from error


def assemble(
    experiment: str,
    model: HookedModel,
    prompts: Prompts,
    rows: Sequence[Row],
    *,
    arrays: Mapping[str, Array],
    settings: Mapping[str, Any],
    fired: Mapping[str, int] | None = None,
    shortcuts: Mapping[str, bool] | None = None,
    forwards: int = 0,
) -> ExperimentResult:
    """A result with its provenance; the summary is added by `sinklens.run`."""
    return ExperimentResult(
        experiment=experiment,
        effects=[row.effect for row in rows],
        summary=[],
        arrays=dict(arrays),
        per_prompt={
            "value": torch.from_numpy(np.stack([row.values for row in rows])),
            "baseline": torch.from_numpy(np.stack([row.baselines for row in rows])),
        },
        settings=dict(settings),
        provenance={
            **identity(model, prompts),
            "seed": settings.get("seed", 0),
            "fired": dict(fired or {}),
            "shortcuts": dict(shortcuts or {}),
            "forwards": forwards,
        },
    )


def identity(model: HookedModel, prompts: Prompts) -> dict[str, Any]:
    """What decides the numbers besides the experiment and its settings."""
    known = origin(model)
    return {
        "model": {
            "name": known.name,
            "kind": known.kind,
            "revision": known.revision,
            "step": known.step,
            "seed": known.seed,
            "weights": weights_hash(model),
            "architecture": str(model.cfg.architecture),
        },
        "dtype": str(model.cfg.dtype).removeprefix("torch."),
        "device": str(model.cfg.device),
        "threads": torch.get_num_threads(),
        "compatibility_mode": bool(getattr(model, "compatibility_mode", False)),
        "weights_processed": bool(getattr(model, "_weights_processed", False)),
        "bos": prompts.bos,
        "prompts": {
            "n": len(prompts),
            "length": prompts.length,
            "source": prompts.source,
            "hash": prompts.hash,
        },
        "versions": _versions(),
    }


@dataclass(frozen=True)
class Diagnosis:
    """The default battery on one model.

    Attributes:
        results: Results by experiment.
        findings: One page of sentences.
    """

    results: dict[str, ExperimentResult]
    findings: list[str]

    def __str__(self) -> str:
        """The findings, one a line."""
        return "\n".join(self.findings)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The findings, and the tables behind them, for Jupyter."""
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in self.findings)
        tables = "".join(
            f"<details><summary>{html.escape(name)}</summary>{result._repr_html_()}</details>"
            for name, result in self.results.items()
        )
        return f"<ul>{lines}</ul>{tables}"

    def to_dataframe(self) -> pd.DataFrame:
        """All rows of all experiments in long form."""
        frames = [
            result.to_dataframe().assign(experiment=name) for name, result in self.results.items()
        ]
        return pd.concat([frame for frame in frames if len(frame)], ignore_index=True)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `findings.txt` and one result folder an experiment.

        Raises:
            SinklensError: The folder holds something, or cannot be written.
        """
        target = Path(folder)
        require_free(target, overwrite)
        files = {"findings.txt": f"{self}\n".encode()}
        for name, result in self.results.items():
            files |= {f"{name}/{file}": content for file, content in result._files().items()}
        write_files(target, files)
        return target


def describe(effect: EffectSize) -> str:
    """An effect in words: `+0.021 nats [0.010, 0.032]`."""
    ends = ""
    if effect.ci_low is not None and effect.ci_high is not None:
        ends = f" [{effect.ci_low:.3g}, {effect.ci_high:.3g}]"
    return f"{effect.effect:+.3g} {effect.unit}{ends}"


def _table_row(kinds: Mapping[str, EffectSize], starred: Mapping[str, str]) -> dict[str, Any]:
    """A row of the table for a person."""
    lead = next(
        kinds[kind]
        for kind in ("treatment", "measurement", "null", "contrast", "control")
        if kind in kinds
    )
    where = "" if lead.layer is None else f"L{lead.layer}"
    if lead.layer is not None and lead.head is not None:
        where = head_label((lead.layer, lead.head))
    control, contrast = kinds.get("control"), kinds.get("contrast")
    star = " *" if lead.condition in starred else ""
    row = {
        "condition": lead.condition,
        "at": where or None,
        "queries": lead.queries,
        "metric": lead.metric,
        "baseline": f"{lead.baseline:.4g}",
        "value": f"{lead.value:.4g}",
        "effect [95 %]": describe(lead).replace(f" {lead.unit}", ""),
        "unit": lead.unit,
        "p": _number(lead.p_value),
        "q": _number(lead.q_value),
        "control": None if control is None else f"{control.effect:+.3g}",
        "more than control [95 %]": None
        if contrast is None
        else describe(contrast).replace(f" {lead.unit}", "") + star,
        "q (contrast)": None if contrast is None else _number(contrast.q_value),
    }
    return row


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.2g}"


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = ("sinklens", "transformer-lens", "transformers", "torch", "numpy", "scipy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
