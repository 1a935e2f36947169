"""Every notebook runs from a clean kernel, and is kept without outputs so that diffs stay readable.

A notebook checks its own statements with `assert`; here it only has to finish, and to have the
parts that a class needs. It is made from the script of the same name (`tests.notebooks`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.notebooks import FOLDER, notebook, scripts

ROOT = FOLDER.parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS_A_CELL = 120
INSTALL = "install"
PLOTLY = "application/vnd.plotly.v1+json"

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@every_notebook
def test_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    identifiers = [cell.id for cell in notebook.cells]
    assert len(set(identifiers)) == len(identifiers)
    for cell in code_cells(notebook):
        assert cell.outputs == [], f"{cell.id} has outputs; clear them before committing"
        assert cell.execution_count is None
    assert str(ROOT) not in path.read_text("utf-8")


def test_each_is_paired_with_a_script() -> None:
    assert [path.stem for path in scripts()] == [path.stem for path in NOTEBOOKS]


@every_notebook
def test_has_the_cells_of_its_script(path: Path) -> None:
    kept = nbformat.read(path, as_version=4)
    assert kept == notebook(path.with_suffix(".py").read_text("utf-8")), (
        f"python -m tests.notebooks makes {path.name} from its script"
    )


@every_notebook
def test_has_what_a_class_needs(path: Path) -> None:
    """Goals first, then three questions with folded answers, an exercise, perhaps with a hint."""
    texts = [
        cell.source
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "markdown"
    ]
    assert "you can" in texts[0]
    last, heading, exercise = texts[-1].rpartition("\n## Exercise\n")
    before = "\n".join([*texts[:-1], last])
    assert before.count("<details><summary>Answer</summary>") == before.count("</details>") == 3
    assert heading and exercise.partition("<details>")[0].strip()
    hints = exercise.count("<details><summary>Hint</summary>")
    assert exercise.count("<details>") == exercise.count("</details>") == hints <= 1


@every_notebook
def test_formulas_are_read_without_a_script(path: Path) -> None:
    """TeX would need MathJax from the network in a page that a notebook is exported to."""
    for cell in nbformat.read(path, as_version=4).cells:
        assert cell.cell_type == "code" or "$" not in cell.source, cell.id


@every_notebook
def test_installs_itself_where_sinklens_is_missing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Colab; where it is there, nothing is installed."""
    first = code_cells(nbformat.read(path, as_version=4))[0]
    assert first.id == INSTALL
    asked: list[list[str]] = []
    monkeypatch.setattr("subprocess.run", lambda command, check: asked.append(command))
    exec(first.source, {})
    assert asked == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(first.source, {})
    assert asked == [[sys.executable, "-m", "pip", "install", "-q", "sinklens"]]


@pytest.mark.slow
@every_notebook
def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executed = execute(path, tmp_path, monkeypatch)
    cells = [cell for cell in code_cells(executed) if cell.source.strip()]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    shown = [output.get("data", {}) for output in outputs]
    assert any(PLOTLY in data for data in shown)
    assert any("<table" in data.get("text/html", "") for data in shown)
    figures = [data for data in shown if PLOTLY in data]
    assert all({"text/html", "image/svg+xml"} & set(data) for data in figures), "lost in an export"


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a notebook in `folder` with this interpreter and this source tree."""
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient

    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", search)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    client = NotebookClient(
        nbformat.read(path, as_version=4),
        timeout=SECONDS_A_CELL,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    # Whatever kernels this machine has installed, "python3" is then the one of sys.executable.
    kernels = KernelSpecManager(kernel_dirs=[])
    assert Path(kernels.get_kernel_spec("python3").argv[0]) == Path(sys.executable)
    client.create_kernel_manager().kernel_spec_manager = kernels
    return client.execute()
