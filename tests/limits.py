"""What works on which model family, tried on the tiny models: `python -m tests.limits`.

It writes `docs/limits.md`. Every experiment is run on every family with all of its conditions, and
its own reasons are kept where it refuses or leaves something out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sinklens
from sinklens.models.capabilities import SITES, Capabilities, check
from sinklens.models.prompts import corpus
from sinklens.runner import registry
from tests import families

PAGE = Path(__file__).parent.parent / "docs" / "limits.md"
SMALL = {"draws": 1, "null_models": 0, "progress": False}
HOOKS = {
    "embedding": "`replace_bos_embedding`",
    "residual": "`patch_position0`, `replace_entries`, `shift_entries`",
    "z": "`ablate_heads`, `drop_edge_unnormalised`",
    "pattern": "`drop_edge`",
    "scores": "none; probes read logits there",
    "key": '`patch_position0(part="key")`',
    "value": '`patch_position0(part="value")`',
}
INTRODUCTION = """# Limits by model family

Written by `python -m tests.limits`, which tries everything on tiny random models of each family
(`tests/families.py`); `tests/test_limits.py` holds this page to what it finds. For a model of your
own, `sinklens check MODEL` tries the same sites. What depends on the weights rather than the family
(whether a model has sink heads, spikes, outlier dimensions or training checkpoints) can differ from
these random models.
"""


@dataclass(frozen=True)
class Outcome:
    """Whether an experiment runs on a family, and what it refuses or leaves out, with reasons."""

    runs: bool
    reasons: tuple[str, ...]


def outcome(name: str, model: Any, prompts: sinklens.Prompts) -> Outcome:
    """Run an experiment with the options of its smallest run, and without them if it refuses."""
    smallest = {k: v for k, v in registry.get(name).smallest.items() if k != "conditions"}
    refusals: list[str] = []
    for settings in (smallest, {}):
        try:
            result = sinklens.run(name, model, prompts, **{**SMALL, **settings})
        except sinklens.SinklensError as error:
            refusals = [str(error)]
        else:
            left_out = result.settings["left_out"].items()
            return Outcome(True, (*refusals, *(f"{what}: {why}" for what, why in left_out)))
    return Outcome(False, tuple(refusals))


def page() -> str:
    """The whole page."""
    capabilities: dict[str, Capabilities] = {}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in registry.all_experiments()}
    for family in families.FAMILIES:
        model: Any = families.boot(family)
        capabilities[family] = check(model)
        prompts = sinklens.prompts(model, corpus()[:2000], n=4, length=12, bos=True)
        for name, by_family in outcomes.items():
            tried, architecture = outcome(name, model, prompts), check(model).architecture
            reasons = tuple(why.replace(architecture, "this family") for why in tried.reasons)
            by_family.append(Outcome(tried.runs, reasons))
    return "\n".join([INTRODUCTION, *_sites(capabilities), "", *_experiments(outcomes), ""])


def _table(first: str, rows: Iterable[tuple[str, Iterable[str]]]) -> list[str]:
    names = list(families.FAMILIES)
    return [
        f"| {' | '.join([first, *names])} |",
        f"|{'---|' * (len(names) + 1)}",
        *(f"| {' | '.join([name, *cells])} |" for name, cells in rows),
    ]


def _sites(capabilities: Mapping[str, Capabilities]) -> list[str]:
    """Which interventions change the logits."""

    def row(holds: Callable[[Capabilities], bool]) -> list[str]:
        return ["yes" if holds(found) else "no" for found in capabilities.values()]

    rows = [(f"{site}: {HOOKS[site]}", row(lambda c, s=site: c.edits[s])) for site in SITES]
    rows += [
        ("causal: losses can be measured", row(lambda c: c.causal)),
        ("sliding windows", row(lambda c: any(c.windows))),
    ]
    return ["## Interventions", "", *_table("site: hooks", rows)]


def _experiments(outcomes: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """Which experiments run, and why not all of them do."""
    notes: dict[str, int] = {}

    def cell(tried: Outcome) -> str:
        numbers = ", ".join(str(notes.setdefault(why, len(notes) + 1)) for why in tried.reasons)
        return f"{'partly' if tried.runs else 'no'} ({numbers})" if numbers else "yes"

    rows = [(f"`{name}`", [cell(tried) for tried in row]) for name, row in outcomes.items()]
    table = _table("experiment", rows)
    reasons = [f"{number}. {why}" for why, number in notes.items()]
    return ["## Experiments", "", *table, "", "Refused or left out:", "", *reasons]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
