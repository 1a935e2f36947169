"""One HTML page of results, readable without a network: verdict, figures, tables, methods.

Experiments stand in the order of the diagnosis, others after them as they are given. What is said
of each: verdict and figure, then folded the table, notes and settings. Questions, formulas and
sources stand under methods, versions and commands under provenance (`report_sections`).
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from .attention import AttentionView
from .diagnosis import Diagnosis
from .first_screen import NOT_RUN, PROFILE, claims, heading, what_was_run
from .methods import Method
from .notebook import sentences
from .page import page, plotly, require_new, write_page
from .report_sections import (
    attention,
    experiment,
    in_several,
    methods_of,
    provenance,
    verdict,
)
from .result import ExperimentResult

ORDER = (PROFILE, *NOT_RUN)
NAMED = 3
"""Experiments of a title; the navigation has all names."""


@dataclass(frozen=True)
class Report:
    """What a page is made of.

    Attributes:
        results: Results by experiment.
        diagnosis: The diagnosis that they are of, if they are.
        methods: By experiment how it works.
        views: Attention views by heading.
        no_views: Why there are none, where that is to be said.
    """

    results: Mapping[str, ExperimentResult]
    diagnosis: Diagnosis | None = None
    methods: Mapping[str, Method] = field(default_factory=dict)
    views: Mapping[str, AttentionView] = field(default_factory=dict)
    no_views: str = ""

    def save(self, file: str | Path, *, overwrite: bool = False) -> Path:
        """Write the page completely or not at all.

        Args:
            file: The HTML file.
            overwrite: Replace a file that is there already.

        Raises:
            SinklensError: The file exists, or cannot be written.
        """
        target = require_new(file, overwrite)
        return write_page(self.html(), target)

    def html(self) -> str:
        """The page; text stands before the scripts, so that it can be read while they are."""
        sections = list(self._sections())
        links = "".join(
            f'<li><a href="#{name}">{html.escape(title)}</a></li>' for name, title, _ in sections
        )
        parts = "".join(
            f'<section id="{name}"><h2>{html.escape(title)}</h2>{content}</section>'
            for name, title, content in sections
        )
        title, about = self._heading()
        return page(
            title,
            f'<a class="skip" href="#{sections[0][0]}">Skip to the results</a>'
            f"<header><h1>{html.escape(title)}</h1><p>{html.escape(about)}</p></header>"
            f'<nav aria-label="Sections"><ul>{links}</ul></nav><main>{parts}</main>{plotly()}',
        )

    def _heading(self) -> tuple[str, str]:
        """The title, and what was run."""
        first = next(iter(self.results.values())).provenance
        written = f"Written {date.today():%d %B %Y}, by sinklens {first['versions']['sinklens']}."
        if self.diagnosis is not None:
            results, refused = self.diagnosis.results, self.diagnosis.refused
            return heading(results, claims(results, refused)), f"{what_was_run(results)}. {written}"
        models = dict.fromkeys(one.provenance["model"]["name"] for one in self.results.values())
        names = ", ".join(self._in_order())
        what = names if len(self.results) <= NAMED else f"{len(self.results)} experiments"
        return f"{', '.join(models)}: {what}", written

    def _in_order(self) -> dict[str, ExperimentResult]:
        """The results as they stand on the page."""
        ranks = {name: rank for rank, name in enumerate(ORDER)}
        ordered = sorted(
            self.results, key=lambda name: ranks.get(self.results[name].experiment, len(ORDER))
        )
        return {name: self.results[name] for name in ordered}

    def _sections(self) -> Iterator[tuple[str, str, str]]:
        """The name, title and content of each section."""
        results = self._in_order()
        notes = in_several(results.values())
        if self.diagnosis is not None:
            yield "verdict", "Verdict", verdict(self.diagnosis)
        for number, (name, result) in enumerate(results.items(), 1):
            yield f"experiment-{number}", name, experiment(result, self.methods, notes)
        if self.diagnosis is not None and self.diagnosis.refused:
            reasons = [f"{name}: {why}" for name, why in self.diagnosis.refused.items()]
            yield "not-run", "Not run", sentences(reasons)
        if self.views or self.no_views:
            yield "attention", "Attention", attention(self.views, self.no_views)
        yield "methods", "Methods", methods_of(results.values(), self.methods, notes)
        yield "provenance", "Provenance", provenance(results, self.diagnosis, self.methods)
