"""How often tests and verdicts are wrong where nothing is there, and how often intervals cover.

    python -m tests.benchmarks.calibration [--repeats 2000] [--runs 40]    writes the page
    python -m tests.benchmarks.calibration --rules                          one of its tables
    python -m tests.benchmarks.calibration --measure                        SmolLM2's differences

Paired differences of a known mean are simulated. Of each distribution

    p          the sign-flip test rejects that the mean is what it is; a skewed distribution is no
               true null of this test, which asks whether differences are symmetric
    control    treatment and control are drawn alike, and the verdict says that they differ
    coverage   the interval holds the mean: Student's t, bootstrap-t (`interval=bootstrap_t`), and
               the BCa interval beside them

and of rules by which a verdict could be given (`RULES`), how often each is wrong, and how often it
finds an effect that is there. All are computed for many experiments at once, from the formulas and
without the package's own statistics, which the tests hold against them. The same of whole runs: BOS
replaced in a model with random weights, other random prompts and draws each time. The mean that
intervals should hold is that of all runs.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

import sinklens
from sinklens.stats.effects import BOOTSTRAP_T, INTERVALS, LEVEL, RESAMPLES, STUDENT_T

PAGE = Path(__file__).parents[2] / "docs" / "calibration.md"
MEASURED = Path(__file__).parent / "smollm2_differences.json"
SIZES = (8, 16, 32, 64)
BCA = "bca"
OF_SMOLLM2 = {"SmolLM2, loss": "loss", "SmolLM2, sink mass": "sink_mass"}
BOOTSTRAPPED, BATCH = 4000, 500
Experiments = Float[np.ndarray, "experiment prompt"]
Ends = tuple[np.ndarray, np.ndarray]
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
DRAWN: Mapping[str, tuple[Draw, float]] = {
    "normal": (lambda random, n: random.standard_normal(n), 0.0),
    "Student's t, 3 degrees": (lambda random, n: random.standard_t(3, n), 0.0),
    "exponential": (lambda random, n: random.standard_exponential(n), 1.0),
    "lognormal": (lambda random, n: random.lognormal(0, 1, n), float(np.exp(0.5))),
    "in 5 % of prompts": (
        lambda random, n: (random.random(n) < 0.05) + 0.01 * random.standard_normal(n),
        0.05,
    ),
}
"""By name how differences are drawn, and their mean."""
RULES = (
    "Student's t",
    "bootstrap-t",
    "both",
    "Student's t, no ~",
    "both, no ~",
    "Student's t, 99 %",
)
"""Which intervals have to leave the null out; `no ~` gives no verdict on a marked row."""
EFFECTS, MARKED = (0.5, 1.0), 0.5
METRICS, LENGTH, RUN_SIZES = ("loss", "kl", "sink_mass"), 24, (8, 32)


class Calibration(NamedTuple):
    """Shares over simulated experiments."""

    rejected: float
    control: float
    covered: dict[str, float]


@cache
def differences_of_smollm2() -> dict[str, np.ndarray]:
    """What BOS -> mean changes in each of 256 windows of 64 tokens, by metric."""
    content = json.loads(MEASURED.read_text("utf-8"))
    return {name: np.array(values) for name, values in content.items()}


def distribution(name: str) -> tuple[Draw, float]:
    """How differences are drawn, and their mean; SmolLM2's own are drawn with replacement."""
    if name not in OF_SMOLLM2:
        return DRAWN[name]
    values = differences_of_smollm2()[OF_SMOLLM2[name]]
    return (lambda random, n: random.choice(values, n)), float(values.mean())


def simulate(name: str, n_prompts: int, repeats: int, seed: int = 0) -> Calibration:
    """Shares over `repeats` experiments of so many prompts; a batch has its own resamples."""
    random, (draw, mean) = np.random.default_rng([seed, n_prompts]), distribution(name)
    found: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    for start in range(0, repeats, BATCH):
        shape = min(BATCH, repeats - start), n_prompts
        treated, control = draw(random, shape), draw(random, shape)
        ends = {
            STUDENT_T: student_ends(treated - mean),
            BOOTSTRAP_T: bootstrap_t_ends(treated - mean, random),
            BCA: bca_ends(treated - mean, random),
        }
        found["p"].append(sign_flip_ps(treated - mean, random) <= LEVEL)
        found["control"].append(sign_flip_ps(treated - control, random) <= LEVEL)
        for method, (low, high) in ends.items():
            found[method].append((low <= 0) & (high >= 0))
    shares = {key: float(np.concatenate(each).mean()) for key, each in found.items()}
    return Calibration(shares.pop("p"), shares.pop("control"), shares)


def sign_flip_ps(differences: Experiments, random: np.random.Generator) -> np.ndarray:
    """The sign-flip p of every experiment, all by the same sign patterns."""
    size = differences.shape[1]
    if exact := 2**size <= RESAMPLES:
        signs = 1.0 - 2 * ((np.arange(2**size)[:, None] >> np.arange(size)) & 1)
    else:
        signs = random.choice([-1.0, 1.0], (RESAMPLES, size))
    sums, least = np.abs(signs @ differences.T), np.abs(differences.sum(1)) * (1 - 1e-12)
    larger = (sums >= least).sum(0)
    p: np.ndarray = larger / len(signs) if exact else (larger + 1) / (len(signs) + 1)
    return p


def rates_of_rules(name: str, n_prompts: int, repeats: int, effect: float = 0.0) -> list[float]:
    """By rule how often it says that the mean is not its null, which is `effect` away from it."""
    random, (draw, mean) = np.random.default_rng([7, n_prompts]), distribution(name)
    found = []
    for start in range(0, repeats, BATCH):
        differences = draw(random, (min(BATCH, repeats - start), n_prompts)) - mean + effect
        intervals = (
            student_ends(differences),
            bootstrap_t_ends(differences, random),
            student_ends(differences, level=0.01),
        )
        student, bootstrapped, strict = ((low > 0) | (high < 0) for low, high in intervals)
        clear, both = ~marked(differences), student & bootstrapped
        found.append([student, bootstrapped, both, student & clear, both & clear, strict])
    return [float(share) for share in np.concatenate(found, axis=1).mean(1)]


def marked(differences: Experiments) -> np.ndarray:
    """Which rows carry the mark (~): skewed, or a tenth of the prompts makes most of the sum."""
    size = differences.shape[1]
    skewed = np.abs(stats.skew(differences, axis=1)) >= 1
    skewed &= stats.skewtest(differences, axis=1).pvalue <= LEVEL
    sizes = np.sort(np.abs(differences), axis=1)[:, ::-1]
    few = sizes[:, : -(-size // 10)].sum(1) > MARKED * sizes.sum(1)
    is_marked: np.ndarray = skewed | few
    return is_marked


def student_ends(differences: Experiments, level: float = LEVEL) -> Ends:
    """Student's t interval of every experiment."""
    size = differences.shape[1]
    reach = stats.t.ppf(1 - level / 2, size - 1) * differences.std(1, ddof=1) / size**0.5
    return differences.mean(1) - reach, differences.mean(1) + reach


def bootstrap_t_ends(differences: Experiments, random: np.random.Generator) -> Ends:
    """The bootstrap-t interval of every experiment; Student's where resamples do not vary."""
    size, mean = differences.shape[1], differences.mean(1)
    counts = random.multinomial(size, np.full(size, 1 / size), BOOTSTRAPPED)
    centred = differences - mean[:, None]
    moved = counts @ centred.T / size
    squares = (counts @ (centred**2).T / size - moved**2).clip(0) * size / (size - 1)
    flat = squares <= 1e-12 * centred.var(1)
    pivot = np.where(flat, np.copysign(np.inf, moved), moved / np.sqrt(np.where(flat, 1, squares)))
    low, high = np.quantile(pivot, (LEVEL / 2, 1 - LEVEL / 2), axis=0, method="nearest")
    deviation, usual = differences.std(1, ddof=1), student_ends(differences)
    known = np.isfinite(low) & np.isfinite(high)
    low, high = (np.where(known, side, 0) * deviation for side in (low, high))
    return np.where(known, mean - high, usual[0]), np.where(known, mean - low, usual[1])


def bca_ends(differences: Experiments, random: np.random.Generator) -> Ends:
    """Bias-corrected and accelerated bootstrap intervals of the mean (Efron 1987)."""
    size = differences.shape[1]
    counts = random.multinomial(size, np.full(size, 1 / size), BOOTSTRAPPED)
    means, mean = np.sort(counts @ differences.T / size, axis=0), differences.mean(1)
    bias = stats.norm.ppf(((means < mean).mean(0) + (means <= mean).mean(0)) / 2)
    centred = differences - mean[:, None]
    skewness = (centred**3).sum(1) / (6 * (centred**2).sum(1) ** 1.5)
    ends = []
    for z in stats.norm.ppf((LEVEL / 2, 1 - LEVEL / 2)):
        share = stats.norm.cdf(bias + (bias + z) / (1 - skewness * (bias + z)))
        place = np.clip(np.round(share * (BOOTSTRAPPED - 1)), 0, BOOTSTRAPPED - 1).astype(int)
        ends.append(np.take_along_axis(means, place[None], 0)[0])
    return ends[0], ends[1]


def coverage_of_runs(n_prompts: int, runs: int) -> dict[tuple[str, str, str], float]:
    """By metric, kind of row and interval: how often runs hold the mean of all of them."""
    import torch

    from sinklens.models.prompts import Prompts
    from tests.families import boot

    model = boot("llama")
    ends: defaultdict[tuple[str, str, str], list[tuple[float, float, float]]] = defaultdict(list)
    for number in range(runs):
        generator = torch.Generator().manual_seed(1000 * n_prompts + number)
        tokens = torch.randint(4, int(model.cfg.d_vocab), (n_prompts, LENGTH), generator=generator)
        tokens[:, 0] = sinklens.models.bos_token_id(model)
        for method in INTERVALS:
            result = sinklens.run(
                "bos_replacement",
                model,
                Prompts(tokens, bos=True, source="random tokens"),
                conditions=("mean",),
                metrics=METRICS,
                null_models=0,
                seed=number,
                interval=method,
                progress=False,
            )
            for row in result.effects:
                if row.ci_low is not None and row.ci_high is not None:
                    found = (row.effect, row.ci_low, row.ci_high)
                    ends[row.metric, row.kind, method].append(found)
    covered = {}
    for key, values in ends.items():
        effect, low, high = np.array(values).T
        covered[key] = float(((low <= effect.mean()) & (effect.mean() <= high)).mean())
    return covered


def measure(windows: int = 256, length: int = 64) -> None:
    """Store what BOS -> mean changes in windows of the shipped text, in SmolLM2."""
    from tests.conftest import smollm2_file

    model = sinklens.load(smollm2_file())
    result = sinklens.run(
        "bos_replacement",
        model,
        sinklens.prompts(model, n=windows, length=length),
        conditions=("mean",),
        metrics=tuple(OF_SMOLLM2.values()),
        draws=0,
        null_models=0,
        progress=False,
    )
    content = {}
    for number, row in enumerate(result.effects):
        value, baseline = (result.per_prompt[side][number] for side in ("value", "baseline"))
        content[row.metric] = [float(f"{one:.5g}") for one in (value - baseline).tolist()]
    MEASURED.write_text(json.dumps(content) + "\n", "utf-8")


def table(repeats: int) -> list[str]:
    """The simulated part of the page."""
    lines = [
        "| differences | prompts | p <= 0.05 | control | Student's t | bootstrap-t | BCa |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in (*DRAWN, *OF_SMOLLM2):
        for size in SIZES:
            found = simulate(name, size, repeats)
            shares = (found.rejected, found.control, *found.covered.values())
            lines.append(f"| {name} | {size} | {' | '.join(f'{one:.3f}' for one in shares)} |")
            print(lines[-1], flush=True)
    return lines


def table_of_rules(repeats: int) -> list[str]:
    """How often verdicts by each rule are wrong, and how often they find an effect."""
    lines = [f"| differences | prompts | {' | '.join(RULES)} |", f"|{'---|' * (len(RULES) + 2)}"]
    cases = [(name, 0.0) for name in (*DRAWN, *OF_SMOLLM2)]
    cases += [("normal", effect) for effect in EFFECTS]
    for name, effect in cases:
        shown = f"{name}, an effect of {effect} sd" if effect else name
        for size in SIZES:
            rates = rates_of_rules(name, size, repeats, effect)
            lines.append(f"| {shown} | {size} | {' | '.join(f'{one:.3f}' for one in rates)} |")
            print(lines[-1], flush=True)
    return lines


def table_of_runs(runs: int) -> list[str]:
    """The part of whole runs."""
    lines = ["| metric | row | prompts | Student's t | bootstrap-t |", "|---|---|---|---|---|"]
    by_size = {size: coverage_of_runs(size, runs) for size in RUN_SIZES}
    for metric, kind in dict.fromkeys(key[:2] for key in by_size[RUN_SIZES[0]]):
        for size, found in by_size.items():
            shares = [f"{found[metric, kind, method]:.3f}" for method in INTERVALS]
            lines.append(f"| `{metric}` | {kind} | {size} | {' | '.join(shares)} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Write the tables of the page, or measure SmolLM2's differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--rules", action="store_true")
    options = parser.parse_args()
    if options.measure:
        measure()
        return
    made = {"rules": table_of_rules(options.repeats)}
    if not options.rules:
        made |= {"simulated": table(options.repeats), "runs": table_of_runs(options.runs)}
    text = PAGE.read_text("utf-8")
    for name, lines in made.items():
        before, rest = text.split(f"<!-- {name} -->\n\n")
        after = rest.partition("\n\n")[2]
        text = f"{before}<!-- {name} -->\n\n" + "\n".join(lines) + f"\n\n{after}"
    PAGE.write_text(text.rstrip() + "\n", "utf-8")


if __name__ == "__main__":
    main()
