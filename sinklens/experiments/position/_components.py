"""How much of the attention logits is position: the components, and their intervals.

Every figure is a function of statistics that are linear in `LogitForms.products` (means over all
pairs of different prompts) or in the prompts' mean logits. Leaving one prompt out of these needs no
other run, and gives the jackknife: with theta the figure on all n prompts and theta_(-p) the one
without prompt p, each prompt stands for

    theta + (n - 1) (mean of all theta_(-q) - theta_(-p)),

whose mean is theta, and Student's t on them is the interval. The obvious number for a prompt, its
own product with the others' mean, has the same mean, but its interval is half as wide as it has to
be: a prompt enters the estimate twice, once in each factor. `tests` show both by simulation.

Versions: axis 0 of every tensor here holds theta's statistics at 0, then those without each prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from ...probes.logits import LogitFormValues
from ...stats.effects import Values

FEWEST_PROMPTS = 3
NO_VARIANCE = 1e-9  # nats^2 a pair: below it there are only rounding errors to take shares of


def versions_of_products(products: Float[Tensor, " prompt *shape"]) -> Float[Tensor, " n *shape"]:
    """The mean over pairs of different prompts, of all prompts and without each."""
    products = products.double()
    n, total = len(products), products.sum(0, keepdim=True)
    return torch.cat([total / (n * (n - 1)), (total - 2 * products) / ((n - 1) * (n - 2))])


def versions_of_mean(values: Float[Tensor, " prompt *shape"]) -> Float[Tensor, " n *shape"]:
    """The mean over prompts, of all and without each."""
    values = values.double()
    n, total = len(values), values.sum(0, keepdim=True)
    return torch.cat([total / n, (total - values) / (n - 1)])


def by_prompt(versions: Float[Tensor, " n"]) -> Values:
    """One number a prompt, whose mean is the figure and whose spread is the jackknife's."""
    left_out = versions[1:]
    pull = (len(left_out) - 1) * (left_out.mean() - left_out)
    values: np.ndarray = (versions[0] + pull).numpy()
    return values


class Components:
    """The components of one run, by version."""

    def __init__(self, values: LogitFormValues, forms: Sequence[str]) -> None:
        """Take what `LogitForms` computed.

        Args:
            values: Of all prompts.
            forms: Which forms it was asked for.
        """
        by_head = versions_of_products(values.products)
        # Heads are pooled before ratios: that of a head with hardly any logits is noise.
        self._pooled = {form: by_head[..., number].mean(2) for number, form in enumerate(forms)}
        self.by_head = {form: by_head[0, ..., number] for number, form in enumerate(forms)}
        self.curve = versions_of_products(values.by_query)[:, 1:].mean(1)
        self.layers = by_head.shape[1]

    def by_layer(self, number: int, form: str = "component") -> Float[Tensor, "n layer"]:
        """A form over pair set `number`, mean over heads, nats^2 a pair; not below 0."""
        return self._pooled[form][..., number].clamp_min(0.0)

    def component(self, number: int, first_layer: int = 1) -> Float[Tensor, " n"]:
        """The residual-stream component: mean over layers from one on, never layer 0."""
        return self.by_layer(number)[:, max(1, first_layer) :].mean(1)

    def shares(self, number: int, form: str = "component") -> Float[Tensor, "n layer"]:
        """A form over the variance of the mean logits, by layer; 0 where there is none."""
        total = self.by_layer(number, "total")
        share = self.by_layer(number, form) / total.clamp_min(NO_VARIANCE)
        return torch.where(total > NO_VARIANCE, share, 0.0)

    def share(self, number: int, form: str = "component") -> Float[Tensor, " n"]:
        """The same, mean over layers without layer 0."""
        return self.shares(number, form)[:, 1:].mean(1)


class CausalMask:
    """What the causal mask alone makes of the Toeplitz part.

    With g(d) the mean logit at offset d, C_i = log(sum over d <= i of exp g(d)) (a learned sink
    adds its own term, a window ends the sum), and log A_ij = g(i - j) - C_i.
    """

    def __init__(
        self,
        offsets: Float[Tensor, "prompt layer head offset"],
        windows: Sequence[int],
        sink_logit: Float[Tensor, "layer head"] | None,
    ) -> None:
        """Take the mean logit at every offset.

        Args:
            offsets: By prompt.
            windows: By layer, how many keys a query sees.
            sink_logit: The logit of learned sinks.
        """
        self.offsets = versions_of_mean(offsets) if len(offsets) > 1 else offsets.double()
        size = self.offsets.shape[-1]
        seen = torch.arange(size) < torch.tensor(windows)[:, None, None]
        sums = self.offsets.masked_fill(~seen, -torch.inf).logcumsumexp(-1)
        if sink_logit is not None:
            sums = torch.logaddexp(sums, sink_logit.double()[..., None])
        self.log_z, self._windows = sums, windows
        self.log_keys = torch.arange(1, size + 1).double().log()

    def slope(self) -> Float[Tensor, "n layer head"]:
        """Slope of C_i against log(i + 1): 1 for flat logits."""
        centred = self.log_keys - self.log_keys.mean()
        return (self.log_z @ centred) / (centred @ centred)

    def variance(self) -> Float[Tensor, "n layer head"]:
        """Variance of C_i over pairs: each query counts once for each of its keys."""
        size = self.log_z.shape[-1]
        keys = torch.stack([torch.arange(1, size + 1).clamp_max(w) for w in self._windows])
        weight = (keys / keys.sum(-1, keepdim=True)).double()[:, None]
        mean = (self.log_z * weight).sum(-1, keepdim=True)
        return ((self.log_z - mean) ** 2 * weight).sum(-1)

    def window_kl(self, window: int) -> Float[Tensor, "n layer head"]:
        """Mean over queries i >= window - 1 of KL(A_win || A), in nats.

        A_win keeps the last `window` keys and scales them up, so that all queries see as many; then
        KL(A_win || A) = C_i - C_(window - 1). The other direction is infinite.
        """
        sums = self.log_z[..., window - 1 :]
        return (sums - sums[..., :1]).mean(-1)

    def extra_r2(self) -> Float[Tensor, "n layer head"]:
        """What i + j explains of log A beyond i - j, least squares over all pairs.

        The two regressions differ by one direction, i + j without its part along 1 and i - j. Any
        function of i - j alone has 0.
        """
        size = self.log_z.shape[-1]
        query, key = torch.tril_indices(size, size)
        found = torch.zeros(self.log_z.shape[:3], dtype=torch.float64)
        for layer, window in enumerate(self._windows):
            inside = query - key < window
            i, j = query[inside], key[inside]
            predictors = torch.stack([torch.ones_like(i), i - j, i + j], 1).double()
            beyond = torch.linalg.qr(predictors).Q[:, 2]
            logs = self.offsets[:, layer][..., i - j] - self.log_z[:, layer][..., i]
            variance = logs.var(-1, correction=0) * len(i)
            extra = (logs @ beyond) ** 2 / variance.clamp_min(1e-300)
            found[:, layer] = torch.where(variance > NO_VARIANCE * len(i), extra, 0.0)
        return found

    def flat(self) -> CausalMask:
        """That of flat logits, which give uniform attention."""
        return CausalMask(torch.zeros_like(self.offsets[:1]), self._windows, None)


def depth_trend(shares: Float[Tensor, "n layer"]) -> Float[Tensor, " n"]:
    """How much the share grows from layer 1 to the last, by the line of least squares.

    A rank correlation moves in steps, so that leaving out a prompt says nothing of its error; it
    stands in the settings, without an interval.
    """
    layers = torch.linspace(0, 1, shares.shape[1] - 1, dtype=torch.float64)
    centred = layers - layers.mean()
    return shares[:, 1:] @ centred / (centred @ centred).clamp_min(1e-300)


def rank_correlation(shares: Float[Tensor, "n layer"]) -> float:
    """Spearman's correlation of share and layer, without layer 0; 0 where all are equal."""
    row = shares[0, 1:].numpy()
    if np.ptp(row) == 0:
        return 0.0
    return float(stats.spearmanr(np.arange(len(row)), row).statistic)
