"""Pages that mkdocs makes from the package and the notebooks, so that nothing is written twice.

Experiments come from their declarations and docstrings, the reference from `sinklens` itself,
tutorials from the notebooks, commands from their `--help`. mkdocs calls the functions `on_...`.
Pages fetch nothing from elsewhere: what would is a warning, an error of `mkdocs build --strict`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.structure.files import File

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FROM_ROOT = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "assistants.md": "AGENTS.md",
}
HOME = "sinklens.experiments."
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
PAPER = re.compile(r"\b(\d{4}\.\d{4,5})\b")
WIDE = "---\nhide: [toc]\n---\n"
SHIM = "https://unpkg.com/iframe-worker/shim"  # that the theme's offline search asks for
OWN_SHIM = "assets/iframe-worker.js"
FETCHED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?https?:[^>]*>")
COMMANDS = (
    *("diagnose", "run", "list", "models", "check", "show", "report"),
    *("sweep", "merge", "atlas"),
)
WIDTH = "96"


def on_config(config: Any) -> Any:
    """Put the notebooks into the navigation."""
    for entry in config.nav:
        if "Tutorials" in entry:
            entry["Tutorials"] += [f"tutorials/{path.stem}.md" for path in NOTEBOOKS]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, and the notebooks to download."""
    for name, text in pages():
        files.append(File.generated(config, name, content=text))
    for path in NOTEBOOKS:
        files.append(File.generated(config, f"tutorials/{path.name}", abs_src_path=str(path)))
    for name, content in atlas():
        files.append(File.generated(config, f"atlas/{name}", content=content))
    return files


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Take the shim of the offline search from the site itself."""
    return output.replace(SHIM, "../" * page.url.count("/") + OWN_SHIM)


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    """The same for the page of links that lead nowhere."""
    return output_content.replace(SHIM, OWN_SHIM)


def on_post_build(config: Any) -> None:
    """Warn of pages that fetch something from elsewhere."""
    for path in Path(config.site_dir).rglob("*.html"):
        for tag in FETCHED.findall(path.read_text("utf-8")):
            logging.getLogger("mkdocs.plugins").warning("%s fetches %s", path.name, tag)


def atlas() -> Iterator[tuple[str, bytes]]:
    """The files of the atlas of the shipped models, by their place in it."""
    from sinklens.sweep.atlas.site import make_atlas

    with TemporaryDirectory() as base:
        site = make_atlas(ROOT / "atlas" / "effects.parquet", Path(base) / "site").parent
        for path in sorted(site.rglob("*")):
            if path.is_file():
                yield path.relative_to(site).as_posix(), path.read_bytes()


def pages() -> Iterator[tuple[str, str]]:
    """The generated pages, by their place in the site."""
    yield "experiments.md", "\n".join(experiments())
    yield "tutorials/index.md", "\n".join(tutorials())
    for path in NOTEBOOKS:
        yield f"tutorials/{path.stem}.md", tutorial(path)
    yield "reference/index.md", "\n".join(public_names())
    for module in ("hooks", "probes"):
        yield f"reference/{module}.md", "\n".join(names_of(f"sinklens.{module}"))
    yield "reference/commands.md", "\n".join(commands())
    for name, source in FROM_ROOT.items():
        text = with_links((ROOT / source).read_text("utf-8"))
        yield name, WIDE + text if name == "index.md" else text


def with_links(text: str) -> str:
    """A page of the checkout whose links lead to pages of the site."""
    text = text.replace("](docs/", "](").replace("](notebooks/", "](tutorials/")
    for name, source in FROM_ROOT.items():
        text = text.replace(f"]({source})", f"]({name})")
    return text.replace(".ipynb)", ".md)")


def experiments() -> Iterator[str]:
    """Question, paper, method, limits, settings and cost of each experiment, by line of work."""
    from sinklens.runner.registry import all_experiments

    known = [one for one in all_experiments().values() if one.function.__module__.startswith(HOME)]
    yield from ("# Experiments", "", "| name | question | follows |", "|---|---|---|")
    for one in known:
        yield f"| [`{one.name}`](#{one.name}) | {one.question} | {linked(one.paper)} |"
    known.sort(key=lambda one: one.function.__module__)
    for package, members in groupby(known, lambda one: one.function.__module__.rpartition(".")[0]):
        title, _, text = inspect.getdoc(sys.modules[package]).partition("\n")
        heading, _, rest = title.partition(": ")
        yield from ("", f"## {heading}", "", f"{rest[0].upper()}{rest[1:]}", "", linked(text))
        for one in members:
            yield from experiment(one)


def experiment(one: Any) -> Iterator[str]:
    """The section of one experiment."""
    from sinklens.runner.manual import manual

    settings, _, cost = manual(one).rpartition("Cost: ")
    title, _, text = inspect.getdoc(sys.modules[one.function.__module__]).partition("\n")
    yield from ("", f"### `{one.name}` {{ #{one.name} }}", "", f"**{one.question}** {title}", "")
    yield from (linked(text), "", f"**Cost** by default: {' '.join(cost.split())}", "")
    yield from (f'??? note "Conditions and settings: `sinklens list {one.name}`"', "")
    yield from (
        "    ```text",
        *(f"    {line}" for line in settings.rstrip().split("\n")),
        "    ```",
    )


def linked(text: str) -> str:
    """A text whose arXiv numbers are links."""
    return PAPER.sub(r"[\1](https://arxiv.org/abs/\1)", text)


def tutorials() -> Iterator[str]:
    """The list of notebooks."""
    yield from ("# Tutorials", "")
    yield "Notebooks that run offline on a CPU; nothing is downloaded. Shown here without outputs."
    yield ""
    for path in NOTEBOOKS:
        title = cells(path)[0][1].partition("\n")[0].lstrip("# ")
        yield f"- [{title}]({path.stem}.md) ([{path.name}]({path.name}))"


def cells(path: Path) -> list[tuple[str, str]]:
    """Type and text of each cell of a notebook."""
    read = json.loads(path.read_text("utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in read]


def tutorial(path: Path) -> str:
    """A notebook as a page: its text and its code."""
    first, *rest = cells(path)
    shown = [first[1], f"[Download this notebook]({path.name})"]
    for kind, text in rest:
        shown.append(f"```python\n{text}\n```" if kind == "code" else text)
    return "\n\n".join(shown)


def public_names() -> Iterator[str]:
    """All that `import sinklens` gives; its modules have pages of their own."""
    import sinklens

    yield from ("# Public names", "")
    for name in sinklens.__all__:
        if not inspect.ismodule(getattr(sinklens, name)):
            yield from entry(getattr(sinklens, name), f"sinklens.{name}")


def names_of(module: str) -> Iterator[str]:
    """The public names of a module with its docstring."""
    import sinklens

    found = importlib.import_module(module)
    yield from (f"# `{module}`", "", inspect.getdoc(found) or "", "")
    for name, value in vars(found).items():
        if name in sinklens.__all__:
            yield from (f"`{name}` is among the [public names](index.md).", "")
        elif not name.startswith("_") and not inspect.ismodule(value):
            yield from entry(value, f"{module}.{name}")


def entry(value: Any, name: str) -> Iterator[str]:
    """The docstring of a public name, where it is defined."""
    defined = getattr(value, "__wrapped__", value)
    place = f"{defined.__module__}.{defined.__qualname__}" if callable(defined) else name
    yield from (f"::: {place}", "    options:", f"      heading: {name}", "")


def commands() -> Iterator[str]:
    """What each command says of itself."""
    from typer.testing import CliRunner

    from sinklens.cli import app

    runner = CliRunner(env={"COLUMNS": WIDTH, "TERM": "dumb", "NO_COLOR": "1"})
    yield from ("# Command line", "", "The exit status is 0 where it is done, 1 where it cannot be")
    yield from ("done on this model or input, and 2 for wrong usage.", "")
    for name in COMMANDS:
        said = runner.invoke(app, [name, "--help"], prog_name="sinklens").output
        yield from (f"## `sinklens {name}`", "", "```text", said.strip("\n"), "```", "")
