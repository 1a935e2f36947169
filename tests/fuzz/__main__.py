"""Fuzz everything that comes from outside; see the package."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.fuzz import kinds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("kinds", nargs="*", default=list(kinds.KINDS), metavar="KIND")
    parser.add_argument("--n", type=int, default=1000, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    failed = 0
    for kind in asked.kinds:
        began = time.perf_counter()
        try:
            kinds.run(kind, asked.n, asked.seed)
            verdict = "right or typed"
        except BaseException:
            traceback.print_exc()
            failed, verdict = failed + 1, "FAILED"
        print(f"{kind}: {asked.n} inputs, {time.perf_counter() - began:.0f} s, {verdict}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
