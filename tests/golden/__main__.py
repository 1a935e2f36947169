"""Compare all cases to the last byte with what is stored; `--store` stores them anew."""

from __future__ import annotations

import gzip
import json
import sys

import torch

from tests.golden import STORED, cases, content_of, stored


def main() -> None:
    """Run all cases in one thread."""
    torch.set_num_threads(1)
    found = {}
    for case in cases():
        found[case.name] = content_of(case)
        print(case.name, found[case.name].get("refused", ""), flush=True)
    if "--store" in sys.argv:
        STORED.write_bytes(gzip.compress(json.dumps(found).encode(), mtime=0))
        return
    expected = stored()
    differing = [name for name, content in found.items() if content != expected[name]]
    print(f"{len(differing)} of {len(found)} differ:", *differing, sep="\n  ")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
