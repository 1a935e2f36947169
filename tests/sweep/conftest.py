"""A folder with two tiny models, and specifications of small sweeps over them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import families

SPEC = """
models = ["models/*"]
seeds = [0, 1]
texts = [{n = 2, length = 8, path = "text.txt"}]
experiments = ["sink_profile", {name = "bos_replacement", conditions = ["mean"]}]
[settings]
draws = 1
null_models = 0
"""


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `models` with two tiny models, `text.txt` and `spec.toml` beside it; eight tasks."""
    base = tmp_path_factory.mktemp("sweep")
    for name in ("llama", "gpt2"):
        getattr(families, name)().save_pretrained(base / "models" / name)
        families.tiny_tokenizer().save_pretrained(base / "models" / name)
    (base / "text.txt").write_text("a text about nothing in particular, cut into windows. " * 20)
    (base / "spec.toml").write_text(SPEC)
    return base
