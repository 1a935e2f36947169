"""Store all snapshots anew; `git diff` then shows what is said otherwise."""

from __future__ import annotations

import sys

import torch

from tests.snapshots import cases, file_of, text_of


def main() -> None:
    """Run all cases in one thread; names of experiments choose among them."""
    torch.set_num_threads(1)
    for experiment, model, n in cases():
        if not sys.argv[1:] or experiment in sys.argv[1:]:
            file_of(experiment, model, n).write_text(text_of(experiment, model, n), "utf-8")
            print(experiment, model, n, flush=True)


if __name__ == "__main__":
    main()
