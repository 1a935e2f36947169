"""Notebooks and the scripts they are made from: `python -m tests.notebooks` makes them anew.

A notebook is paired with a script of the same name, in the percent format that editors and
Jupytext read: a line `# %%` begins a cell, `# %% [markdown]` one of text, and `id=` names it. The
script is what one edits; the notebook holds the same cells, without outputs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat

FOLDER = Path(__file__).parents[1] / "notebooks"
CELL = re.compile(r'^# %%(?P<text> \[markdown\])? id="(?P<id>[a-z0-9-]+)"$', re.MULTILINE)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def scripts() -> list[Path]:
    """The scripts, in their order."""
    return sorted(FOLDER.glob("*.py"))


def notebook(script: str) -> Any:
    """The notebook of a script."""
    before, *parts = CELL.split(script)
    assert not before.strip(), "the script begins with a cell"
    cells = [
        nbformat.v4.new_markdown_cell(uncommented(source), id=name)
        if text
        else nbformat.v4.new_code_cell(source.strip("\n"), id=name)
        for text, name, source in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    ]
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA)


def uncommented(source: str) -> str:
    """The text of a cell whose lines are comments."""
    lines = source.strip("\n").split("\n")
    assert all(line.startswith("#") for line in lines), f"not a comment in: {lines[0]}"
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)


if __name__ == "__main__":
    for path in scripts():
        nbformat.write(notebook(path.read_text("utf-8")), path.with_suffix(".ipynb"))
        print(path.with_suffix(".ipynb").name)
