"""The effect of the causal mask alone on logits that depend on relative position only.

With g(d) the mean logit at offset d, C_i = log(sum over d <= i of exp g(d)) (a learned sink adds
its own term, a window ends the sum), and log A_ij = g(i - j) - C_i. A later query sees more keys,
so C_i grows, by log(i + 1) where logits are flat.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

NO_VARIANCE = 1e-9  # nats^2: below it there are only rounding errors to take shares of


class CausalMask:
    """The causal-mask component, of all prompts and without each (`functional.leave_one_out`)."""

    def __init__(
        self,
        offsets: Float[Tensor, "n layer head offset"],
        windows: Sequence[int],
        sink_logit: Float[Tensor, "layer head"] | None = None,
    ) -> None:
        """Take the mean logit at every offset.

        Args:
            offsets: Mean logits, nats.
            windows: By layer, how many keys a query sees.
            sink_logit: The logit of learned sinks.
        """
        self.offsets, self._windows, self._sink_logit = offsets.double(), windows, sink_logit
        size = offsets.shape[-1]
        seen = torch.arange(size) < torch.tensor(windows)[:, None, None]
        sums = self.offsets.masked_fill(~seen, -torch.inf).logcumsumexp(-1)
        if sink_logit is not None:
            sums = torch.logaddexp(sums, sink_logit.double()[..., None])
        self.log_z = sums
        self._log_keys = torch.arange(1, size + 1).double().log()

    def reordered(self, order: Int[Tensor, "layer 1 offset"]) -> CausalMask:
        """The component of the same mean logits with their offsets permuted."""
        moved = self.offsets.gather(-1, order.expand_as(self.offsets))
        return CausalMask(moved, self._windows, self._sink_logit)

    def flat(self) -> CausalMask:
        """The component of flat logits, which give uniform attention, a learned sink included."""
        sink = None if self._sink_logit is None else torch.zeros_like(self._sink_logit)
        return CausalMask(torch.zeros_like(self.offsets[:1]), self._windows, sink)

    def slope(self) -> Float[Tensor, "n layer head"]:
        """Slope of C_i against log(i + 1): 1 for flat logits without a learned sink."""
        centred = self._log_keys - self._log_keys.mean()
        return (self.log_z @ centred) / (centred @ centred)

    def variance(self) -> Float[Tensor, "n layer head"]:
        """Variance of C_i over pairs, nats^2: each query counts once for each of its keys."""
        size = self.log_z.shape[-1]
        keys = torch.stack([torch.arange(1, size + 1).clamp_max(w) for w in self._windows])
        weight = (keys / keys.sum(-1, keepdim=True)).double()[:, None]
        mean = (self.log_z * weight).sum(-1, keepdim=True)
        return ((self.log_z - mean) ** 2 * weight).sum(-1)

    def share(self, component: Float[Tensor, "n layer"]) -> Float[Tensor, "n layer"]:
        """The variance (mean over heads) over its sum with another component in nats^2."""
        variance = self.variance().mean(2)
        both = variance + component
        return torch.where(both > 0, variance / both.clamp_min(1e-300), 0.0)

    def window_kl(self, window: int) -> Float[Tensor, "n layer head"]:
        """Mean over queries i >= window - 1 of KL(A_win || A), in nats.

        A_win keeps the last `window` keys and renormalises, so that all queries see as many; then
        KL(A_win || A) = C_i - C_(window - 1). The other direction is infinite.
        """
        sums = self.log_z[..., window - 1 :]
        return (sums - sums[..., :1]).mean(-1)

    def extra_r2(self) -> Float[Tensor, "n layer head"]:
        """The R^2 that i + j adds to i - j in a least-squares fit of log A over all pairs.

        The two regressions differ by one direction, i + j without its part along 1 and i - j. Any
        function of i - j alone has 0.
        """
        size = self.log_z.shape[-1]
        query, key = torch.tril_indices(size, size)
        extra_r2 = torch.zeros(self.log_z.shape[:3], dtype=torch.float64)
        for layer, window in enumerate(self._windows):
            inside = query - key < window
            i, j = query[inside], key[inside]
            predictors = torch.stack([torch.ones_like(i), i - j, i + j], 1).double()
            beyond = torch.linalg.qr(predictors).Q[:, 2]
            logs = self.offsets[:, layer][..., i - j] - self.log_z[:, layer][..., i]
            variance = logs.var(-1, correction=0) * len(i)
            extra = (logs @ beyond) ** 2 / variance.clamp_min(1e-300)
            extra_r2[:, layer] = torch.where(variance > NO_VARIANCE * len(i), extra, 0.0)
        return extra_r2
