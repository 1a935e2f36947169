"""Attention and likelihood: does an unlikely word attend to itself, because it is unlikely?

Of the words of a prompt (`_words`; one token each), with t a word's position and A averaged over
heads: `self`, A_tt; `context`, the attention to the other positions but position 0. Likelihood is
the model's own: log p of the word from what stands before it, in bidirectional models from the
prompt with the word masked.

    rho          Spearman's rho with the likelihood over all words, mean over layers, with a
                 jackknife over prompts. Null: the same of uniform attention, which for a causal
                 model is rho with 1 / (t + 1): likelihood grows with t. Beside it the likelihoods
                 permuted within prompts. `partial`: word length, frequency in the shipped corpus
                 and position partialled out; `without_key0`: A_tt / (1 - A_t0), another reading;
                 `unmasked` (bidirectional models): the likelihood of the word that is seen
    largest_rho  the largest |rho| of all layers, beside the mean largest of permutations; what is
                 the largest of many is no estimate of any layer's

Then words are replaced, one at a time: by the `likeliest` other word, or by one of the `likely`,
`middle` or `unlikely` third of the whole words by rank; `self_attention` and `context_attention` of
that position, beside a word drawn from those as frequent as the substitute (`same_frequency`).

Follows Ruscio, Maiorca and Silvestri 2023 (2303.08288), who take encoders, unmasked likelihood and
the layer with the largest rho: 0.64 for BERT-base in layer 9, 0.69 for DistilBERT, 0.77 to 0.82 for
three RoBERTa. Those are none of the shipped models, and selected. Ours are masked and next-token
likelihood, position 0 apart, the nulls and the controls. What follows from a substitution is about
that position's row, not about the model's use of it.

It runs every prompt once, once for each substitute and control (48 times by default), and in
bidirectional models once for each masked word (16 times). Takes as long as 42 plain forwards of the
batch (SmolLM2-135M, 16 prompts of 64 tokens, one core).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from ...core.errors import SinklensError, UsageError
from ...core.seeds import content_seed
from ...results.effect_sentences import Compared
from ...results.estimates import NOT_TESTED, Effect, Measure, Reference, Sample
from ...results.figures import Forest, Lines, Stack
from ...results.record import Record
from ...results.wording import NOT_DIFFERENT, null_verdict, number, probability
from ...runner.config import ExperimentConfig, setting
from ...runner.needs import ATTENTION_EVERYWHERE, EQUAL_LENGTHS, at_least_tokens
from ...runner.registry import experiment
from ...runner.run import Run
from ...stats.jackknife import pseudo_values
from ._rank_correlation import permuted_correlations, rank_correlation
from ._word_reads import WordRows, changed, read_words, uniform_shares
from ._words import LIKELIEST, THIRDS, Vocabulary, Word, chosen_words

CONDITIONS = (LIKELIEST, *reversed(THIRDS))
SHARES = ("self", "context")
PERMUTED, SAME_FREQUENCY, UNIFORM = "permuted_likelihood", "same_frequency", "uniform_attention"
LEAST = 8
ALIKE = "cannot be computed: likelihood, or attention in some layer, does not vary over the words"
rho = partial(Measure, "rho", form=".2f", lowest=-1.0, highest=1.0)
MEASURES = {
    "rho": rho(null="no relation"),
    **{f"rho/{share}": rho(null="uniform attention") for share in SHARES},
    "largest_rho": Measure(
        "|rho|", "its largest under permutation", ".2f", lowest=0.0, highest=1.0
    ),
    **{
        f"{share}_attention": Measure("share of attention", "the clean run", ".1%")
        for share in SHARES
    },
}


@dataclass(frozen=True)
class AttentionLikelihoodConfig(ExperimentConfig):
    """Settings; a condition is a substitute, `draws` are words of its frequency.

    Attributes:
        words: The most words of a prompt that are correlated, drawn at random.
        substituted: How many of them are replaced.
        permutations: Random orders of the likelihoods.
    """

    words: int = setting(16, least=1)
    substituted: int = setting(2, least=1)
    permutations: int = setting(1000, least=100)


def uniform_in_words(result: Record) -> Iterator[str]:
    """Where uniform attention has the same rho, that it has."""
    row = next((r for r in result.effects if (r.metric, r.condition) == ("rho", "self")), None)
    if row is None or not row.baseline or null_verdict(row) != NOT_DIFFERENT[0]:
        return
    yield (
        "Uniform attention has as large a rho without looking at words: those further on are "
        "likelier and see more keys."
    )


def largest_in_words(result: Record) -> Iterator[str]:
    """The largest rho of all layers, tested against the largest of each permutation."""
    parts = []
    for share, found in result.findings.get("largest", {}).items():
        row = result.find(metric="largest_rho", condition=share)
        measure = result.measure("largest_rho", share)
        parts.append(
            f"{share} {number(measure, found['rho'])} in L{found['layer']} (permuted likelihoods: "
            f"{number(measure, row.baseline)} on average, p = {probability(found['p'])})"
        )
    if parts:
        yield f"Largest rho of all layers, by attention to: {'; '.join(parts)}."


@experiment(
    paper="Ruscio et al. 2023 (2303.08288)",
    question="Does a word's likelihood decide how much its position attends to itself?",
    needs=(ATTENTION_EVERYWHERE, EQUAL_LENGTHS, at_least_tokens(4)),
    conditions=CONDITIONS,
    measures=MEASURES,
    says=(
        "Rank correlation of a word's likelihood with the attention to itself, over words: "
        "{rho/self}.",
        uniform_in_words,
        "Length, frequency and position partialled out: {rho/self:partial}.",
        "Of what does not go to position 0: {rho/self:without_key0}.",
        "With the likelihood of the word that is seen, as in the paper: {rho/self:unmasked}.",
        "With the attention to its context: {rho/context}; partialled out {rho/context:partial}.",
        largest_in_words,
        Compared("A word replaced by", "self_attention"),
    ),
    figure=Stack(
        (
            Lines(
                ("rho_self", "rho_self_partial", "rho_context", "rho_self:*"),
                "Likelihood and attention, by layer",
                "layer",
                "rank correlation over words",
                names=("itself", "itself, partialled out", "context", ""),
            ),
            Forest(("self_attention",)),
        ),
        "Likelihood of words and their attention",
    ),
    smallest={"words": 4, "substituted": 1, "permutations": 100},
)
def attention_likelihood(run: Run[AttentionLikelihoodConfig]) -> None:
    """Correlate attention with likelihood over words, and replace words.

    Raises:
        SinklensError: Patterns cannot be read, there are no whole words, or a bidirectional model
            has no mask token.
        UsageError: A prompt has no word, or all of them have too few.
    """
    config, capabilities = run.config, run.capabilities
    if reason := capabilities.lacking("pattern"):
        raise SinklensError(
            f"attention_likelihood reads every pattern; on {capabilities.architecture} {reason}"
        )
    capabilities.visible_keys(run.prompts.length)  # refuses masks of another form
    mask = None if capabilities.causal else _mask_token(run)
    vocabulary = Vocabulary(run.model)
    words = chosen_words(vocabulary, run.prompts, config.words, config.seed)
    flat = [word for own in words for word in own]
    if len(flat) < LEAST:
        raise UsageError(
            f"too few words for a correlation: {len(flat)} in all, and it takes {LEAST}; use more "
            "or longer prompts (--n-prompts, --length)"
        )
    run.drawn(words=[[word.position for word in own] for own in words])
    replaced = [word for own in words for word in own[: config.substituted]]
    count = len(replaced) * len(run.conditions) * (1 + config.draws)
    steps = [len(run.prompts), *([len(flat)] if mask is not None else []), count]
    run.announce(sum(run.batches(run.prompts.take(torch.zeros(n).long())) for n in steps if n))

    likelihood, unmasked, attention, substitutes = read_words(run, vocabulary, words, mask)
    _add_correlations(run, vocabulary, flat, likelihood, unmasked, attention)
    if substitutes:
        _add_substitutions(run, vocabulary, replaced, substitutes, attention, flat)


def _mask_token(run: Run[Any]) -> int:
    """The mask token.

    Raises:
        SinklensError: There is none.
    """
    token = getattr(run.model.tokenizer, "mask_token_id", None)
    if token is None:
        raise SinklensError(
            "the likelihood of a word in a bidirectional model is that of the word masked, and "
            "this tokenizer has no mask token; load the model with a tokenizer that has one"
        )
    return int(token)


def _add_correlations(
    run: Run[AttentionLikelihoodConfig],
    vocabulary: Vocabulary,
    words: Sequence[Word],
    likelihood: np.ndarray,
    unmasked: np.ndarray | None,
    attention: np.ndarray,
) -> None:
    """Rho of both shares, beside uniform attention and permutations, and the largest."""
    groups = np.array([word.prompt for word in words])
    tokens = torch.tensor([word.token for word in words])
    places = [word.position for word in words]
    covariates = np.column_stack([vocabulary.length[tokens], vocabulary.frequency[tokens], places])
    seeds = [content_seed(row, run.config.seed) for row in run.prompts.tokens]
    own, rest = attention[..., 0], attention[..., 2]
    even = uniform_shares(run, places)
    largest = {}
    for share, values, null in (("self", own, even[0]), ("context", rest, even[1])):
        permuted = permuted_correlations(likelihood, values, groups, seeds, run.config.permutations)
        uniform = np.nan_to_num(rank_correlation(likelihood, null))
        by_layer = _add_rho(run, share, likelihood, values, groups, uniform, permuted)
        partial_ = _add_rho(
            run, f"{share}:partial", likelihood, values, groups, 0.0, None, covariates
        )
        if by_layer is None:
            continue
        run.keep(f"rho_{share}", torch.tensor(by_layer), "layer")
        run.keep(f"rho_{share}:{UNIFORM}", torch.tensor(uniform), "layer")
        if partial_ is not None:
            run.keep(f"rho_{share}_partial", torch.tensor(partial_), "layer")
        most, at = np.abs(permuted).max(1), int(np.abs(by_layer).argmax())
        run.add("largest_rho", share, Sample(float(abs(by_layer[at])), float(most.mean())))
        p = (1 + (most >= abs(by_layer[at])).sum()) / (1 + len(most))
        layer = run.capabilities.attention[at]
        largest[share] = {"layer": layer, "rho": float(by_layer[at]), "p": float(p)}
    run.facts(largest=largest, words=len(words))
    tiny = np.finfo(np.float32).tiny
    beside = own / np.maximum(own + rest, tiny)
    _add_rho(run, "self:without_key0", likelihood, beside, groups, 0.0)
    if unmasked is not None:
        _add_rho(run, "self:unmasked", unmasked, own, groups, 0.0)


def _add_rho(
    run: Run[Any],
    condition: str,
    likelihood: np.ndarray,
    values: np.ndarray,
    groups: np.ndarray,
    null: np.ndarray | float,
    permuted: np.ndarray | None = None,
    covariates: np.ndarray | None = None,
) -> np.ndarray | None:
    """A row of the mean over layers, with a jackknife over prompts; rho by layer, if there is."""
    by_layer = rank_correlation(likelihood, values, covariates)
    if not np.isfinite(by_layer).all():
        run.left_out(f"rho of {condition}", ALIKE)
        return None
    without = []
    for prompt in range(len(run.prompts)):
        kept = groups != prompt
        some = None if covariates is None else covariates[kept]
        enough = kept.sum() >= LEAST
        without.append(
            rank_correlation(likelihood[kept], values[kept], some).mean() if enough else np.nan
        )
    whole, left = float(by_layer.mean()), np.array(without)
    sample: Any = pseudo_values(whole, left) if np.isfinite(left).all() else whole
    mean = float(np.mean(null))
    references = []
    if permuted is not None:
        other = Sample(float(permuted.mean()), mean)
        references.append(Reference(other, PERMUTED, "null", models=NOT_TESTED))
    run.add("rho", condition, Sample(sample, mean), *references)
    return by_layer


def _add_substitutions(
    run: Run[AttentionLikelihoodConfig],
    vocabulary: Vocabulary,
    replaced: Sequence[Word],
    substitutes: Sequence[Sequence[int]],
    attention: np.ndarray,
    words: Sequence[Word],
) -> None:
    """Read the position of each replaced word under every substitute and its controls."""
    draws, seed = run.config.draws, run.config.seed
    tokens, places_of = [], []
    for word, own in zip(replaced, substitutes, strict=True):
        content = content_seed(run.prompts.tokens[word.prompt], seed)
        for kind, token in zip(run.conditions, own, strict=True):
            drawn = [
                vocabulary.as_frequent(token, word, [content, word.position, draw, *kind.encode()])
                for draw in range(draws)
            ]
            tokens += [token, *drawn]
            places_of += [word] * (1 + draws)
    places = torch.tensor([[word.position] for word in places_of])
    (read,) = run.read(
        WordRows(run.capabilities.attention, places),
        prompts=changed(run.prompts, places_of, tokens),
    )
    shape = len(replaced), len(run.conditions), 1 + draws, 3
    values = read[:, :, 0].double().mean((1, 2)).reshape(shape).numpy()
    before = attention[[words.index(word) for word in replaced]].mean(1)
    prompts = np.array([word.prompt for word in replaced])

    def by_prompt(numbers: np.ndarray) -> np.ndarray:
        return np.stack([numbers[prompts == p].mean(0) for p in range(len(run.prompts))], -1)

    run.drawn(substitutes=[[*own] for own in substitutes])
    for share, part in (("self", 0), ("context", 2)):
        clean = by_prompt(before[:, part])
        for number_, kind in enumerate(run.conditions):
            found = by_prompt(values[:, number_, :, part])
            references = []
            if draws:
                references.append(Reference(Sample(found[1:], clean, draws), SAME_FREQUENCY))
            run.add(f"{share}_attention", kind, Effect(found[0], clean), *references)
