"""The results of a diagnosis, and its page of findings."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..core.errors import SinklensError, unknown_name
from ..core.storage import require_free, write_files
from .comparison import concat
from .result import ExperimentResult

PAGE = "findings.txt"


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
        """All rows of all experiments in long form, as of `ExperimentResult`."""
        return concat(self.results.values())

    def plot(self, experiment: str = "sink_profile") -> Any:
        """The figure of one experiment (plotly).

        Raises:
            UsageError: The diagnosis has no such experiment.
        """
        if experiment not in self.results:
            raise unknown_name("experiment of this diagnosis", experiment, self.results)
        return self.results[experiment].plot()

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `findings.txt` and one result folder an experiment.

        Raises:
            SinklensError: The folder holds something, or cannot be written.
        """
        target = Path(folder)
        require_free(target, overwrite)
        files = {PAGE: f"{self}\n".encode()}
        for name, result in self.results.items():
            files |= {f"{name}/{file}": content for file, content in result._files().items()}
        write_files(target, files)
        return target

    @classmethod
    def load(cls, folder: str | Path) -> Diagnosis:
        """Read a diagnosis that `save` wrote.

        Raises:
            SinklensError: There is none, or it is damaged or of another version.
        """
        source = Path(folder)
        page, parts = source / PAGE, sorted(path.parent for path in source.glob("*/result.json"))
        if not (page.is_file() and parts):
            raise SinklensError(
                f"{source} holds no diagnosis, which is a {PAGE} and a folder for each experiment; "
                "ExperimentResult.load reads a single result"
            )
        results = [ExperimentResult.load(part) for part in parts]
        try:
            findings = page.read_text("utf-8").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SinklensError(f"{page} is damaged: {error}") from error
        return cls({result.experiment: result for result in results}, findings)
