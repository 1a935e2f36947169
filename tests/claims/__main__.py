"""Write the page anew; `git diff` then shows what is seen otherwise."""

from __future__ import annotations

import argparse

import sinklens
from sinklens.models import origin
from tests.claims import PAGE, cells, page
from tests.conftest import smollm2_file


def main() -> None:
    """Write the page; `--model` takes the place of SmolLM2."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="what `sinklens.load` takes; SmolLM2-135M without it")
    sources = ["rope", parser.parse_args().model or smollm2_file()]
    models = [sinklens.load(source) for source in sources]
    columns = {origin(model).name: cells(model) for model in models}
    PAGE.write_text(page(columns), encoding="utf-8")


if __name__ == "__main__":
    main()
