"""The results of a diagnosis, its first screen and its page of findings."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ..core.errors import SinklensError, unknown_name
from ..core.json_files import json_bytes, read_json, read_regular
from ..core.paths import path_of
from ..core.storage import ABOUT, parts_of, require_free, write_files
from ..core.terminal import printable
from .checked import require
from .claim_table import claim_table
from .comparison import concat
from .drawing import draw_overview
from .first_screen import PROFILE, claims, first_screen
from .notebook import diagnosis_html
from .result import ExperimentResult
from .shown import Shown

PAGE = "findings.txt"


@dataclass(frozen=True)
class Diagnosis:
    """The default battery on one model.

    Attributes:
        results: Results by experiment.
        findings: One page of sentences.
        refused: By experiment why it was not run.
    """

    results: dict[str, ExperimentResult]
    findings: list[str]
    refused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The first screen: at most 12 lines, a verdict and what it rests on."""
        return printable("\n".join(first_screen(self.results, self.refused)))

    __repr__ = __str__

    def full(self) -> str:
        """The first screen, the rows of its claims, and all findings."""
        return printable("\n".join([str(self), "", *self._below()]))

    def _below(self) -> list[str]:
        """What the whole page has below the first screen; that says what the first finding does."""
        table = self._table()
        rows = [] if table is None else [*table.text().split("\n"), ""]
        return [*rows, *self.findings[1:]]

    def _table(self) -> Shown | None:
        return claim_table(self.results, claims(self.results, self.refused))

    def table(self) -> pd.DataFrame:
        """The rows that the claims of the first screen rest on, each with its control."""
        table = self._table()
        return pd.DataFrame() if table is None else table.table

    def _repr_html_(self) -> str:
        """The first screen and the overview; folded, all findings and results, for Jupyter."""
        tables = {name: result._repr_html_() for name, result in self.results.items()}
        table, screen = self._table(), str(self).split("\n")
        rows = "" if table is None else table.html()
        return diagnosis_html(self.results, screen, rows, self.findings[1:], tables)

    def to_dataframe(self) -> pd.DataFrame:
        """All rows of all experiments in long form, as of `ExperimentResult`."""
        return concat(self.results.values())

    def plot(
        self,
        experiment: str | None = None,
        width: int | None = None,
        title: str | None = None,
    ) -> Any:
        """The overview, or the figure of one experiment: a plotly figure.

        Args:
            experiment: Whose figure; None draws the overview.
            width: In pixels; None fits the page, for the overview a wide one; where its panels
                do not fit beside each other, they stand below each other.
            title: None says what is shown and of which model.

        Raises:
            UsageError: The diagnosis has no such experiment.
            SinklensError: The overview is asked for, and there is no profile of sinks.
        """
        if experiment is None:
            return draw_overview(self.results, width=width, title=title)
        if experiment not in self.results:
            raise unknown_name("experiment of this diagnosis", experiment, self.results)
        return self.results[experiment].plot(width=width, title=title)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `findings.txt`, `diagnosis.json` and one result folder an experiment.

        Raises:
            SinklensError: The folder holds something, or cannot be written.
        """
        target = path_of(folder)
        require_free(target, overwrite)
        files = {PAGE: "\n".join([*self.findings, ""]).encode("utf-8", "backslashreplace")}
        files[ABOUT] = json_bytes({"experiments": list(self.results), "refused": self.refused})
        for name, result in self.results.items():
            files |= {f"{name}/{file}": content for file, content in result.files().items()}
        write_files(target, files)
        return target

    @classmethod
    def load(cls, folder: str | Path) -> Diagnosis:
        """Read a diagnosis that `save` wrote.

        Raises:
            SinklensError: There is none, or it is damaged or of another version.
        """
        source = path_of(folder)
        page = source / PAGE
        if not all(map(os.path.isfile, (page, source / PROFILE / "result.json"))):
            raise SinklensError(
                f"{source} holds no diagnosis, which is a {PAGE} and a folder for each experiment, "
                f"{PROFILE} among them; ExperimentResult.load reads a single result"
            )
        parts = parts_of(source) or sorted(
            path.parent.name for path in source.glob("*/result.json")
        )
        results = {name: ExperimentResult.load(source / name) for name in parts}
        try:
            findings = read_regular(page).decode("utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise SinklensError(f"{page} is damaged: {error}") from error
        refused = read_json(source / ABOUT).get("refused", {}) if (source / ABOUT).is_file() else {}
        require(refused, dict[str, str], "refused")
        return cls(results, findings, refused)
