"""List the cases whose rows differ from what is stored, and store all anew."""

from __future__ import annotations

import gzip
import json

import torch

from tests.golden import STORED, cases, content_of, stored


def main() -> None:
    """Run all cases in one thread."""
    torch.set_num_threads(1)
    found = {}
    for case in cases():
        found[case.name] = content_of(case)
        print(case.name, found[case.name].get("refused", ""), flush=True)
    before = stored() if STORED.exists() else {}
    differing = [name for name, content in found.items() if content != before.get(name)]
    print(f"{len(differing)} of {len(found)} differ:", *differing, sep="\n  ")
    STORED.write_bytes(gzip.compress(json.dumps(found).encode(), mtime=0))


if __name__ == "__main__":
    main()
