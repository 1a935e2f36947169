"""Spectra and wavelets of attention over positions, beside attention that knows no positions.

Ruscio et al. 2025 (2410.18067 v4) read attention as a signal over positions and find most of its
power at low frequencies, a correlation of -0.42 to -0.74 between positional and spectral entropy,
and wavelet coefficients that change little when tokens are left out. How a pattern becomes one
signal they do not say, nor over what they correlate, nor how vectors of two lengths are compared.
Chosen here, with what other choices give beside it:

    signal         a query's row, measures averaged over queries of the second half of the prompt
                   (`_signals`); also the mean of these rows (`mean_row`) and their mean by offset
                   (`offset`), less its mean (`row:mean_removed`), and without window
    spectrum       Hann window, zeros up to a power of two (`_spectra`). The window is 0 at key 0,
                   so that the spectrum does not see what is attended to there
    correlation    of a head, over prompts, of both entropies averaged over queries; mean over
                   heads, jackknife interval. Also over queries of a prompt, and over the heads
                   of a layer
    wavelets       entropy of the share of energy of each coefficient; `wavelet_entropy_raw` is as
                   the paper writes it, without normalisation
    sensitivity    1 - cosine of the coefficients of the mean row in the prompt and in a part of its
                   tokens: the first (`prefix`), every other (`strided`), drawn (`random`; position
                   0 stays); those of the longer row are rescaled at each scale
    window entropy, near to far    no formula is given: entropy of the last 16, 32, 64 keys among
                   themselves over its maximum; attention within `near` tokens over the rest

Softmax of random logits of the same temperature and permuted rows stand beside every number. The
error of reconstruction that the paper reports is float rounding, and is not measured.

Then rotary planes are removed from the logits (`hook_rot_q`, `hook_rot_k`), a third of them by
frequency: loss, KL of predictions and of attention, and sink mass, beside as many other planes
drawn at random.

Takes as long as 59 plain forwards of the batch (SmolLM2-135M, 16 prompts of 64 tokens, one core).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...core.seeds import seeded
from ...results.effect_sentences import Compared
from ...results.estimates import Measure
from ...results.figures import Forest, Lines, Stack
from ...results.record import Record
from ...results.wording import number, phrase, portion
from ...runner.compare import Comparison, Control
from ...runner.config import ExperimentConfig, setting
from ...runner.needs import EQUAL_LENGTHS, WITH_ATTENTION, Need
from ...runner.registry import experiment
from ...runner.run import Run
from ...stats.effects import EffectSize
from ._rotary import Planes, bands, read_planes, remove_planes
from ._signals import ATTENTION_KL, RANDOM, Spectra, attention_kl, extraction
from ._spectra import require_pywt
from ._spectral_rows import (
    CORRELATION,
    WITHOUT_MEAN,
    add_correlations,
    add_measures,
    add_sensitivity,
    published,
    sampled_prompts,
)

CONDITIONS = ("fast", "middle", "slow")
SHORTEST = 6
SPECTRAL = ("low_share", "mid_share", "high_share", "selectivity", "spectral_entropy")
PUBLISHED, OTHER_PLANES = "published", "random_planes"
HEADLINES = (
    ("spectral_entropy", "row"),
    ("low_share", "row"),
    ("low_share", WITHOUT_MEAN),
    ("selectivity", "row"),
    ("wavelet_entropy", "scale0"),
    ("scale_sensitivity", "prefix:0.5"),
    ("window_entropy", "last_16"),
    ("near_to_far", "every_key"),
)
PUBLISHED_VALUES: Mapping[str, Mapping[str, float]] = {
    "spectral_entropy": {"row": 2.370},
    "selectivity": {"row": 0.758},
    CORRELATION: {"prompts": -0.510},
    "scale_sensitivity": {"prefix:0.5": 0.038, "prefix:0.25": 0.089},
    "window_entropy": {"last_16": 0.877, "last_32": 0.886, "last_64": 0.882},
}
"""Of Llama-3.2-1B, the smallest of its family, by the condition beside which they stand."""
PUBLISHED_NOTE = (
    "Rows named published are of Llama-3.2-1B (Ruscio et al. 2025, 2410.18067 v4), on Wikipedia "
    "sequences of lengths that are not stated, with a signal that is not defined."
)
SAME = 0.1
"""Of the distance from the analytic null: what is no nearer to it than random logits are."""


@dataclass(frozen=True)
class PositionalSpectrumConfig(ExperimentConfig):
    """Settings; a condition is the band of rotary planes that is removed.

    Attributes:
        queries: How many rows of each prompt are read at most.
        windows: Of how many of the last keys the window entropy is read, up to the prompt's length.
        near: Up to how many tokens away a key is near.
        scales: The shares of tokens of which scale sensitivity is read.
        wavelets: Whether wavelets are read (needs PyWavelets).
    """

    queries: int = setting(32, least=1)
    windows: tuple[int, ...] = setting((16, 32, 64), least=2)
    near: int = setting(8, least=0)
    scales: tuple[float, ...] = setting((0.5, 0.25), above=0, below=1)
    wavelets: bool = True


LONG_ENOUGH = Need(
    f"prompts of at least {SHORTEST} tokens, since a level of db2 wavelets takes as many",
    lambda _, prompts: prompts.length >= SHORTEST,
    "Use longer prompts (--length).",
    of_prompts=True,
)
_share = Measure("share of power", "uniform attention", ".1%", lowest=0.0, highest=1.0)
_beside_uniform = {
    **dict.fromkeys(SPECTRAL[:3], _share),
    "selectivity": Measure("", "uniform attention"),
    "spectral_entropy": Measure("nats", "uniform attention"),
    "positional_entropy": Measure("nats", "uniform attention"),
    "wavelet_entropy": Measure("nats", "equal coefficients"),
    "wavelet_entropy_raw": Measure("", "uniform attention"),
    "scale_sensitivity": Measure("", "uniform attention"),
    "window_entropy": Measure("of its maximum", "uniform attention"),
    "near_to_far": Measure("", "uniform attention"),
    CORRELATION: Measure("rho", "unrelated entropies", ".2f", lowest=-1.0, highest=1.0),
}
MEASURES = {
    **_beside_uniform,
    f"{CORRELATION}/queries": replace(_beside_uniform[CORRELATION], null="uniform attention"),
    **{
        f"{name}/{WITHOUT_MEAN}": replace(_beside_uniform[name], null="a flat spectrum")
        for name in SPECTRAL
    },
    **{
        f"{name}/{PUBLISHED}:{condition}": replace(_beside_uniform[name], null="0")
        for name, values in PUBLISHED_VALUES.items()
        for condition in values
    },
}


def entropies_in_words(result: Record) -> Iterator[str]:
    """The correlation of both entropies over prompts, and whether random logits have it too."""
    rows = {row.condition: row for row in result.effects if _leads(row, CORRELATION)}
    over = [(name, rows[name]) for name in ("prompts", "queries", "heads") if name in rows]
    if not over:
        return
    said = "; ".join(f"over {name} {phrase(result, row)}" for name, row in over)
    yield (
        f"Positional and spectral entropy correlate: {said}. Published are -0.42 to -0.74 in seven "
        "models (2410.18067), over what is not said."
    )
    shares = []
    for name, row in over:
        for reference, _ in result.references(row):
            if reference.against == RANDOM and row.value:
                shares.append((name, reference.value / row.value))
    if not shares:
        return
    words = ", ".join(f"{portion(share)} of it over {name}" for name, share in shares)
    verdict = "so that it is no sign of a trade-off that was learned"
    if any(share < 1 - SAME for _, share in shares):
        verdict = "and only what is beyond that can have been learned"
    yield f"Random logits of the same temperature give {words}, {verdict}."


def nulls_in_words(result: Record) -> Iterator[str]:
    """Which headlines are no farther from uniform attention than random logits are."""
    near, read = [], 0
    for metric, condition in HEADLINES:
        for row in result.effects:
            if _leads(row, metric) and row.condition == condition:
                for reference, contrast in result.references(row):
                    if reference.against == RANDOM:
                        read += 1
                        within = abs(contrast.effect) <= SAME * abs(row.effect)
                        near += [f"{metric} of {condition}"] if within else []
    if near:
        yield (
            f"Random logits already give, within {SAME:.0%} of the distance from the null: "
            f"{', '.join(near)}."
        )
    elif read:
        yield (
            f"None of {read} headlines is within {SAME:.0%} of what random logits of the same "
            "temperature give."
        )


def removed_in_words(result: Record) -> Iterator[str]:
    """What removing each band costs."""
    metric = "loss" if any(row.metric == "loss" for row in result.effects) else "kl"
    yield from Compared("Rotary planes removed, the third that is", metric, CONDITIONS)(result)


def attention_in_words(result: Record) -> Iterator[str]:
    """How far attention moves, beside that of random bands."""
    said = []
    for row in result.effects:
        if (row.metric, row.kind) == (ATTENTION_KL, "treatment"):
            beside = [
                number(result.measure(ATTENTION_KL), r.value) for r, _ in result.references(row)
            ]
            random = f" (random planes {beside[0]})" if beside else ""
            said.append(
                f"{row.condition} {number(result.measure(ATTENTION_KL), row.value)}{random}"
            )
    if said:
        yield f"KL of attention without a band: {', '.join(said)} nats."


def _leads(row: EffectSize, metric: str) -> bool:
    """Whether it is the row of a value of ours."""
    return row.metric == metric and row.against is None and PUBLISHED not in row.condition


@experiment(
    paper="Ruscio et al. 2025 (2410.18067)",
    question="Is attention organised by frequency over positions, and is a rotary band needed?",
    needs=(
        WITH_ATTENTION.otherwise("massive_activations reads the residual stream there."),
        EQUAL_LENGTHS,
        LONG_ENOUGH,
    ),
    conditions=CONDITIONS,
    metrics=("loss", "kl", "sink_mass"),
    measures=MEASURES,
    says=(
        "Spectral entropy of a query's row {spectral_entropy/row}; without window "
        "{spectral_entropy/row:no_window|value}, of the mean row "
        "{spectral_entropy/mean_row|value}, by offset {spectral_entropy/offset|value}.",
        f"Low frequencies have {{low_share/row}}; without the mean {{low_share/{WITHOUT_MEAN}}}; "
        "selectivity {selectivity/row|value}. The Hann window leaves out key 0, with "
        "{on_key0:.0%} of attention.",
        entropies_in_words,
        "Wavelets: entropy of the approximation {wavelet_entropy/scale0}; with the first half of "
        "the tokens alone, 1 - cosine of coefficients is {scale_sensitivity/prefix:0.5}; with "
        "every other token {scale_sensitivity/strided:0.5|value}.",
        "Attention within {near} tokens over that farther away {near_to_far/every_key}; without "
        "key 0 {near_to_far/without_key0|value}.",
        nulls_in_words,
        removed_in_words,
        attention_in_words,
    ),
    figure=Stack(
        (
            Lines(
                ("spectrum", "spectrum:*"),
                "Power of attention rows, mean over heads",
                "cycles a token",
                "share of power",
                log=True,
            ),
            Forest((CORRELATION,)),
            Forest(("loss|kl", ATTENTION_KL)),
        ),
        "Attention over positions by frequency",
    ),
    smallest={"queries": 4, "scales": (0.5,), "null_models": 0},
)
def positional_spectrum(run: Run[PositionalSpectrumConfig]) -> None:
    """Read spectra and wavelets of attention rows, and remove bands of rotary planes.

    Raises:
        SinklensError: Patterns cannot be read, their mask is unknown, or PyWavelets is missing.
    """
    config, length = run.config, run.prompts.length
    if config.wavelets:
        require_pywt()
    form = extraction(
        length,
        config.queries,
        run.capabilities.causal,
        windows=tuple(window for window in config.windows if window <= length),
        near=config.near,
        wavelets=config.wavelets,
    )
    (read,) = run.read(Spectra(run, run.prompts.tokens, form))
    planes = read_planes(run)
    run.refuse(_refusals(run, planes), none_is_fine=True)
    samples = sampled_prompts(run)
    later = sum(run.batches(one) for one in samples.values())
    if isinstance(planes, Planes) and run.conditions:
        comparisons = _removed(run, planes)
        shift = attention_kl(form, run.capabilities.layers_of("pattern"))
        metrics = [*run.metrics, *([] if config.metrics else [shift])]
        run.compare(lambda twin: comparisons, metrics, later=later)
    else:
        run.announce(later)
    run.facts(near=config.near, on_key0=float(read["signal", ""][:, :, 0, :, 0].mean()))
    add_measures(run, read, form)
    add_correlations(run, read)
    add_sensitivity(run, read["signal", ""], samples, form)
    published(run, PUBLISHED_VALUES)
    run.note(PUBLISHED_NOTE)


def _refusals(run: Run[Any], planes: Planes | str) -> dict[str, str]:
    """The bands that cannot be removed here, with reasons."""
    if isinstance(planes, str):
        return dict.fromkeys(run.conditions, planes)
    return {
        name: f"{len(planes)} rotary planes leave none for this band"
        for name, chosen in bands(len(planes), CONDITIONS).items()
        if not chosen
    }


def _removed(run: Run[Any], planes: Planes) -> list[Comparison]:
    """Each band removed, beside as many other planes."""
    made, drawn, seed = [], {}, run.config.seed
    for name, chosen in bands(len(planes), CONDITIONS).items():
        if name not in run.conditions:
            continue
        others = [plane for plane in range(len(planes)) if plane not in chosen]
        sets = [
            sorted(seeded(seed, name, draw).choice(others, len(chosen), replace=False).tolist())
            for draw in range(run.config.draws if len(others) >= len(chosen) else 0)
        ]
        control = [
            remove_planes(planes, one, f"{name}: {OTHER_PLANES}", draw)
            for draw, one in enumerate(sets)
        ]
        drawn[name] = {"planes": chosen, OTHER_PLANES: sets}
        treatment = [remove_planes(planes, chosen, name)]
        too_few = "fewer other planes are left than are removed"
        made.append(Comparison(name, treatment, (Control(OTHER_PLANES, control),), too_few))
    run.drawn(bands=drawn)
    run.facts(frequencies=[float(f"{one:.6g}") for one in planes.frequency])
    return made
