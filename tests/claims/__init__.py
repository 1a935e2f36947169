"""Published claims beside what is seen here: `python -m tests.claims [--model MODEL]`.

It writes `docs/claims.md`. Every claim names a paper, the run that measures it, one row of its
result and a rule; the verdict is what the rule makes of the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sinklens
from sinklens.results.record import Record
from tests.claims.measured import cell, measure_of
from tests.claims.published import CLAIMS
from tests.claims.rules import NOT_TESTABLE, Verdict

PAGE = Path(__file__).parent.parent.parent / "docs" / "claims.md"
INTRODUCTION = """# Published claims

Written by `python -m tests.claims`, which runs the commands below and applies the rule that stands
with each claim; `tests/test_claims.py` holds the column of `rope` to what it finds. The papers
measured other, mostly larger models: "confirmed" means that the claim holds on this model too; "not
confirmed", that it does not or that the interval leaves it open (the cell says which); "not
testable", that the model or the measure cannot answer. Brackets hold 95 % intervals over what is
counted last.
"""


def cells(model: Any) -> list[str]:
    """The column of a model, each run made once."""
    results: dict[str, Record | str] = {}
    column = []
    for claim in CLAIMS:
        command = claim.measured.command()
        if command not in results:
            try:
                results[command] = claim.measured.result(model)
            except sinklens.SinklensError as error:
                results[command] = str(Verdict(NOT_TESTABLE, f"refused: {error}"))
        result = results[command]
        column.append(result if isinstance(result, str) else cell(claim, result))
    return column


def page(columns: Mapping[str, Sequence[str]]) -> str:
    """The whole page, from the column of every model."""
    commands = list(dict.fromkeys(claim.measured.command() for claim in CLAIMS))
    rows = [["claim", "run and row", "confirmed if", *columns], ["---"] * (3 + len(columns))]
    for place, claim in enumerate(CLAIMS):
        run = commands.index(claim.measured.command()) + 1
        row = f"{claim.row['kind']} `{claim.row['metric']}`, `{claim.row['condition']}`"
        against = f", against `{claim.row['against']}`" if claim.row["against"] else ""
        says, rule = f"{claim.says} ({claim.paper})", claim.rule.in_words(measure_of(claim))
        seen = [column[place] for column in columns.values()]
        rows.append([says, f"{run}: {row}{against}", rule, *seen])
    table = [f"| {' | '.join(row)} |" for row in rows]
    runs = [f"{number}. `{command}`" for number, command in enumerate(commands, 1)]
    return "\n".join([INTRODUCTION, *table, "", "## Runs", "", *runs, ""])
