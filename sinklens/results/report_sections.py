"""The sections of a report, as HTML."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

from .attention import AttentionView, scripts
from .claim_table import claim_table
from .command import diagnose_command, run_command
from .diagnosis import Diagnosis
from .first_screen import PROFILE, claims
from .methods import Method, as_html, linked
from .notebook import folded, sentences
from .page import in_script
from .result import ExperimentResult

SENTENCES = 3
"""Of a summary, that are not folded."""
WIDTHS = {"wide": 1000, "narrow": 358}
"""In pixels; the narrow one is that of a page of 390."""
SAID_ELSEWHERE = ("left_out", "notes", "footnotes", "uneven")
STATISTICS = (
    "Intervals are 95 % confidence intervals over prompts, and over draws where there are several. "
    "Differences from a control are paired by prompt and tested by sign flips; those of measures "
    "without sign or about position 0 are judged by models with random weights. q is p after "
    "Benjamini-Hochberg over the rows of one metric; significant means q <= 0.05."
)


def verdict(diagnosis: Diagnosis) -> str:
    """The claims, the table of the rows that they rest on, and the overview."""
    made = claims(diagnosis.results, diagnosis.refused)
    said = "".join(f"<li>{html.escape(claim.text)}</li>" for claim in made)
    table = claim_table(diagnosis.results, made)
    rows = "" if table is None else table.html()
    return f"<ol>{said}</ol>{rows}{figure(diagnosis.plot, 'Overview')}"


def experiment(
    result: ExperimentResult, methods: Mapping[str, Method], elsewhere: Container[str]
) -> str:
    """The question, the first sentences and the figure; folded, all else.

    Args:
        result: The result.
        methods: By experiment how it works.
        elsewhere: Notes that stand under methods.
    """
    method = methods.get(result.experiment)
    question = f'<p class="grey">{html.escape(method.question)}</p>' if method else ""
    first, more = result.summary[:SENTENCES], result.summary[SENTENCES:]
    notes = [note for note in result.notes() if note not in elsewhere]
    settings = {k: v for k, v in result.settings.items() if k not in SAID_ELSEWHERE}
    return (
        question
        + sentences(first)
        + figure(result.plot, result.experiment)
        + (folded(f"{len(more)} more sentences", sentences(more)) if more else "")
        + folded(f"Table of {result.experiment}", result._shown().html())
        + folded("Notes and settings", sentences(notes) + in_a_line(settings))
    )


def attention(views: Mapping[str, AttentionView], no_views: str) -> str:
    """The views with what they need, or why there are none."""
    if not views:
        return f"<p>There are no attention views: {html.escape(no_views)}</p>"
    parts = (f"<h3>{html.escape(title)}</h3>{view.html()}" for title, view in views.items())
    return scripts() + "".join(parts)


def methods_of(
    results: Iterable[ExperimentResult], methods: Mapping[str, Method], notes: Iterable[str]
) -> str:
    """What numbers of several experiments have in common, then formulas and sources of each."""
    parts = [sentences([STATISTICS, *notes])]
    for name in dict.fromkeys(result.experiment for result in results):
        parts.append(f"<h3>{html.escape(name)}</h3>")
        if method := methods.get(name):
            text = folded(f"Formulas and sources of {name}", as_html(method.text))
            parts.append(f"<p>After {linked(method.paper)}.</p>{text}")
        else:
            parts.append("<p>This experiment is not installed here, which would describe it.</p>")
    return "".join(parts)


def in_several(results: Iterable[ExperimentResult]) -> list[str]:
    """The notes that more than one result has."""
    counts = Counter(note for result in results for note in dict.fromkeys(result.notes()))
    return [note for note, count in counts.items() if count > 1]


def provenance(
    results: Mapping[str, ExperimentResult],
    diagnosis: Diagnosis | None,
    methods: Mapping[str, Method],
) -> str:
    """The commands that make the results again, and all that determined the numbers."""
    commands = [
        run_command(result, methods[result.experiment].defaults)
        if result.experiment in methods
        else run_command(result, {})
        for result in results.values()
    ]
    if diagnosis is not None:
        commands = [diagnose_command(diagnosis.results[PROFILE])]
    said = "\n".join(filter(None, commands))
    again = (
        f"<p>Made again by</p><pre>{html.escape(said)}</pre>"
        if all(commands)
        else "<p>Model or prompts were given in Python, so that no command makes this again.</p>"
    )
    first, *others = results.values()
    shared = {k: v for k, v in first.provenance.items() if _alike(k, v, others)}
    own = {
        name: {k: v for k, v in result.provenance.items() if k not in shared}
        for name, result in results.items()
    }
    apart = "".join(folded(f"Of {n}", in_a_line(known)) for n, known in own.items() if known)
    return f"{again}{pairs(shared)}{apart}"


def _alike(name: str, value: Any, results: Iterable[ExperimentResult]) -> bool:
    return all(result.provenance.get(name) == value for result in results)


def figure(plot: Callable[..., Any], label: str) -> str:
    """A plotly figure for a wide and for a narrow page, which is drawn from its data.

    Args:
        plot: Makes it, `width=` pixels wide.
        label: What it is called for those who do not see it.
    """
    drawn = {name: json.loads(plot(width=width).to_json()) for name, width in WIDTHS.items()}
    return (
        f'<div class="figure scrolls" role="group" aria-label="{html.escape(label)}">'
        f'<div></div><script type="application/json">{in_script(drawn)}</script></div>'
    )


def in_a_line(content: Mapping[str, Any]) -> str:
    """Names and values, one after another."""
    said = "; ".join(f"{name} {value}" for name, value in _flat(content))
    return f"<p>{html.escape(said)}</p>"


def pairs(content: Mapping[str, Any]) -> str:
    """Names and values, nested ones by their path, as a table."""
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in _flat(content)
    )
    return f'<div class="scrolls"><table>{rows}</table></div>'


def _flat(content: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Names and values in words, without those that are not set."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        elif value is not None and value != []:
            listed = value if isinstance(value, list) else [value]
            yield f"{before}{name}", ", ".join(map(str, listed))
