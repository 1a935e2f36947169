"""What works on which architecture, tried on tiny models: `python -m tests.limits`.

It writes `docs/limits.md`. Every experiment is run on every architecture with all of its
conditions, and its own reasons are kept where it refuses or leaves something out. Numbers are
compared with plain Hugging Face code in `tests/architectures`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sinklens.models.capabilities import SITES
from sinklens.runner import registry
from tests.architectures.cells import Cell, cells
from tests.architectures.models import ARCHITECTURES

PAGE = Path(__file__).parent.parent / "docs" / "limits.md"
OF_WEIGHTS = re.compile(
    "no channel is an outlier|has a sink mass above|reach no layer|hold a massive entry"
    "|not distinguishable from its null|the median could be|no entry is massive|cannot be counted"
    "|writes most of|wavelets takes|planes leave none|no power to speak of"
)
"""Reasons that are about these weights and prompts, and not about the architecture."""
INTRODUCTION = """# Limits by architecture

Written by `python -m tests.limits`, which tries everything on tiny random models of each
architecture (`tests/architectures/models.py`). This page is held to what it finds, and numbers to
plain Hugging Face code, by `python -m pytest --architectures tests/architectures`; the default
tests do so for two. For a model of your own, `sinklens check MODEL` tries the same sites. What
depends on weights or prompts rather than the architecture (whether a model has sink heads, spikes
or outlier dimensions) is left out. In hybrids all is about the layers with attention, which results
name. Where TransformerLens does not show which experts tokens go to (below), there are no rows
`experts_changed`, which results say.
"""


@dataclass(frozen=True)
class Outcome:
    """Whether an experiment runs on a model, and what it refuses or leaves out, with reasons."""

    runs: bool
    reasons: tuple[str, ...]

    @property
    def word(self) -> str:
        """`works`, `partly` or `refused`."""
        if not self.runs:
            return "refused"
        return "partly" if self.reasons else "works"


@dataclass(frozen=True)
class Row:
    """What was found of one architecture.

    Attributes:
        kind: What is said of its attention.
        sites: The kinds of site where interventions do what they mean.
        outcomes: By experiment.
    """

    kind: str
    sites: tuple[str, ...]
    outcomes: Mapping[str, Outcome]


def outcome(cell: Cell) -> Outcome:
    """What the page says of a cell."""
    if cell.refusal:
        return Outcome(False, (cell.refusal,))
    reasons = (f"{what}: {why}" for what, why in cell.left_out.items())
    return Outcome(True, tuple(one for one in reasons if not OF_WEIGHTS.search(one)))


def row(name: str) -> Row:
    """Try everything on one architecture, in float32 on prompts with BOS."""
    found = cells(name, "float32", True)
    if found.capabilities is None:
        refused = Outcome(False, (found.refusal,))
        return Row("", (), dict.fromkeys(registry.all_experiments(), refused))
    capabilities = found.capabilities
    layers = capabilities.attention
    kind = "every layer" if len(layers) == capabilities.n_layers else "no layer that is shown"
    if 0 < len(layers) < capabilities.n_layers:
        kind = "some layers"
    kinds = [
        kind,
        *(["both directions"] if not capabilities.causal else []),
        *(["windows"] if any(capabilities.windows) else []),
        *(["masks of another form"] if any(capabilities.other_masks) else []),
        *(["gated"] if capabilities.gated else []),
        *(["learned sinks"] if capabilities.learned_sinks else []),
        *(["experts"] if capabilities.experts else []),
        *(["experts that are not shown"] if capabilities.hidden_experts else []),
    ]
    sites = tuple(site for site in SITES if capabilities.edits[site])
    outcomes = {name: outcome(cell) for name, cell in found.by_experiment.items()}
    return Row(", ".join(kinds), sites, outcomes)


def page() -> str:
    """The whole page."""
    rows = {}
    for name in ARCHITECTURES:
        rows[name] = row(name)
        print(name, {k: v.word for k, v in rows[name].outcomes.items()}, file=sys.stderr)
    return written(rows)


def written(rows: Mapping[str, Row]) -> str:
    """The page of these rows."""
    notes: dict[str, int] = {}

    def cell(tried: Outcome) -> str:
        numbers = ", ".join(str(notes.setdefault(why, len(notes) + 1)) for why in tried.reasons)
        return f"{tried.word} ({numbers})" if numbers else tried.word

    experiments = list(registry.all_experiments())
    tried = {
        name: [cell(found.outcomes[experiment]) for experiment in experiments]
        for name, found in rows.items()
    }
    sites = {
        name: [found.kind, *("yes" if site in found.sites else "no" for site in SITES)]
        for name, found in rows.items()
        if found.kind
    }
    reasons = [f"{number}. {why}" for why, number in notes.items()]
    return "\n".join(
        [
            INTRODUCTION,
            *("## Experiments", "", *_table([f"`{name}`" for name in experiments], tried), ""),
            *("Refused or left out:", "", *reasons, ""),
            *("## Interventions", "", "Whether an edit does what it means:", ""),
            *(*_table(["attention in", *SITES], sites), ""),
        ]
    )


def _table(columns: list[str], rows: Mapping[str, list[str]]) -> list[str]:
    return [
        f"| {' | '.join(['architecture', *columns])} |",
        f"|{'---|' * (len(columns) + 1)}",
        *(f"| {' | '.join([name, *cells])} |" for name, cells in rows.items()),
    ]


def on_page(name: str) -> dict[str, tuple[str, frozenset[str]]]:
    """By experiment, the word and the reasons that the page has for an architecture."""
    text = PAGE.read_text("utf-8")
    notes = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    header = re.search(r"^\| architecture \| (`.*`) \|$", text, re.MULTILINE)
    line = re.search(rf"^\| {re.escape(name)} \| (.*) \|$", text, re.MULTILINE)
    assert header is not None and line is not None
    found = {}
    columns = [column.strip("`") for column in header[1].split(" | ")]
    for experiment, cell in zip(columns, line[1].split(" | "), strict=True):
        word, _, numbers = cell.partition(" ")
        found[experiment] = word, frozenset(notes[n] for n in re.findall(r"\d+", numbers))
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
