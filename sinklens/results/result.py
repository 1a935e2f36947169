"""Results: rows, arrays, settings and provenance, and how they are saved and loaded.

On disk a result is a folder: `result.json` (the same bytes for the same seed, versions, device and
thread count), `run.json` (times and machine) and `values.safetensors` (arrays and the values of
each prompt). Loading runs no code, and refuses a folder that is damaged or mixed up (`saved`).
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ..core.errors import SinklensError
from ..core.paths import path_of
from ..core.protocol import HookedModel
from ..core.storage import require_free, write_files
from ..core.terminal import printable
from ..models import origin, weights_hash
from ..models.prompts import Prompts
from ..models.weights import devices
from ..stats.effects import EffectSize, underpowered_families
from .drawing import draw
from .figures import from_json
from .notebook import result_html
from .record import Array, Record
from .saved import files_of, read_files
from .schema1 import with_unit
from .shown import Shown, shown
from .table import lines_of, numeric_table, table
from .wording import measures_in


@dataclass(frozen=True, eq=False)
class ExperimentResult(Record):
    """The outcome of one experiment on one model: data, and how it is shown, saved and loaded."""

    def table(self, *, numeric: bool = False, full: bool = False) -> pd.DataFrame:
        """One line per row and control or null: the effect, and its contrast with the control.

        Args:
            numeric: Numbers, one a column, instead of text.
            full: With p-values, d_z and the number of draws.
        """
        return numeric_table(self, full=full) if numeric else table(self, full=full)

    def to_markdown(self) -> str:
        """The table for a page in Markdown, without the columns in which all rows are alike."""
        return self._shown().markdown()

    def to_latex(self) -> str:
        r"""The table for LaTeX (`\usepackage{booktabs}`), without columns that do not vary."""
        return self._shown().latex()

    def _shown(self) -> Shown:
        return shown(self.table(), [line.is_grey for line in lines_of(self)])

    def notes(self) -> list[str]:
        """Notes to the table: prompts, BOS, what was left out and why, statistical power."""
        bos = "with" if self.provenance["bos"] else "without"
        prompts = self.provenance["prompts"]
        longest = f" to {prompts['longest']}" if "longest" in prompts else ""
        lines = [
            f"{self.provenance['model']['name']}: {_counted(prompts['n'], 'prompt')} of "
            f"{prompts['length']}{longest} tokens {bos} BOS from {prompts['source']}"
            f"{self._draws_in_words()}."
        ]
        footnotes = dict.fromkeys(self.settings.get("footnotes", {}).values())
        lines += [f"* {line}" for line in footnotes]
        lines += self.settings.get("notes", [])
        lines += [
            f"Left out: {what}, since {why}."
            for what, why in self.settings.get("left_out", {}).items()
        ]
        return lines + underpowered_families(self.effects)

    def _draws_in_words(self) -> str:
        draws = self.settings.get("draws", 0)
        return f"; {_counted(draws, 'draw')} of what is random" if draws else ""

    def plot(
        self,
        kind: str | None = None,
        metric: str | None = None,
        width: int | None = None,
        title: str | None = None,
    ) -> Any:
        """The experiment's figure, a plotly figure that can be changed and written to files.

        Args:
            kind: How rows are drawn: `forest`, `layers` or `steps` (curves), `heads` or `positions`
                (maps over layers); None draws what the experiment declares.
            metric: Whose rows; None takes those of the declared figure, or with a kind all.
            width: In pixels; None fits the page.
            title: None says what is shown and of which model.

        Raises:
            UsageError: There is no such kind or metric, or the rows cannot be drawn as that.
        """
        figure = from_json(self.figure)
        return draw(figure, self, kind=kind, metric=metric, width=width, title=title)

    def __str__(self) -> str:
        """Summary, table and notes as plain text."""
        table = self._shown().text()
        return printable("\n".join([self.experiment, *self.summary, "", table, "", *self.notes()]))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Verdict, figure and table for Jupyter; the rest folded."""
        return result_html(self, self.notes())

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the result into a folder that is absent or empty.

        Args:
            folder: The folder, which is written completely or not at all.
            overwrite: Replace the files of a result that is there already.

        Raises:
            SinklensError: The folder holds something, or cannot be written.
        """
        target = path_of(folder)
        require_free(target, overwrite)
        write_files(target, self.files())
        return target

    def files(self) -> dict[str, bytes]:
        """The files of the result, by name."""
        tensors = {f"arrays.{name}": array.values for name, array in self.arrays.items()}
        tensors |= {f"per_prompt.{name}": values for name, values in self.per_prompt.items()}
        content = {
            "experiment": self.experiment,
            "summary": self.summary,
            "effects": [asdict(effect) for effect in self.effects],
            "measures": {name: asdict(measure) for name, measure in self.measures.items()},
            "findings": self.findings,
            "draws": self.draws,
            "settings": self.settings,
            "provenance": self.provenance,
            "figure": self.figure,
            "arrays": {
                name: {
                    "dims": list(array.dims),
                    "coords": {dim: list(labels) for dim, labels in array.coords.items()},
                }
                for name, array in self.arrays.items()
            },
        }
        return files_of(content, tensors, self.run)

    @classmethod
    def load(cls, folder: str | Path) -> ExperimentResult:
        """Read a result that `save` wrote.

        Raises:
            SinklensError: There is none, or it is damaged or of another version.
        """
        source = path_of(folder)
        content, tensors, run = read_files(source)
        try:
            return cls(
                experiment=content["experiment"],
                effects=[EffectSize(**with_unit(row)) for row in content["effects"]],
                summary=content["summary"],
                arrays={
                    name: Array(tensors[f"arrays.{name}"], tuple(axes["dims"]), axes["coords"])
                    for name, axes in content["arrays"].items()
                },
                per_prompt={
                    name.removeprefix("per_prompt."): values
                    for name, values in tensors.items()
                    if name.startswith("per_prompt.")
                },
                settings=content["settings"],
                provenance=content["provenance"],
                findings=content["findings"],
                draws=content["draws"],
                measures=measures_in(
                    {name: with_unit(fields) for name, fields in content["measures"].items()}
                ),
                figure=content["figure"],
                run=run,
            )
        except (KeyError, ValueError) as error:  # an array without tensor, labels that do not fit
            raise SinklensError(f"the result in {source} is damaged: {error}") from error


def identity(model: HookedModel, prompts: Prompts) -> dict[str, Any]:
    """All that determines the numbers besides the experiment and its settings."""
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
        "device": ", ".join(devices(model)),
        "threads": torch.get_num_threads(),
        "compatibility_mode": bool(getattr(model, "compatibility_mode", False)),
        "weights_processed": bool(getattr(model, "_weights_processed", False)),
        "bos": prompts.bos,
        "prompts": {
            "n": len(prompts),
            "length": prompts.length,
            **({"longest": prompts.longest} if prompts.longest > prompts.length else {}),
            **({} if prompts.documents is None else {"documents": prompts.documents.tolist()}),
            "source": prompts.source,
            "hash": prompts.hash,
        },
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = ("sinklens", "transformer-lens", "transformers", "torch", "numpy", "scipy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
