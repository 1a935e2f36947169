"""What is said of edges: of those removed in z, sink mass is no construction."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformer_lens.model_bridge import TransformerBridge

import sinklens
from sinklens.models.prompts import random_prompts

Boot = Callable[[str], TransformerBridge]


@pytest.mark.parametrize(("name", "said"), [("opt", True), ("llama", False)])
def test_sink_mass_is_said_where_it_does_not_fall_by_construction(
    name: str, said: bool, boot_family: Boot
) -> None:
    """OPT leaves attention to Hugging Face, so the edge is removed from what heads put out."""
    model = boot_family(name)
    result = sinklens.run(
        "sink_head_ablation",
        model,
        random_prompts(model, n=4, length=12, bos=True),
        heads=("L0H0", "L0H1"),
        conditions=("drop_edge_unnormalised",),
        draws=2,
        null_models=0,
        progress=False,
    )
    assert result.findings["edges_removed_in"] == ("z" if said else "pattern")
    edges = "Ablating by drop_edge_unnormalised: sink_mass"
    assert any(line.startswith(edges) for line in result.summary) == said
