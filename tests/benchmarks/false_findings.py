"""How often verdicts on models with random weights are wrong.

    python -m tests.benchmarks.false_findings [--models 100] [--family llama] [--experiment NAME]

Nothing was learned by a model with random weights, so that no contrast with a control or an
empirical null is a finding. Each experiment that tests some is run on models of one tiny
configuration whose weights differ, with its own statistics from end to end, and the verdicts that
are `more than` or `less than` a control are counted by metric. With 100 models the standard error
of a rate of 5 % is 2 % for one condition; rows of one model are not independent.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import torch

import sinklens
from sinklens.models.prompts import Prompts
from sinklens.models.random_weights import random_weights
from sinklens.results.result import ExperimentResult
from tests.families import boot

RUNS: dict[str, dict[str, Any]] = {
    "bos_replacement": {"conditions": ("mean", "zero", "random_token", "gaussian")},
    "position0_patching": {"layers": (0, 1)},
    "sink_head_ablation": {"heads": ("L0H0",)},
    "reference_frame": {"column_sets": 20},
    "absolute_position": {},
    "outlier_dimensions": {"deviations": 1.0, "share": 0.5},
    "massive_activations": {"scale_free": 2.0, "sweep_tokens": 8},
    "spike_sink_decoupling": {"scale_free": 2.0},
    "active_dormant": {"removed": (0.25, 0.5), "random_weights": False},
    "input_dependence": {"random_weights": False},
    "bias_constancy": {"heads": ("L0H0", "L1H1")},
    "position_bias": {},
    "attention_allocation": {"random_weights": False},
    "token_synchronisation": {"random_weights": False},
    "positional_spectrum": {"queries": 4, "scales": (0.5,)},
    "rope_phase": {"queries": 4, "angles": 4},
    "attention_likelihood": {"words": 4, "substituted": 1, "permutations": 100},
}
"""With thresholds so low that random weights have outliers and spikes to intervene on."""
OF_WORDS = ("attention_likelihood",)
"""These run on the shipped text, in models of the configuration of `rope` with its tokenizer."""
N_PROMPTS, LENGTH = 8, 24


def results(family: str, experiment: str, models: int) -> Iterator[ExperimentResult]:
    """The experiment on models of a family with other weights each."""
    of_words = experiment in OF_WORDS
    base: Any = sinklens.load("rope") if of_words else boot(family)
    text = sinklens.prompts(base, n=N_PROMPTS * models, length=2 * LENGTH) if of_words else None
    for seed in range(models):
        model: Any = random_weights(base, 10_000 + seed)[0]
        model.tokenizer = base.tokenizer
        some = slice(N_PROMPTS * seed, N_PROMPTS * (seed + 1))
        prompts = random_tokens(base, seed) if text is None else text[some]
        yield sinklens.run(
            experiment, model, prompts, seed=seed, progress=False, **RUNS[experiment]
        )


def random_tokens(base: Any, seed: int) -> Prompts:
    """Prompts of random tokens behind BOS."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, int(base.cfg.d_vocab), (N_PROMPTS, LENGTH), generator=generator)
    tokens[:, 0] = int(sinklens.models.bos_token_id(base) or 0)
    return Prompts(tokens, bos=True, source="random tokens")


def rates(family: str, experiment: str, models: int) -> dict[tuple[str, str], tuple[int, int, int]]:
    """By metric and control: contrasts, those with p <= 0.05, those with q <= 0.05."""
    tested: Counter[tuple[str, str]] = Counter()
    by_p: defaultdict[tuple[str, str], int] = defaultdict(int)
    by_q: defaultdict[tuple[str, str], int] = defaultdict(int)
    for result in results(family, experiment, models):
        for row in result.effects:
            if row.kind == "contrast" and row.p_value is not None and row.q_value is not None:
                key = row.metric, str(row.against)
                tested[key] += 1
                by_p[key] += row.p_value <= 0.05
                by_q[key] += row.q_value <= 0.05
    return {key: (count, by_p[key], by_q[key]) for key, count in tested.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--family", default="llama")
    parser.add_argument("--experiment", action="append", choices=RUNS, help="by default all")
    options = parser.parse_args()
    print("| experiment | metric | control | contrasts | p <= 0.05 | q <= 0.05 |")
    print("|---|---|---|---|---|---|")
    for experiment in options.experiment or RUNS:
        for (metric, control), counts in rates(options.family, experiment, options.models).items():
            count, by_p, by_q = counts
            print(
                f"| `{experiment}` | `{metric}` | {control} | {count} | {by_p / count:.1%} | "
                f"{by_q / count:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
