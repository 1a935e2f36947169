"""Figures of rows whose numbers are known: every mark is a row's number, and says so."""

from __future__ import annotations

import base64
import re
import struct
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plotly.io
import pytest
import torch

import sinklens
from sinklens.core.errors import SinklensError
from sinklens.results.drawing import overview_pictures, to_svg
from sinklens.results.drawing.forests import MOST_ROWS
from sinklens.results.drawing.static import WIDTH
from sinklens.results.estimates import Effect, Measure, Reference, Sample, rows_of
from sinklens.results.figures import ByHead, Heatmap, Lines, Stack, from_json, to_json
from sinklens.results.record import Array
from sinklens.results.result import ExperimentResult
from sinklens.stats.effects import Row, with_q_values

pytestmark = pytest.mark.slow  # many models or pages

LOSS, MASS = Measure("nats", "the clean run"), Measure("share of attention", "uniform attention")
NOISE = np.random.default_rng(0).standard_normal((4, 12)) / 20
STEPS = (0, 64, 256)


def of(rows: Sequence[Row], **fields: Any) -> ExperimentResult:
    model = fields.pop("model", {})
    return ExperimentResult(
        experiment="test",
        effects=[row.effect for row in with_q_values(rows)],
        summary=["One.", "Two.", "Three.", "Four."],
        arrays=fields.pop("arrays", {}),
        per_prompt={},
        settings={},
        measures={"loss": LOSS, "mass": MASS},
        provenance={
            "bos": True,
            "model": {"name": "tiny", **model},
            "prompts": {"n": 12, "length": 8, "source": "text"},
        },
        **fields,
    )


def treated(condition: str, size: float, prompts: int = 12, **place: Any) -> Iterator[Row]:
    """A treatment of this size, and a control of 0.1."""
    control = Reference(Effect((0.1 + NOISE[1])[:prompts], 0.0), "later_position")
    effect = Effect((size + NOISE[0])[:prompts], 0.0)
    place = {"place": sinklens.results.estimates.Place(**place)} if place else {}
    yield from rows_of("loss", LOSS, condition, effect, control, prompts=prompts, seed=0, **place)


def points(drawn: Any, name: str) -> list[tuple[float, float]]:
    """What the marks of a name show, without bands."""
    traces = [trace for trace in drawn.data if trace.name == name and trace.fill is None]
    return [pair for trace in traces for pair in zip(trace.x, trace.y, strict=True)]


def headings(drawn: Any) -> str:
    return " ".join(note.text.replace("<br>", " ") for note in drawn.layout.annotations)


def test_a_forest_holds_effects_intervals_and_controls() -> None:
    result = of([*treated("zero", 1.0), *treated("mean", 0.1)])
    drawn = result.plot()
    zero, mean = (result.find(condition=name, kind="treatment") for name in ("zero", "mean"))
    assert [x for x, _ in points(drawn, "intervention")] == [zero.effect]
    assert [x for x, _ in points(drawn, "not significantly different")] == [mean.effect]
    controls = [result.find(condition=name, kind="control").effect for name in ("zero", "mean")]
    assert [x for x, _ in points(drawn, "control: later position")] == controls
    (trace,) = (trace for trace in drawn.data if trace.name == "intervention")
    assert trace.x[0] + trace.error_x.array[0] == pytest.approx(zero.ci_high)
    assert trace.x[0] - trace.error_x.arrayminus[0] == pytest.approx(zero.ci_low)
    assert trace.marker.symbol == "square" and "95 % intervals" in drawn.layout.title.text
    assert drawn.layout.yaxis.ticktext == ("zero", "mean")
    assert drawn.layout.xaxis.title.text == "change in loss (nats)"


def test_a_measurement_stands_at_its_value_beside_its_null() -> None:
    sample = Sample(0.4 + NOISE[0], 0.1)
    null = Reference(Sample(0.2 + NOISE[1], 0.1), "row_permuted", "null")
    result = of(list(rows_of("mass", MASS, "position0", sample, null, prompts=12, seed=0)))
    drawn, row = result.plot(), result.find(kind="measurement")
    assert points(drawn, "this model")[0][0] == row.value
    assert points(drawn, "analytic null")[0][0] == row.baseline == pytest.approx(0.1)
    assert points(drawn, "null: row permuted")[0][0] == result.find(kind="null").value
    assert "uniform attention" in headings(drawn) + drawn.layout.title.text
    assert drawn.layout.xaxis.tickformat == ".0%"


def test_rows_by_layer_are_curves_with_bands() -> None:
    sizes = {"zero": (0.5, 0.3, 0.1), "mean": (0.2, 0.1, 0.0)}
    rows = [
        row
        for name, every in sizes.items()
        for layer, size in enumerate(every)
        for row in treated(name, size, layer=layer)
    ]
    result = of(rows)
    drawn = result.plot()
    for name in sizes:
        effects = [result.find(condition=name, kind="treatment", layer=n).effect for n in range(3)]
        assert points(drawn, name) == list(enumerate(effects))
    bands = [trace for trace in drawn.data if trace.fill == "toself"]
    assert len(bands) == 2
    first = result.find(condition="zero", kind="treatment", layer=0)
    ends = sorted(y for x, y in zip(bands[0].x, bands[0].y, strict=True) if x == 0)
    assert ends == pytest.approx([first.ci_low, first.ci_high])
    assert len(points(result.plot("forest"), "control: later position")) == 6


def test_rows_by_step_are_curves_with_their_null() -> None:
    rows = [
        row
        for step in STEPS
        for row in rows_of(
            "mass", MASS, f"step{step}", Sample(step / 512 + NOISE[0], 0.1), prompts=12, seed=0
        )
    ]
    result = of(rows)
    drawn = result.plot()
    values = [result.find(condition=f"step{step}").value for step in STEPS]
    assert points(drawn, "this model") == list(zip(STEPS, values, strict=True))
    assert [y for _, y in points(drawn, "null: uniform attention")] == pytest.approx([0.1] * 3)


def test_a_thousand_heads_are_a_map_and_say_who_they_are() -> None:
    rows = [
        row
        for layer in range(32)
        for head in range(32)
        for row in rows_of(
            "loss",
            LOSS,
            "zero",
            Effect(layer + head / 100 + NOISE[0][:3], 0.0),
            prompts=3,
            seed=0,
            place=sinklens.results.estimates.Place(layer, head),
        )
    ]
    result = of(rows)
    drawn = result.plot()
    (cells,) = drawn.data
    for layer, head in ((0, 0), (18, 8), (31, 5)):
        effect = result.find(layer=layer, head=head).effect
        assert cells.z[layer][head] == effect
        assert f"L{layer}H{head}" in cells.customdata[layer][head]
    assert drawn.layout.height < 800
    forest = result.plot("forest")
    assert f"the largest {MOST_ROWS} of 1024 rows" in headings(forest)
    shown = [x for trace in forest.data for x in trace.x]
    largest = sorted((abs(row.effect) for row in result.effects), reverse=True)[:MOST_ROWS]
    assert sorted(map(abs, shown), reverse=True) == largest
    assert forest.layout.height < 40 * MOST_ROWS


def test_many_conditions_by_layer_are_cut_and_said() -> None:
    rows = [
        row
        for number in range(9)
        for layer in range(3)
        for row in treated(f"c{number}", float(number), layer=layer)
    ]
    drawn = of(rows).plot()
    assert "the largest 6 of 9 conditions" in headings(drawn)
    named = {trace.name for trace in drawn.data}
    assert "c8" in named and "c2" not in named


def test_rows_by_position_are_a_map() -> None:
    places = ((0, ""), (3, "@3"), (5, "@5"))
    rows = [
        row
        for place, suffix in places
        for layer in range(3)
        for row in treated(f"zero{suffix}", place + layer / 10, layer=layer)
    ]
    result = of(rows)
    drawn = result.plot()
    (cells,) = drawn.data
    assert drawn.layout.xaxis.ticktext == ("0", "3", "5")
    for column, (_, suffix) in enumerate(places):
        found = result.find(condition=f"zero{suffix}", kind="treatment", layer=2)
        assert cells.z[2][column] == found.effect


def test_one_prompt_is_a_point_without_an_interval() -> None:
    drawn = of(list(treated("zero", 1.0, prompts=1))).plot()
    assert len(points(drawn, "intervention") + points(drawn, "not significantly different")) == 1
    assert not any(trace.error_x.visible for trace in drawn.data)
    layers = [row for layer in range(3) for row in treated("zero", 1.0, prompts=1, layer=layer)]
    bands = [trace for trace in of(layers).plot().data if trace.fill]
    assert bands and not any(trace.visible for trace in bands)


def test_kind_and_metric_choose_and_wrong_names_are_refused() -> None:
    mass = list(rows_of("mass", MASS, "position0", Sample(0.4 + NOISE[0], 0.1), prompts=12, seed=0))
    result = of([*treated("zero", 1.0), *mass])
    assert {trace.xaxis for trace in result.plot().data} == {"x", "x2"}
    only = result.plot(metric="mass")
    assert [x for x, _ in points(only, "this model")] == [mass[0].effect.value]
    for wrong, said in (
        ({"metric": "los"}, "unknown metric of test 'los'; did you mean loss"),
        ({"kind": "forrest"}, "unknown kind of figure 'forrest'; did you mean forest"),
        ({"kind": "heads"}, "cannot be drawn as 'heads'; they can be as 'forest'"),
        ({"kind": "layers", "metric": "mass"}, "the rows of mass of test cannot"),
    ):
        with pytest.raises(sinklens.core.errors.UsageError, match=re.escape(said)):
            result.plot(**wrong)


def test_width_and_title_are_taken() -> None:
    result = of(list(treated("zero", 1.0)))
    drawn = result.plot(width=500, title="My title")
    assert drawn.layout.width == 500 and "My title" in drawn.layout.title.text
    assert result.plot().layout.width is None
    long = result.plot(title="A title that is far too long for the narrowest page there is")
    assert long.layout.title.text.count("<br>") > drawn.layout.title.text.count("<br>")
    assert long.layout.margin.t > drawn.layout.margin.t


def test_seeds_and_steps_of_a_model_have_different_titles() -> None:
    models = [{}, {"seed": 1}, {"seed": 2}, {"seed": 1, "step": 64}, {"revision": "main"}]
    rows = list(treated("zero", 1.0))
    titles = {of(rows, model=model).plot().layout.title.text for model in models}
    assert len(titles) == len(models)


def test_a_template_that_the_user_has_chosen_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    result = of(list(treated("zero", 1.0)))
    own = result.plot().layout.template.layout.paper_bgcolor
    monkeypatch.setattr(plotly.io.templates, "default", "plotly_dark")
    dark = plotly.io.templates["plotly_dark"].layout.paper_bgcolor
    assert result.plot().layout.template.layout.paper_bgcolor == dark != own


# --- Arrays and declarations ---------------------------------------------------------------------


def with_arrays() -> ExperimentResult:
    curve = {"largest": [0.5, 0.6, 0.7], "largest:uniform": [0.1, 0.1, 0.1]}
    arrays = {name: Array(torch.tensor(values), ("layer",)) for name, values in curve.items()}
    arrays["mass"] = Array(torch.arange(6.0).reshape(3, 2) / 6, ("layer", "head"))
    return of(list(treated("zero", 1.0)), arrays=arrays)


def test_what_older_results_declare_is_drawn() -> None:
    """Schema 2 before figures were stacked: `Panels`, and fewer fields."""
    heat = {"kind": "Heatmap", "array": "mass", "title": "a", "colour": "b", "most": None}
    lines = {"arrays": ["largest", "largest:*"], "title": "c", "x": "layer", "y": "share"}
    lines |= {"kind": "Lines", "log": False, "from_zero": True}
    for figure, traces in (
        ({"kind": "Panels", "left": heat, "right": lines}, 3),
        (heat, 1),
        (lines, 2),
        ({"kind": "Forest"}, 2),
        ({"kind": "Interaction", "across": "x", "up": "y", "conditions": ["zero"]}, 2),
    ):
        drawn = replace(with_arrays(), figure=figure).plot()
        assert len(drawn.data) == traces, figure


def test_a_figure_whose_rows_are_missing_is_one_of_the_effects() -> None:
    missing = {"kind": "Interaction", "across": "x", "up": "y", "conditions": [], "title": "Spikes"}
    drawn = replace(with_arrays(), figure=missing).plot()
    assert points(drawn, "intervention") and "Spikes" not in drawn.layout.title.text


def test_declarations_are_the_same_after_json() -> None:
    figure = Stack((Heatmap("mass", "a", "b"), Lines(("largest",), "c", "x", "y"), ByHead(("m",))))
    assert from_json(to_json(figure)) == figure


def test_a_null_under_a_curve_is_seen() -> None:
    result = replace(
        with_arrays(), figure=to_json(Lines(("largest", "largest:*"), "t", "layer", "share"))
    )
    drawn = result.plot()
    null, curve = drawn.data
    assert (null.name, curve.name) == ("null: uniform", "largest")
    assert list(curve.y) == pytest.approx([0.5, 0.6, 0.7]) and list(null.y) == pytest.approx(
        [0.1] * 3
    )
    assert null.line.width > curve.line.width


# --- The picture ---------------------------------------------------------------------------------


def texts(picture: str) -> list[str]:
    root = ElementTree.fromstring(picture)
    return ["".join(part.itertext()) for part in root.iter() if part.tag.endswith("text")]


@pytest.mark.parametrize("kind", ["Forest", "Heatmap", "Lines"])
def test_the_picture_holds_the_numbers(kind: str) -> None:
    result = with_arrays()
    figures = {
        "Forest": {"kind": "Forest"},
        "Heatmap": to_json(Heatmap("mass", "Masses", "share")),
        "Lines": to_json(Lines(("largest",), "Largest", "layer", "share")),
    }
    drawn = replace(result, figure=figures[kind]).plot()
    picture = to_svg(drawn)
    assert picture is not None and "<script" not in picture and "href" not in picture
    root = ElementTree.fromstring(picture)
    pointer = [part.text for part in root.iter() if part.tag.endswith("title")]
    if kind == "Forest":
        effect = result.find(condition="zero", kind="treatment").effect
        assert any(f"loss: {effect:.3g} nats" in text for text in pointer)
        # Where marks stand: the scale follows from the two of them and the axis through 0.
        squares = [p for p in root.iter() if p.tag.endswith("polygon")]
        x = np.mean([float(p.split(",")[0]) for p in squares[0].get("points").split()])
        (circle,) = (p for p in root.iter() if p.tag.endswith("circle") and len(p))
        control = result.find(condition="zero", kind="control").effect
        zero = next(
            float(p.get("x1"))
            for p in root.iter()
            if p.tag.endswith("line")
            and p.get("stroke") == "#7f7f7f"
            and p.get("x1") == p.get("x2")
        )
        ratio = (float(circle.get("cx")) - zero) / (x - zero)
        assert ratio == pytest.approx(control / effect, abs=2e-3)
    if kind == "Heatmap":
        assert "L2H1: 83%" in pointer and "83%" in texts(picture)
    assert int(root.get("width")) == WIDTH


def test_the_line_at_0_is_in_the_picture() -> None:
    """Also where all effects are far from 0 on one side of it."""
    far = rows_of("loss", LOSS, "zero", Effect(5 + NOISE[0], 0.0), prompts=12, seed=0)
    picture = to_svg(of(list(far)).plot())
    assert picture is not None
    lines = [line.attrib for line in ElementTree.fromstring(picture).findall("{*}line")]
    (zero,) = (float(line["x1"]) for line in lines if line.get("stroke") == "#7f7f7f")
    across = [line for line in lines if line["y1"] == line["y2"]]  # the axis is the longest
    axis = max(across, key=lambda line: float(line["x2"]) - float(line["x1"]))
    assert float(axis["x1"]) < zero < float(axis["x2"])


def test_names_in_a_picture_are_text() -> None:
    name = "<script>alert(1)</script>&"
    result = of(list(treated(name[:25], 1.0)))
    for text in (to_svg(result.plot()), result._repr_html_()):
        assert text is not None and "<script" not in text and "&lt;script&gt;" in text


def test_very_many_cells_are_one_small_image() -> None:
    values = torch.rand(80, 64, generator=torch.Generator().manual_seed(0))
    values[3, 5] = 1.0
    array = {"mass": Array(values, ("layer", "head"))}
    picture = to_svg(of([], arrays=array, figure=to_json(Heatmap("mass", "a", "b"))).plot())
    assert picture is not None and len(picture) < 60_000
    (image,) = (p for p in ElementTree.fromstring(picture).iter() if p.tag.endswith("image"))
    png = base64.b64decode(image.get("href").partition(",")[2])
    columns, rows = struct.unpack(">II", png[16:24])
    start = png.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", png[start - 8 : start - 4])
    lines = np.frombuffer(zlib.decompress(png[start : start + length]), np.uint8)
    pixels = lines.reshape(rows, 1 + columns * 4)[:, 1:].reshape(rows, columns, 4)
    assert (rows, columns) == (80, 64)
    assert pixels[80 - 1 - 3, 5].tolist() == [253, 231, 37, 255]  # the last colour of Viridis


def test_marks_of_others_are_no_picture() -> None:
    figure = plotly.graph_objects.Figure(plotly.graph_objects.Bar(x=[1], y=[2]))
    assert to_svg(figure) is None


def test_a_notebook_keeps_a_picture_beside_plotlys_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plotly.io.renderers, "default", "plotly_mimetype")
    drawn = of(list(treated("zero", 1.0))).plot()
    shown = drawn._repr_mimebundle_()
    assert set(shown) == {"application/vnd.plotly.v1+json", "image/svg+xml"}
    ElementTree.fromstring(shown["image/svg+xml"])
    drawn.update_layout(title="Changed")  # as a user may
    assert "Changed" in drawn._repr_mimebundle_()["image/svg+xml"]


def test_an_image_without_kaleido_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sinklens.results.drawing.shown.find_spec", lambda name: None)
    drawn = of(list(treated("zero", 1.0))).plot()
    for write in (partial(drawn.write_image, tmp_path / "figure.pdf"), drawn.to_image):
        with pytest.raises(SinklensError, match="pip install kaleido"):
            write()
    assert not list(tmp_path.iterdir())


def test_an_overview_without_a_profile_says_what_can_be_drawn() -> None:
    card = sinklens.Diagnosis({"own": of(list(treated("zero", 1.0)))}, ["one"])
    with pytest.raises(SinklensError, match=r"plot\(NAME\) draws one of own"):
        card.plot()
    assert card.plot("own").data and overview_pictures(card.results) == []


def test_html_has_three_sentences_the_figure_and_the_table_first() -> None:
    page = of([*treated("small", 0.5), *treated("large", -1.0)])._repr_html_()
    first = page[: page.index("<details>")]
    assert all(f"{word}." in first for word in ("One", "Two", "Three")) and "Four." not in first
    parts = [
        page.index(part) for part in ("Three.", "Four.", "<svg", "<table", "Notes", "Settings")
    ]
    assert parts == sorted(parts)
    assert "<style" not in page and "<script" not in page
    table = page[page.index("<table") : page.index("</table>")]
    assert table.index("large") < table.index("small")  # by size, whatever the sign
    assert "q (difference)" not in table
