"""What attention logits of several prompts have in common, and which part of it is positional.

Position shows in what logits have in common over prompts. So that noise of a single prompt does not
count, every quadratic statistic here is a product of different prompts: for each prompt p, with
logits s_p, the sum of all prompts S and an orthogonal projection P of pairs of query and key,

    c_p = <P s_p, P (S - s_p)>.

The sum over p of c_p, over n (n - 1), is the mean of <P s_p, P s_q> over all p != q. It estimates
|P mean(s)|^2 without bias, and is the mean over all splits into halves of the product of the
halves' means. Of it leave-one-out estimates follow without another run:
(sum c - 2 c_p) / ((n - 1) (n - 2)).

Over the pairs of a `PairSet` and divided by their number (nats^2 a pair):

- `component`: P takes out the mean of every offset i - j over these very pairs (the Toeplitz part);
- `total`: P takes out the mean over all pairs;
- `linear`: P keeps the one direction i + j, less its mean at every offset. Over a whole triangle
  of pairs this is what `i + j` explains beyond `i - j` in a linear regression;
- `visible`: P takes out the Toeplitz part and a constant for every query. What is constant over a
  query's keys (the bias of a key, ALiBi in the form of Bloom) cancels in the softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FORMS = ("component", "total", "linear", "visible")


@dataclass(frozen=True)
class PairSet:
    """Queries `start <= i < end` with the keys `j <= i` that they see, without some keys."""

    start: int
    end: int
    without: tuple[int, ...] = ()

    @property
    def queries(self) -> str:
        """The range of queries, as results name it."""
        return f"{self.start}:{self.end}"

    def among(
        self, query: Int[Tensor, " pair"], key: Int[Tensor, " pair"], window: int
    ) -> Bool[Tensor, " pair"]:
        """Which of some pairs belong to it where a query sees its last `window` keys."""
        inside = (query >= self.start) & (query < self.end) & (query - key < window)
        for excluded in self.without:
            inside &= key != excluded
        return inside


class PairBasis:
    """Orthonormal directions over pairs, from which the forms of some pair sets are made."""

    def __init__(
        self,
        sets: Sequence[PairSet],
        forms: Sequence[str],
        window: int,
    ) -> None:
        """Make the directions.

        Args:
            sets: The pair sets; queries up to the largest end are looked at.
            forms: Of `FORMS`.
            window: Keys that a query sees.
        """
        size = max(one.end for one in sets)
        self.query, self.key = torch.tril_indices(size, size)
        self.forms = tuple(forms)
        self.inside = torch.stack([one.among(self.query, self.key, window) for one in sets])
        self.seen = self.query - self.key < window
        columns: list[Tensor] = []
        belongs: dict[str, list[Tensor]] = {}
        for number, inside in enumerate(self.inside):
            for kind, directions in self._directions(inside).items():
                first, count = sum(c.shape[1] for c in columns), directions.shape[1]
                columns.append(directions)
                belongs.setdefault(kind, []).append(
                    torch.tensor([[c, number] for c in range(first, first + count)]).view(-1, 2)
                )
        self.columns = torch.cat(columns, 1)
        self._sets_of: dict[str, Float[Tensor, "column set"]] = {}
        for kind, pairs in belongs.items():
            which = torch.zeros(self.columns.shape[1], len(self.inside), dtype=torch.float64)
            which[tuple(torch.cat(pairs).long().T)] = 1.0
            self._sets_of[kind] = which
        self.curves = [Curve(self, inside) for inside in self.inside[-2:]]

    def _directions(self, inside: Bool[Tensor, " pair"]) -> dict[str, Float[Tensor, "pair n"]]:
        """By kind, orthonormal directions of one set."""
        offsets = self.offsets(inside)
        made = {"offsets": offsets}
        if "total" in self.forms:
            made["constant"] = _orthonormal(inside.double()[:, None])
        if "linear" in self.forms:
            made["linear"] = _orthonormal(
                _beyond(((self.query + self.key) * inside).double()[:, None], offsets)
            )
        if "visible" in self.forms:
            rows = torch.nn.functional.one_hot(self.query).double() * inside[:, None]
            made["rows"] = _orthonormal(_beyond(rows, offsets))
        return made

    def offsets(self, inside: Bool[Tensor, " pair"]) -> Float[Tensor, "pair offset"]:
        """The offsets that occur in a set, one direction each, in order."""
        hot = torch.nn.functional.one_hot(self.query - self.key).double() * inside[:, None]
        counts = hot.sum(0)
        return hot[:, counts > 0] / counts[counts > 0].sqrt()

    def products(
        self, logits: Float[Tensor, "prompt head pair"], whole: Float[Tensor, "head pair"]
    ) -> Float[Tensor, "prompt head set form"]:
        """The forms of each prompt's logits with the sum of the others', of the sum of all."""
        columns = self.columns.to(logits.device)
        energy = (logits * (whole - logits)) @ self.inside.double().T.to(logits.device)
        mine = logits @ columns
        taken = mine * (whole @ columns - mine)
        by_kind = {kind: taken @ chosen.to(taken) for kind, chosen in self._sets_of.items()}
        made = {"component": energy - by_kind["offsets"]}
        if "constant" in by_kind:
            made["total"] = energy - by_kind["constant"]
        if "linear" in by_kind:
            made["linear"] = by_kind["linear"]
        if "rows" in by_kind:
            made["visible"] = made["component"] - by_kind["rows"]
        pairs = self.inside.sum(1).clamp_min(1).to(energy)
        return torch.stack([made[form] for form in self.forms], -1) / pairs[:, None]


class Curve:
    """The component query by query, and the Toeplitz part, over one set of pairs."""

    def __init__(self, basis: PairBasis, inside: Bool[Tensor, " pair"]) -> None:
        one_hot = torch.nn.functional.one_hot
        self._inside, self._offset = inside.double(), basis.query - basis.key
        self._mean_of_query = _column_means(one_hot(basis.query).double() * inside[:, None])
        self._mean_of_offset = _column_means(one_hot(self._offset).double() * inside[:, None])

    def read(
        self, logits: Float[Tensor, "batch head pair"], whole: Float[Tensor, "head pair"]
    ) -> tuple[Float[Tensor, "batch query"], Float[Tensor, "batch head offset"]]:
        """Component of each prompt with the others, and each prompt's mean logit by offset."""
        device = logits.device
        to_offsets, inside = self._mean_of_offset.to(device), self._inside.to(device)
        means = logits @ to_offsets
        mine = (logits - means[..., self._offset]) * inside
        others = (whole - (whole @ to_offsets)[..., self._offset]) * inside - mine
        by_query = (mine * others).mean(1) @ self._mean_of_query.to(device)
        return by_query, means


@dataclass(frozen=True)
class DiagonalShift:
    """Moves each prompt's logits along the diagonals, around in a circle: an empirical null.

    What is a function of the offset stays, and so does all that happens within a prompt; what
    prompts have in common at a position is gone.

    Attributes:
        steps: How far, for each prompt.
        first_key: The first key that takes part; 1 leaves column 0 where it is.
    """

    steps: Int[Tensor, " prompt"]
    first_key: int

    def moved(
        self, logits: Float[Tensor, "batch head pair"], basis: PairBasis, first: int
    ) -> Float[Tensor, "batch head pair"]:
        """The logits of prompts number `first` and on, moved."""
        size = int(basis.query.max()) + 1
        offset = basis.query - basis.key
        lowest = (offset + self.first_key).clamp_min(1)
        steps = self.steps[first : first + len(logits), None]
        query = lowest + (basis.query - lowest + steps) % (size - lowest).clamp_min(1)
        query = torch.where(basis.query >= lowest, query, basis.query)
        source = query * (query + 1) // 2 + query - offset  # where a triangle's rows hold it
        return logits.gather(-1, source[:, None].expand_as(logits).to(logits.device))


def _column_means(
    members: Float[Tensor, "pair group"],
) -> Float[Tensor, "pair group"]:
    """What averages over the members of each group."""
    return members / members.sum(0).clamp_min(1)


def _beyond(
    vectors: Float[Tensor, "pair n"], taken: Float[Tensor, "pair m"]
) -> Float[Tensor, "pair n"]:
    """What is left of vectors without some orthonormal directions."""
    return vectors - taken @ (taken.T @ vectors)


def _orthonormal(vectors: Float[Tensor, "pair n"]) -> Float[Tensor, "pair rank"]:
    """An orthonormal basis of what vectors span; no column where they are 0."""
    left, sizes, _ = torch.linalg.svd(vectors, full_matrices=False)
    basis: Tensor = left[:, sizes > 1e-9 * max(1.0, float(vectors.abs().max()))]
    return basis
