"""A report: one file of what the results hold, in order, whatever text is in them."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs
from typer.testing import CliRunner

import sinklens
from sinklens.cli import app
from sinklens.results.methods import as_html
from sinklens.results.report import Report
from sinklens.runner.methods import methods_of

pytestmark = pytest.mark.slow  # many models or pages

ORDER = ["sink_profile", "bos_replacement", "sink_head_ablation", "position0_patching"]
HOSTILE = "</script><script>alert(1)</script><!-- \u202e\x07 \u05e9\u05dc\u05d5\u05dd"


@pytest.fixture(scope="module")
def card() -> sinklens.Diagnosis:
    model = sinklens.load("rope")
    prompts = sinklens.prompts(model, n=4, length=24)
    return sinklens.diagnose(model, prompts, draws=2, null_models=0, progress=False)


@pytest.fixture
def saved(card: sinklens.Diagnosis, tmp_path: Path) -> Path:
    return card.save(tmp_path / "saved")


class Page(HTMLParser):
    """The parts of a page: tags, ids, links, text by tag, scripts."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.asked: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        self.tags[tag] += 1
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" else []
        self.asked += [given[name] for name in ("src", "srcset", "action") if name in given]
        self.asked += [given["href"]] if tag == "link" else []
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def whole(self) -> str:
        """All text, that of a tag together."""
        return "\n".join(line for lines in self.text.values() for line in lines)


def figures(content: str) -> list[Any]:
    found = re.findall(r'<script type="application/json">(.*?)</script>', content, re.DOTALL)
    return [json.loads(figure) for figure in found]


def written(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_a_saved_diagnosis_is_one_page(
    card: sinklens.Diagnosis, saved: Path, tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    done = written(saved, "-o", file)
    assert done.exit_code == 0, done.output
    content = file.read_text()
    page = Page(content)
    assert page.open == [] and page.asked == ["data:,"]
    heading, about = str(card).split("\n")[:2]
    assert page.text["h1"] == [heading] and any(about in text for text in page.text["p"])
    names = ["Verdict", *ORDER, "Methods", "Provenance"]
    assert page.text["h2"] == names
    inside = [link[1:] for link in page.links if link.startswith("#")]
    assert inside[0] == inside[1] and len(inside) == 1 + len(names)
    assert set(inside) <= set(page.ids) and len(set(page.ids)) == len(page.ids)
    assert all(re.match(r"#|https://arxiv\.org/abs/\d{4}\.\d{5}$", link) for link in page.links)
    assert len(content) < 3e6


def test_figures_are_those_of_the_results(card: sinklens.Diagnosis) -> None:
    content = Report(card.results, card).html()
    plots = [card.plot, *(card.results[name].plot for name in ORDER)]
    assert figures(content) == [
        {
            "wide": json.loads(plot(width=1000).to_json()),
            "narrow": json.loads(plot(width=358).to_json()),
        }
        for plot in plots
    ]


def test_plotly_is_there_once_and_whole(card: sinklens.Diagnosis) -> None:
    content = Report(card.results, card).html()
    (packed,) = re.findall(r'sinklens\.library\("plotly", "([^"]+)"\)', content)
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()


def test_every_claim_sentence_note_and_row_stands_there(card: sinklens.Diagnosis) -> None:
    text = Page(Report(card.results, card).html()).whole()
    for result in card.results.values():
        for line in [*result.summary, *result.notes()]:
            assert line in text
        for cells in result._shown().table.fillna("").itertuples(index=False):
            assert all(str(cell) in text for cell in cells)


def test_many_experiments_are_counted_in_the_title(card: sinklens.Diagnosis) -> None:
    names = list(card.results)
    for count, said in ((3, ", ".join(names[:3])), (4, "4 experiments")):
        page = Page(Report({name: card.results[name] for name in names[:count]}).html())
        assert page.text["h1"] == [f"rope: {said}"]


def test_text_never_becomes_markup(card: sinklens.Diagnosis) -> None:
    plain = Page(Report(card.results, card).html())
    known = card.results["bos_replacement"]
    provenance = {**known.provenance, "model": {**known.provenance["model"], "name": HOSTILE}}
    hostile = replace(
        known,
        summary=[HOSTILE] * len(known.summary),
        settings={**known.settings, "notes": [HOSTILE], HOSTILE: HOSTILE},
        provenance=provenance,
        effects=[replace(row, condition=f"{row.condition} {HOSTILE}") for row in known.effects],
    )
    results = {**card.results, "bos_replacement": hostile}
    alone = {HOSTILE: replace(hostile, experiment=HOSTILE)}
    for report in (
        Report(results, replace(card, results=results, refused={HOSTILE: HOSTILE})),
        Report(alone),
    ):
        changed = Page(report.html())
        assert changed.open == [] and not set(changed.tags) - set(plain.tags)
        drawn = sum(bool(re.match("experiment-|verdict", name)) for name in changed.ids)
        assert changed.tags["script"] == drawn + 2  # plotly.js and the page's own


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model", "arguments"),
    [
        ("sink_profile", "encoder", []),
        ("bos_replacement", "rope", ["--set", "conditions=mean,zero", "--set", "draws=2"]),
        (
            "sink_head_ablation",
            "rope",
            ["--set", "heads=L2H1,L3H3", "--set", "each=true", "--seed", "3"],
        ),
        ("sink_profile", "rope", ["--dtype", "bfloat16", "--step", "512"]),
    ],
)
def test_the_command_makes_the_same_result(
    name: str, model: str, arguments: list[str], tmp_path: Path
) -> None:
    size = ["--n-prompts", "3", "--length", "16", "--set", "null_models=0", "--quiet"]
    run = ["run", name, model, *size, *arguments, "--out"]
    assert CliRunner().invoke(app, [*run, str(tmp_path / "first")]).exit_code == 0
    assert written(tmp_path / "first", "-o", tmp_path / "page.html").exit_code == 0
    said = Page((tmp_path / "page.html").read_text()).text["pre"][-1]
    program, *command = shlex.split(said)
    assert program == "sinklens"
    done = CliRunner().invoke(app, [*command, "--quiet", "--out", str(tmp_path / "again")])
    assert done.exit_code == 0, done.output
    first, again = (tmp_path / part / "result.json" for part in ("first", "again"))
    assert first.read_bytes() == again.read_bytes()


def test_what_was_given_in_python_has_no_command() -> None:
    model = sinklens.load("rope")
    result = sinklens.run(
        "sink_profile", model, ["one text of a few words", "another text of a few words"]
    )
    content = Report({"sink_profile": result}).html()
    assert "no command makes this again" in content and "sinklens run" not in content


def test_two_results_of_one_experiment_are_both_there(
    card: sinklens.Diagnosis, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        card.results["sink_profile"].save(tmp_path / "both" / folder)
    assert written(tmp_path / "both", "-o", tmp_path / "page.html").exit_code == 0
    page = Page((tmp_path / "page.html").read_text())
    assert page.text["h2"][:2] == ["sink_profile (a)", "sink_profile (b)"]


def emptied(folder: Path) -> str:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return "result.json"


def truncated(folder: Path) -> str:
    file = folder / "sink_profile" / "result.json"
    file.write_bytes(file.read_bytes()[:500])
    return str(file)


def without_values(folder: Path) -> str:
    file = folder / "position0_patching" / "values.safetensors"
    file.unlink()
    return f"{file.parent} holds no result: there is no {file.name}"


def with_other_values(folder: Path) -> str:
    file = folder / "position0_patching" / "values.safetensors"
    file.write_bytes(b"nothing")
    return str(file)


def without_a_profile(folder: Path) -> str:
    (folder / "sink_profile" / "result.json").unlink()
    return "sink_profile"


def with_an_unknown_figure(folder: Path) -> str:
    file = folder / "bos_replacement" / "result.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "figure": {"kind": "Nothing"}}))
    return "result.json"


def with_other_provenance(folder: Path) -> str:
    file = folder / "sink_profile" / "result.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "provenance": {}}))
    return "result.json"


@pytest.mark.parametrize(
    "damage",
    [
        emptied,
        truncated,
        without_values,
        with_other_values,
        without_a_profile,
        with_an_unknown_figure,
        with_other_provenance,
    ],
)
def test_a_damaged_folder_is_named_and_nothing_is_written(
    damage: Callable[[Path], str], saved: Path, tmp_path: Path
) -> None:
    named = damage(saved)
    done = written(saved, "-o", tmp_path / "page.html")
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert named in done.stderr and str(saved) in done.stderr and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_what_cannot_be_written_is_refused_first(saved: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.html"
    there.write_text("mine")
    assert "exists" in written(saved, "-o", there).stderr and there.read_text() == "mine"
    assert written(saved, "-o", there, "--overwrite").exit_code == 0
    done = written(saved, "-o", tmp_path / "new.html", "--n-prompts", "4")
    assert done.exit_code == 2 and "are for the diagnosis" in done.stderr
    assert not (tmp_path / "new.html").exists()


@pytest.mark.slow
def test_a_model_is_diagnosed_and_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    few = ["--n-prompts", "3", "--length", "16", "--set", "null_models=0", "--set", "draws=2"]
    done = written("rope", "-o", file, *few, "--quiet")
    assert done.exit_code == 0, done.output
    content = file.read_text()
    page = Page(content)
    assert page.text["h2"] == ["Verdict", *ORDER, "Attention", "Methods", "Provenance"]
    assert content.count("sinklens.attention(") == 2
    assert content.count('sinklens.library("circuitsvis"') == 1
    command = "sinklens diagnose rope --n-prompts 3 --length 16 --bos --precision full"
    assert any(text.startswith(command) for text in page.text["pre"])
    assert len(content.encode()) < 6e6


def test_methods_are_the_docstrings(card: sinklens.Diagnosis) -> None:
    methods = methods_of([*ORDER, "not_installed"])
    assert list(methods) == ORDER
    page = Page(Report(card.results, card, methods).html())
    assert "Replace the BOS embedding and read loss, KL and the sink." in page.whole()
    assert "https://arxiv.org/abs/2410.10781" in page.links


def test_docstrings_as_html() -> None:
    text = """One `word` and 2410.10781:

- first
  goes on
- second < third

    a = b
      + c

Named:
    x  of y
"""
    link = '<a href="https://arxiv.org/abs/2410.10781">2410.10781</a>'
    assert as_html(text) == (
        f"<p>One <code>word</code> and {link}:</p>"
        "<ul><li>first goes on</li><li>second &lt; third</li></ul>"
        "<pre>a = b\n  + c</pre><p>Named:</p><pre>x  of y</pre>"
    )
