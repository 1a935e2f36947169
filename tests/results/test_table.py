"""The table: what is read first stands first, and the same numbers in every form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from sinklens.results.estimates import Effect, Measure, Reference, Sample, rows_of
from sinklens.results.result import ExperimentResult
from sinklens.results.shown import GREY
from sinklens.stats.effects import Row, with_q_values

LOSS, MASS = Measure("nats", "the clean run"), Measure("share of attention", "uniform attention")
ONE, OTHER = (
    (noise - noise.mean()) / 20 for noise in np.random.default_rng(0).standard_normal((2, 12))
)


def of(rows: Sequence[Row]) -> ExperimentResult:
    return ExperimentResult(
        experiment="test",
        effects=[row.effect for row in with_q_values(rows)],
        summary=["Found."],
        arrays={},
        per_prompt={},
        settings={"footnotes": {"zero": "Beside few heads."}},
        provenance={
            "bos": True,
            "model": {"name": "tiny"},
            "prompts": {"n": 12, "length": 8, "source": "text"},
        },
    )


@pytest.fixture(scope="module")
def result() -> ExperimentResult:
    """A large effect with two controls, and none."""
    rows = []
    for condition, size in (("zero", 1.0), ("mean", 0.0)):
        effect = Effect(size + 0.1 + ONE, 0.0)
        later = Reference(Effect(0.1 + OTHER, 0.0), "later_position")
        heads = Reference(Effect(0.2 + OTHER, 0.0), "other_heads")
        controls = [later, heads] if size else [later]
        rows += rows_of("loss", LOSS, condition, effect, *controls, prompts=12, seed=0)
    rows += rows_of("mass", MASS, "position0", Sample(0.4 + ONE, 0.1), prompts=12, seed=0)
    return of(rows)


def test_uneven_rows_are_marked_where_they_stand(result: ExperimentResult) -> None:
    mean = result.effects.index(result.find(condition="mean", kind="treatment"))
    later = {"condition": "zero", "kind": "contrast", "against": "later_position"}
    numbers = [mean, result.effects.index(result.find(**later)), 10_000]
    marked = replace(result, settings={**result.settings, "uneven": numbers}).table()
    assert [cell.endswith("]") for cell in marked["effect [95 %]"].dropna()] == [True, False, True]
    assert marked["effect [95 %]"][2].endswith("] ~")
    assert marked["difference [95 %]"][0].endswith("] ~ *")
    plain = result.table()
    assert not plain.to_string().count("~")


def test_the_contrast_stands_beside_the_effect(result: ExperimentResult) -> None:
    table = result.table()
    assert list(table.columns) == [
        *("condition", "metric", "effect [95 %]", "difference [95 %]", "against"),
        *("q (difference)", "control or null", "q", "baseline", "value", "unit", "over"),
    ]
    assert table["condition"].fillna("").tolist() == ["zero", "", "mean", "position0"]
    contrast = result.find(condition="zero", kind="contrast", against="later_position")
    first = table.iloc[0]
    assert first["difference [95 %]"].startswith(f"+{contrast.effect:.3g} [")
    assert first["difference [95 %]"].endswith(" *")  # a note is about it


def test_p_is_there_on_demand(result: ExperimentResult) -> None:
    full = result.table(full=True)
    assert set(full.columns) - set(result.table().columns) == {
        *("p", "p (difference)", "d_z", "draws")
    }
    row = result.find(condition="zero", kind="treatment")
    assert full.loc[0, "p"] == f"{row.p_value:.2g}" and full.loc[0, "draws"] == "1"


def test_the_numeric_table_holds_the_numbers(result: ExperimentResult) -> None:
    table = result.table(numeric=True, full=True)
    assert len(table) == len(result.table()) == 4
    for line in table.to_dict("records"):
        row = result.find(metric=line["metric"], condition=line["condition"], against=None)
        for name in ("effect", "ci_low", "ci_high", "baseline", "value"):
            assert line[name] == getattr(row, name)
        if row.p_value is not None:
            assert (line["p"], line["q"]) == (row.p_value, row.q_value)
        if line["against"] == line["against"]:  # not NaN
            where = {"condition": line["condition"], "against": line["against"]}
            contrast = result.find(kind="contrast", **where)
            assert line["difference"] == contrast.effect
            assert line["q_difference"] == contrast.q_value
    assert table["difference"].dtype == table["effect"].dtype == float
    assert "p" not in result.table(numeric=True)


def test_what_all_rows_share_is_a_line_above(result: ExperimentResult) -> None:
    losses = replace(result, effects=[row for row in result.effects if row.metric == "loss"])
    text = str(losses)
    assert "All rows: metric loss, baseline 0, nats, 12 prompts.\ncondition" in text
    assert "metric" in losses.table() and "share of attention" not in text
    assert "All rows: 12 prompts.\n" in str(result)
    one = replace(result, effects=[row for row in result.effects if row.condition == "position0"])
    assert "All rows" not in str(one) and "12 prompts" in str(one)


def test_what_is_not_significant_is_grey(result: ExperimentResult) -> None:
    lines = re.findall(r"<tr.*?</tr>", result._repr_html_())[1:]
    assert len(lines) == 4
    assert [GREY in line for line in lines] == [False, False, True, False]
    untested = replace(
        result, effects=[replace(row, p_value=None, q_value=None) for row in result.effects]
    )
    lines = re.findall(r"<tr.*?</tr>", untested._repr_html_())[1:]
    assert not any(GREY in line for line in lines)  # "not tested" is no verdict


def test_nothing_is_printed_below_rounding(result: ExperimentResult) -> None:
    tiny = {"effect": -3.469e-18, "ci_low": -1e-9, "ci_high": 1.347e-244, "value": -3.469e-18}
    tiny |= {"p_value": 1.5e-13, "q_value": 1.5e-13, "d_z": -1e-12, "unit": "", "baseline": -0.0}
    shown = replace(result, effects=[replace(row, **tiny) for row in result.effects])
    for text in (str(shown), shown._repr_html_(), shown.to_markdown(), shown.to_latex()):
        assert not re.search(r"e-\d\d|-0(?![.\d])", text), text
    assert (shown.table(full=True)["p"].dropna() == "<1e-4").all()
    assert shown.table()["effect [95 %]"].dropna().unique().tolist() == ["0 [no spread]"]
    assert "unit" not in shown.table()


def test_markdown_and_latex_hold_the_short_table(result: ExperimentResult) -> None:
    """Parsed again: as many columns in every row, and the cells of the table."""
    table = result.table().drop(columns="over")
    lines = [line for line in result.to_markdown().splitlines() if line.startswith("|")]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert len(rows) == 2 + len(table) and {len(row) for row in rows} == {len(table.columns)}
    cells = [[re.sub(r"\\(.)", r"\1", cell).strip() for cell in row] for row in rows]
    assert cells[0] == list(table.columns)
    assert cells[2:] == table.fillna("").to_numpy().tolist()

    latex = result.to_latex()
    body = latex.split("\\midrule\n")[1].split("\\bottomrule")[0]
    rows = [line.removesuffix(" \\\\").split(" & ") for line in body.strip().splitlines()]
    assert {len(row) for row in rows} == {len(table.columns)} and len(rows) == len(table)
    assert rows[0][0] == "zero" and "later\\_position" in body
    assert "\\caption{All rows: 12 prompts.}" in latex


@pytest.mark.parametrize("name", ["a|b", "a_b", "a<b", "50%", "a&b", "a\\b", "#1", "x^2", "~"])
def test_names_are_literal_in_every_form(result: ExperimentResult, name: str) -> None:
    odd = replace(result, effects=[replace(row, condition=name) for row in result.effects])
    lines = [line for line in odd.to_markdown().splitlines() if line.startswith("|")]
    assert len({len(re.split(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "<b" not in odd._repr_html_().replace("<br", "").replace("<body", "")
    body = odd.to_latex().split("\\begin{tabular}")[1]
    assert not re.search(r"(?<!\\)[_%#^~]", body.split("\\toprule")[1])
