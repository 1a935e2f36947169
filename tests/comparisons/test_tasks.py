"""Scores on tasks under interventions, beside log-likelihoods of plain Hugging Face."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import sinklens
from sinklens import SinklensError
from sinklens.core.errors import UsageError
from sinklens.hooks import Intervention, replace_bos_embedding
from sinklens.models.prompts import corpus

pytestmark = pytest.mark.slow

ITEMS = 12
WORDS = corpus().split()
DOCS = [
    {
        "context": " ".join(WORDS[at : at + 12]),
        "choices": [WORDS[at + 12], WORDS[at + 19]],
        "gold": 0,
    }
    for at in range(0, 40 * ITEMS, 40)
]


def next_word(**changes: Any) -> dict[str, Any]:
    """Which of two words goes on: made from the shipped corpus, with no hub."""
    from datasets import Dataset

    return {
        "task": "next_word",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(DOCS)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("acc", "acc_norm")
        ],
        **changes,
    }


@pytest.fixture(scope="module")
def model() -> Any:
    return sinklens.load("rope")


@pytest.fixture(scope="module")
def scores(model: Any) -> sinklens.TaskScores:
    return sinklens.evaluate_tasks(
        model,
        next_word(),
        {"zero": replace_bos_embedding(model, "zero")},
        control={"later": replace_bos_embedding(model, "zero", position=5)},
    )


def plain_accuracy(model: Any, *, zero: int | None) -> np.ndarray:
    """By item whether the right word is likelier, from one forward a choice and no harness."""
    tokenizer, right = model.tokenizer, []
    table = model.embed.original_component.weight
    for doc in DOCS:
        sums = []
        for choice in doc["choices"]:
            context = tokenizer(doc["context"], add_special_tokens=False)["input_ids"]
            whole = tokenizer(f"{doc['context']} {choice}", add_special_tokens=False)["input_ids"]
            tokens = torch.tensor([[tokenizer.bos_token_id, *whole]])
            vectors = table[tokens].clone()
            if zero is not None:
                vectors[:, zero] = 0
            with torch.no_grad():
                logits = model.original_model(inputs_embeds=vectors).logits
            logs = logits[0, len(context) : -1].log_softmax(-1)
            sums.append(float(logs.gather(-1, tokens[0, len(context) + 1 :, None]).sum()))
        right.append(sums[0] > sums[1])
    return np.array(right, float)


@pytest.mark.parametrize(("column", "zero"), [("clean", None), ("value", 0), ("control", 5)])
def test_every_item_is_scored_as_by_hand(
    model: Any, scores: sinklens.TaskScores, column: str, zero: int | None
) -> None:
    items = scores.items[scores.items["metric"] == "acc"]
    np.testing.assert_array_equal(items[column], plain_accuracy(model, zero=zero))


def test_rows_are_paired_by_item(scores: sinklens.TaskScores) -> None:
    items = scores.items[scores.items["metric"] == "acc"]
    rows = {row.kind: row for row in scores.effects if row.metric == "next_word/acc"}
    differences = items["value"] - items["clean"]
    assert rows["treatment"].effect == pytest.approx(differences.mean())
    assert rows["contrast"].effect == pytest.approx((items["value"] - items["control"]).mean())
    half = 2.201 * differences.std() / ITEMS**0.5  # Student's t with 11 degrees of freedom
    assert rows["treatment"].ci_high == pytest.approx(differences.mean() + half, abs=1e-3)
    assert {row.resampled for row in scores.effects} == {"item"}
    assert rows["control"].against == "later" and "next_word/acc" in str(scores)


def test_nothing_is_left_behind(model: Any) -> None:
    before = torch.get_rng_state()
    sinklens.evaluate_tasks(model, next_word(), replace_bos_embedding(model, "zero"), limit=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert not [name for name, point in model.hook_dict.items() if point.fwd_hooks]


def test_what_cannot_be_measured_is_refused(model: Any) -> None:
    zero = replace_bos_embedding(model, "zero")
    with pytest.raises(UsageError, match="token by token"):
        sinklens.evaluate_tasks(model, next_word(output_type="generate_until"), zero)
    own = Intervention.from_values("blocks.1.hook_resid_pre", torch.zeros(2, 128), position=0)
    with pytest.raises(UsageError, match="values for each prompt"):
        sinklens.evaluate_tasks(model, next_word(), own)
    with pytest.raises(UsageError, match="no tasks"):
        sinklens.evaluate_tasks(model, [], zero)
    with pytest.raises(UsageError, match="one control"):
        sinklens.evaluate_tasks(model, next_word(), zero, control={"a": zero, "b": zero})
    with pytest.raises(SinklensError, match="did not happen"):
        same = [("blocks.0.hook_resid_pre", lambda activation, hook: activation)]
        sinklens.evaluate_tasks(model, next_word(), same, limit=2)
    with pytest.raises(SinklensError, match="cannot be made"):
        sinklens.evaluate_tasks(model, {"task": "broken", "dataset_path": "no/such"}, zero)
    with pytest.raises(SinklensError, match="context of rope"):
        long = " ".join(WORDS[:400])
        sinklens.evaluate_tasks(model, next_word(doc_to_text=long), zero, limit=1)
