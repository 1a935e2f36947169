"""KL against float64, for changes from the size of rounding to one that nothing survives."""

from __future__ import annotations

import pytest
import torch

from sinklens.metrics import kl_by_row


@pytest.mark.parametrize("vocabulary", [64, 20_000])
@pytest.mark.parametrize(
    ("change", "allowed"),
    [(1e-4, 5e-3), (1e-3, 1e-3), (1e-2, 1e-4), (1.0, 1e-5), (10.0, 2e-6), (300.0, 2e-6)],
)
def test_kl_is_that_of_float64(vocabulary: int, change: float, allowed: float) -> None:
    generator = torch.Generator().manual_seed(0)
    clean = 2 * torch.randn(8, vocabulary, generator=generator)
    edited = clean + change * torch.randn(8, vocabulary, generator=generator) + 0.3
    before, after = (logits.double().log_softmax(-1) for logits in (clean, edited))
    wanted = (before.exp() * (before - after)).sum(-1)
    found = kl_by_row(edited, clean_log_probs=clean.log_softmax(-1))
    torch.testing.assert_close(found.double(), wanted, rtol=allowed, atol=0)
    assert found.dtype == torch.float32


def test_no_change_is_none() -> None:
    clean = torch.randn(4, 1000, generator=torch.Generator().manual_seed(1))
    found = kl_by_row(clean + 7, clean_log_probs=clean.log_softmax(-1))
    assert float(found.abs().max()) < 1e-10
