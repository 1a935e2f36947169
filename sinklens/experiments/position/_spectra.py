"""Spectra and wavelets of attention over positions: mathematics of signals, without a model.

A signal a has n entries, all that follow are 0. With the Hann window w (periodic,
w_t = sin^2(pi t / n)) and zeros up to the next power of two,

    P(f) = |DFT(w a)(f)|^2                    f from 0 to 1/2 cycle a token (f_N)
    low, mid, high share   of sum P: below f_N / 4, below 3 f_N / 4, the rest
    selectivity            max P / (sum P - max P)
    spectral entropy       of P / sum P, in nats
    positional entropy     of a / sum a, in nats

Wavelets are db2, extended symmetrically (the default of PyWavelets). Scale 0 is the approximation,
scale 1 the coarsest detail. `wavelet entropy` of a scale is that of the share of energy of each
coefficient; unnormalised it is -sum W^2 log W^2, as Ruscio et al. 2025 (2410.18067, Eq. 5) write
it.

Whatever has no power to speak of (a constant row without its mean) has no spectrum: NaN, which
whoever averages leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core.errors import SinklensError

BANDS = {"low_share": (0.0, 0.25), "mid_share": (0.25, 0.75), "high_share": (0.75, 2.0)}
"""Where the bands begin and end, as shares of f_N."""
WAVELET, TAPS = "db2", 4
FLOOR = 1e-10
LEAST_POWER = 1e-12
"""Of the squared sum of a signal: less than that is rounding."""
Signals = Float[Tensor, "*batch signal size"]
Lengths = Int[Tensor, " signal"]


def require_pywt() -> Any:
    """The library of wavelets (PyWavelets).

    Raises:
        SinklensError: It is not installed.
    """
    try:
        import pywt
    except ImportError as error:
        raise SinklensError(
            "positional_spectrum takes wavelets from PyWavelets, which is not installed; "
            "pip install 'sinklens[wavelets]', or leave them out with wavelets=false"
        ) from error
    return pywt


def levels(length: int) -> int:
    """How often a signal of a length can be halved; 0 below 6 entries."""
    return max(0, int(math.log2(length / (TAPS - 1)))) if length else 0


def frequencies(size: int) -> Float[Tensor, " frequency"]:
    """In cycles a token, of signals of at most `size` entries."""
    found: Tensor = torch.fft.rfftfreq(1 << (size - 1).bit_length(), dtype=torch.float64)
    return found


def hann(lengths: Lengths, size: int) -> Float[Tensor, "signal size"]:
    """The window of each signal."""
    at = torch.arange(size, dtype=torch.float64)
    window = torch.sin(torch.pi * at / lengths[:, None]) ** 2
    return window.masked_fill(at >= lengths[:, None], 0)


def without_mean(signals: Signals, lengths: Lengths) -> Signals:
    """Each signal less the mean of its entries."""
    inside = torch.arange(signals.shape[-1]) < lengths[:, None]
    return (signals - signals.sum(-1, keepdim=True) / lengths[:, None]) * inside


def power(
    signals: Signals, lengths: Lengths, *, window: bool = True
) -> Float[Tensor, "*batch signal frequency"]:
    """The power at each frequency."""
    size = signals.shape[-1]
    windowed = signals * hann(lengths, size) if window else signals
    spectrum: Tensor = torch.fft.rfft(windowed, n=1 << (size - 1).bit_length()).abs() ** 2
    return spectrum


def spectral_measures(
    spectrum: Float[Tensor, "*batch frequency"], whole: Float[Tensor, "*batch"]
) -> dict[str, Float[Tensor, "*batch"]]:
    """Shares of the bands, selectivity and entropy of spectra.

    Args:
        spectrum: The power at each frequency.
        whole: The sum of what each signal was made of by subtraction, itself where nothing was;
            far less power than its square is rounding and has no spectrum.
    """
    total, largest = spectrum.sum(-1), spectrum.amax(-1)
    total = total.masked_fill(total <= LEAST_POWER * whole**2, torch.nan)
    share = spectrum / total[..., None]
    relative = torch.arange(spectrum.shape[-1]) / (spectrum.shape[-1] - 1)
    measures = {
        name: share[..., (relative >= low) & (relative < high)].sum(-1)
        for name, (low, high) in BANDS.items()
    }
    measures["selectivity"] = largest / (total - largest).clamp_min(FLOOR * total)
    measures["spectral_entropy"] = torch.special.entr(share).sum(-1)
    return measures


def flat_measures(size: int) -> dict[str, float]:
    """The same of a spectrum that is as high everywhere."""
    flat = torch.ones(len(frequencies(size)), dtype=torch.float64)
    measures = spectral_measures(flat, torch.ones((), dtype=torch.float64))
    return {name: float(value) for name, value in measures.items()}


def positional_entropy(signals: Signals) -> Float[Tensor, "*batch signal"]:
    """Entropy of signals as shares of their sum."""
    shares = signals / signals.sum(-1, keepdim=True).clamp_min(FLOOR)
    entropy: Tensor = torch.special.entr(shares).sum(-1)
    return entropy


def coefficients(
    signals: Float[Tensor, "*batch size"], level: int
) -> list[Float[np.ndarray, "*batch coefficient"]]:
    """Wavelet coefficients by scale, the approximation first."""
    found: list[np.ndarray] = require_pywt().wavedec(
        signals.numpy(), WAVELET, mode="symmetric", level=level, axis=-1
    )
    return found


def wavelet_entropies(
    signals: Signals, lengths: Lengths, level: int
) -> tuple[Float[Tensor, "*batch scale"], Float[Tensor, "*batch scale"]]:
    """Entropy of the coefficients of each scale, of shares and unnormalised, mean over signals."""
    normalised, plain = [], []
    for number, length in enumerate(lengths.tolist()):
        scales = coefficients(signals[..., number, :length], level)
        energies = [torch.from_numpy(scale) ** 2 for scale in scales]
        totals = [energy.sum(-1, keepdim=True) for energy in energies]
        least = LEAST_POWER * torch.stack(totals).sum(0)
        known = [total.masked_fill(total <= least, torch.nan) for total in totals]
        shares = [energy / total for energy, total in zip(energies, known, strict=True)]
        normalised.append(torch.stack([torch.special.entr(s).sum(-1) for s in shares], -1))
        plain.append(torch.stack([torch.special.entr(e).sum(-1) for e in energies], -1))
    return torch.stack(normalised).nanmean(0), torch.stack(plain).mean(0)


def even_wavelet_entropies(lengths: Sequence[int], level: int) -> list[float]:
    """By scale, the entropy of coefficients that have all the same energy, mean over signals."""
    counts = []
    for length in lengths:
        scales = coefficients(torch.zeros(length, dtype=torch.float64), level)
        counts.append([math.log(len(scale)) for scale in scales])
    return [float(mean) for mean in np.mean(counts, 0)]


def rescaled(scale: Float[np.ndarray, "*batch coefficient"], size: int) -> Any:
    """Coefficients at another number of places, linear between the middles of the old ones."""
    count = scale.shape[-1]
    if count == size:
        return scale
    at = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
    below = np.minimum(at.astype(int), count - 1)
    above, part = np.minimum(below + 1, count - 1), at - below
    return scale[..., below] * (1 - part) + scale[..., above] * part


def scale_sensitivity(
    whole: Float[Tensor, "*batch size"], sampled: Float[Tensor, "*batch fewer"]
) -> Float[Tensor, "*batch"]:
    """1 - cosine of the wavelet coefficients of two signals, the longer one's rescaled."""
    level = levels(sampled.shape[-1])
    pairs = zip(coefficients(whole, level), coefficients(sampled, level), strict=True)
    sides = [(rescaled(first, second.shape[-1]), second) for first, second in pairs]
    first, second = (
        torch.from_numpy(np.concatenate(side, -1)) for side in zip(*sides, strict=True)
    )
    return 1 - torch.nn.functional.cosine_similarity(first, second, dim=-1)


def correlation(
    first: Float[Tensor, "*batch case"], second: Float[Tensor, "*batch case"]
) -> Float[Tensor, "*batch"]:
    """Pearson's correlation over the last axis; NaN where a side does not vary."""
    sides = []
    for side in (first, second):
        centred = side - side.mean(-1, keepdim=True)
        norm = centred.norm(dim=-1, keepdim=True)
        least = 1e-6 * side.abs().amax(-1, keepdim=True) * side.shape[-1] ** 0.5
        sides.append(centred / norm.masked_fill(norm <= least, torch.nan))
    found: Tensor = (sides[0] * sides[1]).sum(-1)
    return found.clamp(-1, 1)
