"""The results of a diagnosis, and its page of findings."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..core.storage import require_free, write_files
from .result import ExperimentResult


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
