"""SAELens beside sinklens, in an environment of its own with the TransformerLens that it needs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

import sinklens
from tests.test_docs import ROOT, blocks
from tests.versions import environment

pytestmark = [pytest.mark.slow, pytest.mark.heavy]

COMPARED = """
import json
from importlib.metadata import version
by_hand = [("blocks.2.hook_resid_pre", partial(remove, feature=active[0]))]
(tokens,) = prompts.tokens[None]
def loss(hooks):
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)[:, 1:-1].log_softmax(-1)
    return -logits.gather(-1, tokens[:, 2:, None])[..., 0].mean(-1)
row = result.find(metric="loss", kind="treatment")
effect = float((loss(by_hand) - loss([])).mean())
profile = sinklens.run("sink_profile", model, prompts, null_models=0, draws=1, progress=False)
print(json.dumps({
    "lens": version("transformer-lens"), "effect": [row.effect, effect],
    "mass": [row.value for row in profile.effects],
}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("saelens") / "environment", "sae-lens")


def test_the_page_on_saelens_runs_with_saelens_beside(python: Path, tmp_path: Path) -> None:
    """What it says of a feature is what plain calls give, and of the model what is said here."""
    code = "\n".join(code for _, _, code in blocks(ROOT / "docs/howto/saelens.md"))
    done = subprocess.run(
        [python, "-c", code + COMPARED],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["lens"].startswith("3.")
    by_sinklens, by_hand = found["effect"]
    assert by_sinklens == pytest.approx(by_hand, abs=1e-5) and abs(by_hand) > 1e-4
    model = sinklens.load("rope")
    prompts = sinklens.prompts(model, n=8, length=32)
    profile = sinklens.run("sink_profile", model, prompts, null_models=0, draws=1, progress=False)
    assert found["mass"] == pytest.approx([row.value for row in profile.effects], abs=1e-5)
