"""The experiments of the four papers on SmolLM2, from the command line and in a notebook.

What they measure there is held against plain Hugging Face in `tests/experiments`; here they run as
a user runs them, small.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from typer.testing import CliRunner

import sinklens
from sinklens.cli import app
from tests.test_notebooks import code_cells, execute

pytestmark = pytest.mark.slow

EXPERIMENTS = (
    "massive_activations",
    "absolute_position",
)
MORE = ("reference_frame", "spike_sink_decoupling")
SMALL = (
    "--n-prompts",
    "3",
    "--length",
    "16",
    "--set",
    "draws=1",
    "--set",
    "null_models=0",
    "--quiet",
)


@pytest.mark.parametrize(
    "experiment", [*EXPERIMENTS, *(pytest.param(name, marks=pytest.mark.heavy) for name in MORE)]
)
def test_the_command(experiment: str, smollm2_gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["run", experiment, str(smollm2_gguf), *SMALL, "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    result = sinklens.ExperimentResult.load(out)
    assert result.provenance["model"]["kind"] == "gguf" and result.provenance["bos"]
    assert 0 < len(result.summary) <= 12 and len(result.plot().data)
    # Every sentence of the summary is on the screen.
    shown = " ".join(done.output.split())
    assert all(" ".join(sentence.split())[:60] in shown for sentence in result.summary)


def test_a_model_without_checkpoints_is_refused(smollm2_gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["run", "sink_emergence", str(smollm2_gguf), *SMALL, "--out", str(out)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1 and not out.exists()
    assert "came as gguf" in " ".join(done.output.split())


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("sink_profile", "massive_activations"), marks=pytest.mark.heavy),
        pytest.param((*EXPERIMENTS, *MORE), marks=pytest.mark.heavy),
    ],
    ids=["two", "all"],
)
def test_the_notebook(
    names: tuple[str, ...],
    smollm2_gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notebook = nbformat.v4.new_notebook()
    sources = [
        "import sinklens\nfrom pathlib import Path\n"
        f"model = sinklens.load(Path({str(smollm2_gguf)!r}))\n"
        "prompts = sinklens.prompts(model, n=3, length=16, bos=True)",
        *(
            f"result = sinklens.run({name!r}, model, prompts, draws=1, null_models=0)\n"
            "from IPython.display import display\ndisplay(result)\nresult.plot()"
            for name in names
        ),
    ]
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    path = tmp_path / "smollm2.ipynb"
    nbformat.write(notebook, path)
    for cell in code_cells(execute(path, tmp_path, monkeypatch))[1:]:
        shown = [output.get("data", {}) for output in cell.outputs]
        assert any("<table" in data.get("text/html", "") for data in shown)
        assert any("application/vnd.plotly.v1+json" in data for data in shown)
