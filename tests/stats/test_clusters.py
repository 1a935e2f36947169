"""Intervals over documents: the textbook case, an independent transcription, and coverage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import sinklens
from sinklens.stats.clusters import by_document
from sinklens.stats.effects import Row, paired_row


def row_of(values: Any) -> Row:
    return paired_row(
        "loss", "clean", "measurement", np.asarray(values, float), np.zeros(len(values))
    )


def test_equal_shares_give_the_interval_of_document_means() -> None:
    values = np.random.default_rng(0).normal(2, 1, (6, 4))
    documents = torch.arange(6).repeat_interleave(4)
    effect = by_document(row_of(values.ravel()), documents).effect
    expected = stats.ttest_1samp(values.mean(1), 0).confidence_interval()
    assert (effect.resampled, effect.n_prompts) == ("document", 6)
    np.testing.assert_allclose((effect.ci_low, effect.ci_high), expected)
    assert effect.value == pytest.approx(values.mean())


def test_without_shared_documents_nothing_changes() -> None:
    row = row_of([1, 2, 4])
    assert by_document(row, None) is row and by_document(row, torch.tensor([7, 3, 5])) is row
    alone = by_document(row, torch.tensor([7, 7, 7])).effect
    assert (alone.ci_low, alone.ci_high, alone.resampled) == (None, None, "document")


def test_coverage_where_documents_differ() -> None:
    """Documents of 1 to 8 windows with an intraclass correlation of 1/3: 95 %, not 73 %."""
    random = np.random.default_rng(1)
    sizes = np.tile([1, 2, 4, 8], 8)
    documents = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes))
    covered = np.zeros(2)
    for _ in range(1000):
        values = random.normal(0, np.sqrt(0.5), len(sizes))[documents]
        values = values + random.normal(0, 1, len(documents))
        row = row_of(values)
        for place, one in enumerate((row, by_document(row, documents))):
            covered[place] += one.effect.ci_low < 0 < one.effect.ci_high  # type: ignore[operator]
    assert 920 <= covered[1] <= 970 and covered[0] < 880, covered


@pytest.mark.slow
def test_a_run_says_which_was_done(boot_family: Callable[[str], Any]) -> None:
    model = boot_family("llama")
    texts = ["the quick brown fox jumps " * 4, "over a lazy dog and sleeps " * 4]
    prompts = sinklens.prompts(model, texts, n=6, length=12)
    result = sinklens.run("sink_profile", model, prompts, progress=False)
    rows = {(row.metric, row.condition): row for row in result.effects}
    natural, random = rows["sink_mass", "position0"], rows["sink_mass", "position0:random"]
    assert (natural.resampled, natural.n_prompts) == ("document", 2)
    assert (random.resampled, random.n_prompts) == ("prompt", 6)
    number = result.effects.index(natural)
    values = [result.per_prompt[side][number].numpy() for side in ("value", "baseline")]
    means = (values[0] - values[1]).reshape(2, 3).mean(1)
    expected = stats.ttest_1samp(means, 0).confidence_interval()
    np.testing.assert_allclose((natural.ci_low, natural.ci_high), expected)
    assert any("over 2 documents" in note for note in result.notes())
    effects = sinklens.run("bos_replacement", model, prompts, draws=1, progress=False).effects
    assert {row.resampled for row in effects} <= {"prompt", "model"}
