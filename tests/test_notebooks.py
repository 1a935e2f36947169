"""Every notebook runs from a clean kernel, and is kept without outputs so that diffs stay readable.

A notebook checks its own statements with `assert`; here it only has to finish.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS_A_CELL = 120

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


@every_notebook
def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executed = execute(path, tmp_path, monkeypatch)
    cells = [cell for cell in code_cells(executed) if cell.source.strip()]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    shown = [output.get("data", {}) for output in outputs]
    assert any("application/vnd.plotly.v1+json" in data for data in shown)
    assert any("<table" in data.get("text/html", "") for data in shown)


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
