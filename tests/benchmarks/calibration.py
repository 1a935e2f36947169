"""How often the test rejects a true null, and how often the interval covers.

    python -m tests.benchmarks.calibration [repeats]

Paired differences are simulated with mean 0 and put through `effects.paired_row`, as an experiment
would. Normal differences should give p < 0.05 in 5 % and coverage of 95 %. A skewed distribution
(exponential, shifted to mean 0) is no true null of the sign-flip test, which asks whether the
differences are symmetric; its figures show how far off interval and test then are.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np

from sinklens.stats.effects import LEVEL, paired_row

DISTRIBUTIONS = ("normal", "skewed")
SIZES = (8, 16, 64)


class Calibration(NamedTuple):
    """Shares over simulated experiments."""

    rejected: float
    covered: float


def simulate(distribution: str, n_prompts: int, repeats: int, seed: int = 0) -> Calibration:
    """Rejection and coverage over `repeats` experiments whose true mean difference is 0."""
    random = np.random.default_rng([seed, n_prompts])
    rejected = covered = 0
    for number in range(repeats):
        if distribution == "normal":
            differences = random.standard_normal(n_prompts)
        else:
            differences = random.standard_exponential(n_prompts) - 1
        row = paired_row(
            "loss", "null", "treatment", differences, np.zeros(n_prompts), tested=True, seed=number
        ).effect
        assert row.p_value is not None and row.ci_low is not None and row.ci_high is not None
        rejected += row.p_value < LEVEL
        covered += row.ci_low <= 0 <= row.ci_high
    return Calibration(rejected / repeats, covered / repeats)


def main() -> None:
    """Print the table at full size."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    print(
        f"{repeats} simulated experiments each; sampling error {(0.05 * 0.95 / repeats) ** 0.5:.4f}"
    )
    print("differences  n   p < 0.05  covered")
    for distribution in DISTRIBUTIONS:
        for size in SIZES:
            found = simulate(distribution, size, repeats)
            print(f"{distribution:10} {size:3}   {found.rejected:.4f}    {found.covered:.4f}")


if __name__ == "__main__":
    main()
