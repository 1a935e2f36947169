"""The tasks say what their papers say, checked token by token in plain Python."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter

import pytest
import torch

import sinklens
from sinklens.models.shipped import prompts, text
from sinklens.models.shipped.backcopy import (
    FIRST,
    N_TRIGGERS,
    is_trigger,
    optimum,
    sample,
    statistics,
)
from sinklens.models.shipped.text import BOS, EOS, HELD_OUT_SEED, MASK
from sinklens.zoo import backcopy, corpus, tasks
from sinklens.zoo.corpus import WINDOW

pytestmark = pytest.mark.slow

TEXT = text.training_text()


def test_the_triggers_are_the_most_frequent_letters() -> None:
    counted = Counter(c for c in TEXT if c.isascii() and c.isalpha())
    characters, unigram, bigram = statistics()
    assert len(set(characters)) == len(characters) == len(bigram) == 52
    assert characters[:3] == "".join(c for c, _ in counted.most_common(3))
    kept = "".join(c for c in TEXT if c in set(characters))
    pairs = Counter(itertools.pairwise(kept))
    total = sum(counted[c] for c in characters)
    for a in (0, 1, 7, 40):
        assert float(unigram[a]) == pytest.approx(counted[characters[a]] / total)
        after = sum(pairs[characters[a], c] for c in characters)
        for b in (0, 3, 30):
            share = pairs[characters[a], characters[b]] / after
            assert float(bigram[a, b]) == pytest.approx(share)


def test_sequences_follow_the_rule() -> None:
    tokens = sample(200, backcopy.LENGTH, seed=3, step=5)
    assert tokens.shape == (200, backcopy.LENGTH)
    triggers = set(range(FIRST, FIRST + N_TRIGGERS))
    copies = 0
    for row in tokens.tolist():
        assert row[0] == BOS and row[1] not in triggers and min(row[1:]) >= FIRST
        for before, here, after in zip(row[1:], row[2:], row[3:], strict=False):
            if here in triggers:
                assert after == before and before not in triggers
                copies += 1
    assert copies > 5_000
    # What the docstring says of runs of two letters, and of triggers.
    runs = (tokens[:, 4:] == tokens[:, 2:-2]) & (tokens[:, 3:-1] == tokens[:, 1:-3])
    assert float(runs.double().mean()) == pytest.approx(0.13, abs=0.02)
    assert float(is_trigger(tokens[:, 1:]).double().mean()) == pytest.approx(0.278, abs=0.01)
    # After an ordinary character comes a draw from its row.
    bigram = statistics().bigram
    often = FIRST + 5
    following = Counter(
        after for row in tokens.tolist() for here, after in itertools.pairwise(row) if here == often
    )
    count = sum(following.values())
    for token, seen in following.most_common(5):
        p = float(bigram[5, token - FIRST])
        assert seen / count == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / count))


def test_the_optimum_is_the_loss_of_the_known_rule() -> None:
    tokens = sample(4, 32, seed=1, step=0)
    bigram = statistics().bigram
    best = optimum(tokens)
    assert best.shape == (4, 30)
    for row, losses in zip(tokens.tolist(), best.tolist(), strict=True):
        for place, loss in enumerate(losses):
            here, after = row[place + 1] - FIRST, row[place + 2] - FIRST
            wanted = 0.0 if here < N_TRIGGERS else -math.log(bigram[here, after])
            assert loss == pytest.approx(wanted)


def test_sequences_are_the_same_for_the_same_seed_and_step() -> None:
    first, again, other = (sample(3, 20, 7, step) for step in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first, sample(3, 20, 8, 0))
    assert not torch.equal(first, sample(3, 20, HELD_OUT_SEED, 0))
    stream = backcopy.BackcopyTask().batches(3, 7, 1)
    assert torch.equal(next(stream).input_ids[:, :20], sample(3, 256, 7, 1)[:, :20])


def test_no_two_seeds_share_a_generator() -> None:
    """torch reads 32 bits of a seed: places there lie further apart than any run is long."""
    seeds = [*range(1000), HELD_OUT_SEED]
    places = sorted(text.generator_at(seed, 0).initial_seed() for seed in seeds)
    assert max(places) < 2**32
    gaps = [after - before for before, after in itertools.pairwise([*places, places[0] + 2**32])]
    assert min(gaps) > 1_000_000


@pytest.mark.parametrize(
    ("task", "digest"),
    [
        (tasks.TextWindows(), "cdcfc29e82edd915"),
        (tasks.TextWindows(bos=False), "abd7cfa3aaf7fec2"),
        (tasks.MaskedWindows(), "ce3e1af3896982fb"),
        (backcopy.BackcopyTask(), "45580a4fc4fe96ce"),
    ],
    ids=["text", "without BOS", "masked", "backcopy"],
)
def test_the_order_is_that_of_the_shipped_members(task: tasks.Task, digest: str) -> None:
    """A lock: the sixth batch of seed 0, tokens and labels."""
    content = b"".join(part.numpy().tobytes() for part in next(task.batches(32, 0, 5)))
    assert hashlib.sha256(content).hexdigest()[:16] == digest


def test_masking_hides_what_it_should() -> None:
    windows = torch.randint(4, 1024, (400, WINDOW), generator=torch.Generator().manual_seed(0))
    windows[:, 0] = BOS
    closed = prompts.closed(windows)
    assert (closed[:, -1] == EOS).all() and torch.equal(closed[:, :-1], windows[:, :-1])
    inputs, labels = tasks.mask_tokens(closed, seed=0, step=0)
    chosen = labels != tasks.IGNORED
    assert not chosen[:, [0, -1]].any()
    assert torch.equal(labels[chosen], closed[chosen])
    assert torch.equal(inputs[~chosen], closed[~chosen])
    inner = chosen[:, 1:-1].float().mean()
    assert float(inner) == pytest.approx(0.4, abs=0.01)
    assert float((inputs[chosen] == MASK).float().mean()) == pytest.approx(0.8, abs=0.03)
    kept = (inputs[chosen] == closed[chosen]).float().mean()
    assert float(kept) == pytest.approx(0.1, abs=0.03)


def test_the_loss_without_context_is_that_of_the_joint_table() -> None:
    """What is shown, given what is true, as a table; its columns are what a place can tell."""
    counts = torch.ones(1024, dtype=torch.float64)
    counts += torch.bincount(torch.tensor(corpus.training_tokens()), minlength=1024)
    counts[:4] = 0
    truth = counts / counts.sum()
    swapped = torch.zeros(1024, dtype=torch.float64)
    swapped[4:] = 1 / 1020
    shown_given_true = 0.1 * torch.eye(1024, dtype=torch.float64) + 0.1 * swapped
    shown_given_true[:, MASK] += 0.8
    joint = truth[:, None] * shown_given_true
    true_given_shown = joint / joint.sum(0)
    # A generator of its own: drawn tokens, whatever ran before and with no global seed.
    generator = torch.Generator().manual_seed(0)
    windows = torch.multinomial(truth, 8000, replacement=True, generator=generator)
    batch = tasks.mask_tokens(windows.view(100, 80), seed=0, step=0)
    chosen = batch.labels != tasks.IGNORED
    wanted = -true_given_shown[batch.labels[chosen], batch.input_ids[chosen]].log().mean()
    found = tasks.loss_without_context(batch)
    assert found == pytest.approx(float(wanted), abs=1e-5)
    entropy = -(joint * true_given_shown.log())[joint > 0].sum()
    assert found == pytest.approx(float(entropy), abs=0.1)


def test_members_read_the_same_windows_in_the_same_order() -> None:
    with_bos, without = (next(tasks.TextWindows(bos).batches(8, 0, 5)) for bos in (True, False))
    masked = next(tasks.MaskedWindows().batches(8, 0, 5))
    assert torch.equal(with_bos.input_ids[:, 1:], without.input_ids)
    seen = masked.labels != tasks.IGNORED
    assert torch.equal(masked.labels[seen], with_bos.input_ids[seen])
    plain = corpus.training_windows(corpus.training_tokens(), WINDOW)
    stream = corpus.batches(plain, 8, 0)
    sixth = [next(stream) for _ in range(6)][-1]
    assert torch.equal(with_bos.input_ids, sixth)


def test_each_shipped_model_gets_prompts_of_its_own_kind() -> None:
    encoder, backcopy_model = sinklens.load("encoder"), sinklens.load("backcopy-1")
    tokens = sinklens.prompts(encoder, n=4).tokens
    assert (tokens[:, 0] == BOS).all() and (tokens[:, -1] == EOS).all()
    own = sinklens.prompts(backcopy_model, n=4)
    assert own.source == "backcopy" and torch.equal(own.tokens, sample(4, 64, HELD_OUT_SEED, 64))
    without = sinklens.prompts(backcopy_model, n=4, bos=False)
    assert without.length == 64 and not (without.tokens == BOS).any()
    assert sinklens.prompts(backcopy_model, TEXT[:2000], n=4).source == "text"
    # Trained without BOS, so prompts have none; trained with BOS, so they have it, whatever
    # TransformerLens takes to be the architecture's habit.
    assert not sinklens.prompts(sinklens.load("no-bos"), n=4).bos
    assert sinklens.prompts(sinklens.load("nope"), n=4).bos
