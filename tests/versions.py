"""A part of the tests with other versions of TransformerLens and Transformers.

    python -m tests.versions                           # the oldest allowed, newest, and between
    python -m tests.versions 4.1.0:5.9.0 4.2.0:newest  # TRANSFORMER_LENS:TRANSFORMERS

Each pair has an environment of its own over the one in use, from which all other packages are
taken: it takes some 150 MB at most, which are removed, and torch is the same. Numbers are held to
plain Hugging Face code of that version and, of trained models, to what is stored; other versions of
Transformers draw other random weights.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAIRS = (
    "3.9.0:5.9.0",
    "3.9.0:newest",
    "4.0.0:newest",
    "4.1.0:newest",
    "4.2.0:newest",
    "4.3.0:5.9.0",
    "newest:newest",
)
NEWEST = "newest"
FREE = ("transformer-lens", "transformers", "tokenizers", "huggingface_hub")
TESTS = (
    (
        "tests/test_families.py",
        "tests/models/test_loading.py",
        "tests/models/test_state.py",
        "tests/engine/test_shortcuts.py",
        "tests/hooks",
    ),
    ("tests/test_golden.py", "-k", "rope and not emergence and not fisher"),
)
SHOW = "from importlib.metadata import version; print(*(f'{n} {version(n)}' for n in %r))"


def environment(folder: Path, *requirements: str) -> Path:
    """An environment over the one in use, with other versions of some packages.

    Args:
        folder: Where it is made.
        requirements: What it is to hold, as pip reads it.

    Returns:
        Its Python.
    """
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    own = _output(python, "import sysconfig; print(sysconfig.get_path('purelib'))")
    above = sysconfig.get_path("purelib")
    Path(own, "above.pth").write_text(f"import site; site.addsitedir({above!r})\n")
    kept = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(line for line in kept if line.split("==")[0] not in FREE))
    install = [python, "-m", "pip", "install", "-q", "--upgrade", "-c", constraints, *requirements]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip cannot install {', '.join(requirements)}: {done.stderr}")
    return python


def _output(python: Path, code: str) -> str:
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def _passes(pair: str) -> bool:
    """Whether the tests pass with a pair of versions."""
    lens, transformers = pair.split(":")
    lens = "transformer-lens<5" if lens == NEWEST else f"transformer-lens=={lens}"
    transformers = "transformers" if transformers == NEWEST else f"transformers=={transformers}"
    with tempfile.TemporaryDirectory() as folder:
        python = environment(Path(folder), lens, transformers)
        print("+", _output(python, SHOW % ([*FREE, "torch"],)), flush=True)
        pytest = [python, "-m", "pytest", "-p", "no:cacheprovider"]
        ended = [subprocess.run([*pytest, *tests], cwd=ROOT).returncode for tests in TESTS]
    return not any(ended)


def main() -> int:
    """Run the tests with each pair of versions; how many of them failed."""
    passed = {pair: _passes(pair) for pair in sys.argv[1:] or PAIRS}
    for pair, verdict in passed.items():
        print(pair, "passed" if verdict else "FAILED")
    return list(passed.values()).count(False)


if __name__ == "__main__":
    sys.exit(main())
