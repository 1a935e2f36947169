"""Store all snapshots anew; `git diff` then shows what is said otherwise."""

from __future__ import annotations

import sys

import torch

from tests.snapshots import cases, file_of, real_cases, text_of


def main() -> None:
    """Run all cases in one thread; names of experiments choose among them, `--real` SmolLM2."""
    torch.set_num_threads(1)
    chosen = [name for name in sys.argv[1:] if name != "--real"]
    for experiment, model, n in real_cases() if "--real" in sys.argv else cases():
        if not chosen or experiment in chosen:
            file_of(experiment, model, n).write_text(text_of(experiment, model, n), "utf-8")
            print(experiment, model, n, flush=True)


if __name__ == "__main__":
    main()
