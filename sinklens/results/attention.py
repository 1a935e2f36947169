"""Attention patterns to look at: some heads of one prompt, before and after an intervention.

Drawn with CircuitsVis (https://github.com/TransformerLensOrg/CircuitsVis). Its own `render` asks a
web address at each display and breaks at tokens that hold `</script>`; here its JavaScript stands
in the page, and tokens are data.
"""

from __future__ import annotations

import html
import uuid
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .page import asset, in_script, library, page, require_new, write_page

DECIMALS = 4
BELOW_THE_END = 0.99  # of all weights, since few are large and would leave the others white


@dataclass(frozen=True, eq=False)
class AttentionView:
    """Patterns of some heads on one prompt.

    Attributes:
        title: What is shown, in a sentence.
        tokens: The tokens, as they are shown.
        heads: By label (`L2H1`) what is said of each.
        patterns: By side (`before`, `after`) the patterns.
        names: By side its heading.
        causal: Whether no query sees a later key.
        notes: What was left out, and what else to know.
    """

    title: str
    tokens: list[str]
    heads: dict[str, str]
    patterns: dict[str, Float[Tensor, "head query key"]]
    names: dict[str, str]
    causal: bool
    notes: list[str]

    def __str__(self) -> str:
        """What is shown, and how to see it outside of a notebook."""
        hint = "Shown in Jupyter; .save('view.html') writes a page."
        return "\n".join([f"{self.title}: {', '.join(self.heads)}", *self.notes, hint])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The view, with all that it needs."""
        return scripts() + self.html()

    def html(self) -> str:
        """The view, for a page that has the `scripts`."""
        name = f"sinklens-{uuid.uuid4().hex[:12]}"
        colours = f"Colours end at {self.most:.2f}; {BELOW_THE_END:.0%} of the weights are below."
        notes = "".join(
            f"<p><small>{html.escape(note)}</small></p>" for note in [*self.notes, colours]
        )
        sides = "".join(
            f"<figure><figcaption>{html.escape(self.names[side])}</figcaption>"
            f'<div data-side="{side}"></div></figure>'
            for side in self.patterns
        )
        return (
            f'<div class="sinklens-attention" id="{name}"><p>{html.escape(self.title)}</p>'
            f"<fieldset><legend>Head</legend>{self._choices(name)}</fieldset>"
            f'<div class="sides">{sides}</div>{notes}</div>'
            f'<script>sinklens.drawn.push(sinklens.attention("{name}", '
            f"{in_script(self.data())}))</script>"
        )

    def _choices(self, name: str) -> str:
        """A button for each head."""
        return "".join(
            f'<label><input type="radio" name="{name}" value="{number}"'
            f"{' checked' if not number else ''}> {html.escape(f'{label} {said}'.strip())}</label>"
            for number, (label, said) in enumerate(self.heads.items())
        )

    @property
    def most(self) -> float:
        """Where the colours end, the same for all heads and sides."""
        weights = torch.stack(list(self.patterns.values())).double()
        queries, keys = weights.shape[-2:]
        visible = torch.ones(queries, keys, dtype=torch.bool)
        seen = weights[..., visible.tril() if self.causal else visible]
        return max(round(float(seen.quantile(BELOW_THE_END)), 2), 0.01)

    def data(self) -> dict[str, Any]:
        """What the page draws: weights to four decimals, of causal models without later keys."""
        return {
            "tokens": self.tokens,
            "heads": list(self.heads),
            "causal": self.causal,
            "most": self.most,
            "sides": {
                side: _rounded(values, self.causal) for side, values in self.patterns.items()
            },
        }

    def save(self, file: str | Path, *, overwrite: bool = False) -> Path:
        """Write the view as a page that needs no network.

        Args:
            file: The HTML file.
            overwrite: Replace a file that is there already.

        Raises:
            SinklensError: The file exists, or cannot be written.
        """
        target = require_new(file, overwrite)
        return write_page(page(self.title, f"<main>{self._repr_html_()}</main>"), target)


def scripts() -> str:
    """What views need once in a page: CircuitsVis, style and script."""
    folder = resources.files("circuitsvis").joinpath("dist", "cdn")
    source = folder.joinpath("iife.js").read_text("utf-8").rpartition("//# sourceMappingURL")[0]
    return (
        f"<style>{asset('attention.css')}</style>{library('circuitsvis', source)}"
        f"<script>{asset('attention.js')}</script>"
    )


def _rounded(patterns: Float[Tensor, "head query key"], causal: bool) -> list[list[list[float]]]:
    """The weights by head and query."""
    rows: list[list[list[float]]] = patterns.double().numpy().round(DECIMALS).tolist()
    if not causal:
        return rows
    return [[row[: query + 1] for query, row in enumerate(head)] for head in rows]
