"""The atlas of a table made by hand: what its pages say, and what is refused."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
from typer.testing import CliRunner

from sinklens.cli import app
from sinklens.core.errors import SinklensError, UsageError
from sinklens.sweep.atlas.checkpoints import checkpoints_in, file_names
from sinklens.sweep.atlas.comparing import compare_by, last_checkpoints
from sinklens.sweep.atlas.headlines import measured_in
from sinklens.sweep.atlas.reading import read_effects
from sinklens.sweep.atlas.site import make_atlas
from tests.sweep.tables import FRAME, HOSTILE, SHOWN, framed, row, rows_of, several


class Page(HTMLParser):
    """The tags, links, names and table cells of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.lines: list[list[str]] = []
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.tags[tag] += 1
        self.ids.add(known.get("id") or "")
        if tag == "a":
            self.links.append(known["href"] or "")
        if tag == "tr":
            self.lines.append([])
        if tag in ("td", "th"):
            self.lines[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.lines and self.lines[-1]:
            self.lines[-1][-1] += data


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return several()


@pytest.fixture(scope="module")
def site(table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The atlas of `several`; leave it as it is."""
    base = tmp_path_factory.mktemp("atlas")
    table.to_parquet(base / "effects.parquet")
    done = CliRunner().invoke(
        app, ["atlas", str(base / "effects.parquet"), "-o", str(base / "site")]
    )
    assert done.exit_code == 0 and "site/index.html" in done.stdout, done.output
    return base / "site"


def test_each_checkpoint_has_a_line_with_its_numbers(site: Path) -> None:
    head, *lines = Page(site / "index.html").lines
    assert head[:4] == ["model", "Sink mass", "BOS dependence", "Cost of cutting the edge"]
    assert head[4:6] == ["Spikes", "Centralised frame"]
    by_name = {line[0]: line for line in lines}
    assert len(lines) == 4 + 2 + 2
    assert by_name["m3"][1:6] == [
        "30.0% [20.0%, 40.0%]null 20.0%",
        "-20.0% [-30.0%, -10.0%]null 0.0%later position 0.0%",
        "+0.25 [+0.15, +0.35]null 0",
        "90.0 [89.9, 90.1]null 4.0",
        "20.0% [10.0%, 30.0%]null 5.0%",
    ]
    assert by_name["m3"][6:] == ["rotary", "pre", "with BOS", "llama", "1M"]
    # Two seeds of one checkpoint are averaged, two checkpoints are not.
    assert by_name["trained step 4000"][1].startswith("70.0% [60.0%, 80.0%]")
    assert by_name["trained step 0"][1].startswith("20.0%")
    assert by_name["alone"][1] == "50.0% [no interval]null 20.0%"


def test_downloads_hold_the_same(site: Path, table: pd.DataFrame) -> None:
    data = site / "data"
    pd.testing.assert_frame_equal(
        pd.read_parquet(data / "effects.parquet"), table, check_dtype=False
    )
    assert len(pd.read_csv(data / "effects.csv")) == len(table)
    models = {
        (one["model"], one["step"]): one
        for one in json.loads((data / "models.json").read_text())["models"]
    }
    trained = models["trained", 4000]
    assert trained["sink_mass"] == pytest.approx(0.7) and trained["bos"] is True
    assert trained["sink_mass_ci_low"] == pytest.approx(0.6)
    assert trained["bos_dependence"] == pytest.approx(-0.6)
    assert trained["bos_dependence_reference"] == pytest.approx(0)
    assert models["alone", None]["sink_mass_ci_low"] is None
    assert len(pd.read_csv(data / "models.csv")) == len(models)


def test_models_are_pooled_by_attribute_where_there_are_five(site: Path) -> None:
    text = (site / "by-position-encoding.html").read_text("utf-8")
    assert "distance from row-permuted attention" in text and "rotary: +15.0% over 5" in text
    # Equal errors: the mean of 0.3, 0.4, 0.5, 0.6 and 0.7 above 0.2, of the last checkpoint alone.
    assert "rotary: +30.0% over 5 models" in text
    assert "Too few models to pool (fewer than 5): absolute (1)." in text
    assert "all models" in text and "Meta-regression" not in text
    assert "Meta-regression on size: log10 parameters" in (site / "by-parameters.html").read_text()


def test_a_model_alone_has_its_frames_beside_permuted_rows() -> None:
    own = {"model": "a", "weights": "w", "task": "t"}
    rows = [row(*FRAME, "measurement", 0.0, 0.2, 0.05, **own)]
    for against, value in {"row_permuted": 0.03, "random_weights": 0.001}.items():
        rows.append(row(*FRAME, "null", 0.0, value, 0.001, against=against, **own))
    rows.append(row(*FRAME, "contrast", 0.03, 0.2, 0.18, against="row_permuted", **own))
    table = framed(rows)
    (line,) = checkpoints_in(table, measured_in(table))
    cell = line.cells["centralised"]
    assert (cell.value, cell.null) == pytest.approx((0.2, 0.03)) and cell.reference is None
    assert not cell.is_beyond_null  # though its interval leaves out 0 and 3 %
    assert cell.interval(".1%") == "[15.0%, 25.0%]" and line.name == ""


def test_the_only_sink_head_of_a_model_stands_for_all() -> None:
    """An experiment on one head names it in its rows; those of one head of several do not count."""
    edge = ("sink_head_ablation", "loss", "drop_edge", "treatment", 2.0)
    of_one = {"model": "a", "weights": "a", "task": "a", "layer": 1, "head": 3}
    of_all = {"model": "b", "weights": "b", "task": "b"}
    rows = [row(*edge, 2.25, **of_one), row(*edge, 2.5, **of_all)]
    rows.append(row(*edge, 2.75, **of_all, layer=0, head=0))
    (measured,) = measured_in(framed(rows))
    assert dict(zip(measured.rows["model"], measured.rows["value"], strict=True)) == {
        "a": 2.25,
        "b": 2.5,
    }


def test_few_models_are_shown_and_not_pooled() -> None:
    rows = [one for name in ("a", "b") for one in rows_of(name, 0.5)]
    found, *_ = compare_by("family", measured_in(framed(rows)))
    assert list(found.units["label"]) == ["a", "b"]
    assert found.overall is None and not found.pooled
    assert any("2 models cannot generalise" in said for said in found.sentences)


def test_the_last_checkpoint_of_each_model_is_compared() -> None:
    revisions = ["step2", "step10", "main"]
    rows = [one for name in revisions[:2] for one in rows_of("a", 0.5, revision=name)]
    rows += [one for name in revisions for one in rows_of("b", 0.5, revision=name)]
    rows += [one for step in (0, 64, None) for one in rows_of("c", 0.5, step=step)]
    last = last_checkpoints(framed(rows))
    assert set(last.loc[last["model"] == "a", "revision"]) == {"step10"}
    assert set(last.loc[last["model"] == "b", "revision"]) == {"main"}
    assert last.loc[last["model"] == "c", "step"].isna().all()


def test_the_page_of_a_model_says_what_its_rows_say(site: Path) -> None:
    text = (site / "models" / "m5.html").read_text("utf-8")
    assert "Position 0 takes 50.0% [40.0%, 60.0%] of the attention of later queries, above" in text
    assert "Taking BOS away removes it (21.0%, uniform 20.0%)." in text
    assert (
        "2 of 4 heads give position 0 more than 30% (sink heads): L2H0 50.0%, L0H1 31.0%." in text
    )
    lines = Page(site / "models" / "m5.html").lines
    assert ["L0", "5.0%", "31.0%"] in lines and ["L2", "50.0%"] in [line[:2] for line in lines]
    assert "Cutting the attention to position 0 in the sink heads raises loss" in text
    assert Page(site / "models" / "trained.html").ids >= {"part-2", "part-3"}


@pytest.mark.parametrize(
    "text", [None, "7", "[1]", "{}", '{"L0": 1}', '{"L0H1": 1}', '{"L0H0": "x"}']
)
def test_a_table_without_heads_has_none_on_its_pages(text: str | None, tmp_path: Path) -> None:
    framed([*rows_of("a", 0.5)]).assign(by_head=text).to_parquet(tmp_path / "effects.parquet")
    page = make_atlas(tmp_path / "effects.parquet", tmp_path / "site").parent / "models" / "a.html"
    said = page.read_text("utf-8")
    assert "Position 0 takes 50.0%" in said and "heads give" not in said


def test_a_model_without_sink_heads_says_so(tmp_path: Path) -> None:
    heads = json.dumps({"L1H0": 0.1, "L1H1": 0.25})
    framed([*rows_of("a", 0.1)]).assign(by_head=heads).to_parquet(tmp_path / "effects.parquet")
    page = make_atlas(tmp_path / "effects.parquet", tmp_path / "site").parent / "models" / "a.html"
    said = page.read_text("utf-8")
    assert "None of 2 heads gives position 0 more than 30%; at most L1H1, 25.0%." in said


def test_links_lead_somewhere_and_names_stay_text(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) == 1 + 5 + 7
    for file in pages:
        page = Page(file)
        for link in page.links:
            path, _, part = unquote(link).partition("#")
            target = (file.parent / path).resolve() if path else file
            assert target.is_file() and target.is_relative_to(site.resolve()), link
            assert not part or part in Page(target).ids
        assert page.tags["script"] == 2, file  # the page's own
        assert "alert(1)</script>" not in file.read_text("utf-8")
        assert not re.search(r"(src|href)=.?https?:", file.read_text("utf-8").split("<main>")[0])
    lines = Page(site / "index.html").lines
    assert sum(SHOWN in line[0] for line in lines) == 1


def test_names_of_pages_are_told_apart() -> None:
    models = ["org/a b", "org-a-b", "A", "a", "..", "", "x" * 300, HOSTILE]
    names = file_names(models)
    assert len({name.casefold() for name in names.values()}) == len(models)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,90}\.html", n) for n in names.values())


def test_a_csv_holds_the_same_table(table: pd.DataFrame, tmp_path: Path) -> None:
    table.to_csv(tmp_path / "effects.csv", index=False)
    table.to_parquet(tmp_path / "effects.parquet")
    read = [read_effects(tmp_path / f"effects.{kind}") for kind in ("csv", "parquet")]
    pd.testing.assert_frame_equal(*read)
    pd.testing.assert_frame_equal(read[1], table, check_dtype=False)


def damaged(kind: str, table: pd.DataFrame, folder: Path) -> Path:
    """A file that is no table of an atlas."""
    file = folder / "bad.parquet"
    few = table.head(8).copy()
    changed = {
        "lacks": few.drop(columns=["family", "bos"]),
        "empty": few.head(0),
        "schema": few.assign(schema=9),
        "text": few.assign(effect="many"),
        "nothing": few.assign(effect=float("inf")),
        "unnamed": few.assign(model=None),
        "others": few.assign(experiment="absolute_position"),
    }
    if kind in changed:
        changed[kind].to_parquet(file)
    elif kind == "cut":
        table.to_parquet(file)
        file.write_bytes(file.read_bytes()[:2000])
    elif kind == "bytes":
        file = folder / "bad.csv"
        file.write_bytes(b"\xff\xfe\x00model,\n")
    elif kind == "folder":
        file = folder / "sweep"
        file.mkdir()
    elif kind == "other":
        file = folder / "effects.xlsx"
    return file


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("lacks", SinklensError, "lacks the columns family, bos; give the table"),
        ("empty", SinklensError, "has no rows"),
        ("schema", SinklensError, "schema 9, and this sinklens reads up to 2"),
        ("text", SinklensError, "column effect holds what it cannot hold"),
        ("nothing", SinklensError, "no row with a finite value"),
        ("unnamed", SinklensError, "column model is empty in some rows"),
        ("others", SinklensError, "no row that an atlas compares models by; sweep some of"),
        ("cut", SinklensError, "is damaged or no table"),
        ("bytes", SinklensError, "is damaged or no table"),
        ("missing", SinklensError, "there is no file"),
        ("folder", UsageError, "sinklens merge .* makes the table of it"),
        ("other", UsageError, "neither .parquet nor .csv"),
    ],
)
def test_other_files_are_refused_in_a_line(
    kind: str, error: type[Exception], said: str, table: pd.DataFrame, tmp_path: Path
) -> None:
    file = damaged(kind, table, tmp_path)
    with pytest.raises(error, match=said) as raised:
        make_atlas(file, tmp_path / "site")
    assert "\n" not in str(raised.value) and not (tmp_path / "site").exists()


def test_a_folder_in_use_stays_as_it_is(table: pd.DataFrame, tmp_path: Path) -> None:
    table.to_parquet(tmp_path / "effects.parquet")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "mine.txt").write_text("mine")
    done = CliRunner().invoke(
        app, ["atlas", str(tmp_path / "effects.parquet"), "-o", str(tmp_path / "site")]
    )
    assert done.exit_code == 1 and "is not empty" in done.stderr
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["mine.txt"]
