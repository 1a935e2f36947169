"""The figure that `plot` gives: Plotly's own, which notebooks keep as a picture as well.

Of a figure a notebook stores what Plotly's program draws. Where that is not at hand (exported to
HTML, on a page of a repository, without a network) nothing is seen of it; there the picture is
shown that stands beside it as SVG.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

import plotly.io
from plotly.graph_objects import Figure
from plotly.io.base_renderers import NotebookRenderer

from ...core.errors import SinklensError
from .static import to_svg

SVG = "image/svg+xml"
PAPER = 'style="background: white; color: #2a2a2a; '
OFFLINE, COLAB = "offline", "colab"
MATHJAX = re.compile(r'<script src="[^"]*mathjax[^"]*"></script>')


class ShownFigure(Figure):  # type: ignore[misc]
    """A plotly figure that is shown as a picture where Plotly's program is not at hand."""

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What Plotly gives, and the picture."""
        shown: dict[str, Any] = super()._repr_mimebundle_(*args, **kwargs)
        picture = to_svg(self) if shown else None
        if picture is not None:
            shown[SVG] = picture.replace('style="', PAPER, 1)
        return shown

    def to_image(self, *args: Any, **kwargs: Any) -> bytes:
        """As Plotly's, with the package kaleido.

        Raises:
            SinklensError: It is not installed.
        """
        _require_kaleido()
        image: bytes = super().to_image(*args, **kwargs)
        return image

    def write_image(self, *args: Any, **kwargs: Any) -> None:
        """As Plotly's, with the package kaleido.

        Raises:
            SinklensError: It is not installed.
        """
        _require_kaleido()
        super().write_image(*args, **kwargs)

    def _ipython_display_(self) -> None:
        """Show it in a notebook with all its forms; Plotly shows its own alone."""
        from IPython.display import display  # type: ignore[import-not-found, unused-ignore]

        if plotly.io.renderers.render_on_display and (shown := self._repr_mimebundle_()):
            display(shown, raw=True)
        else:
            super()._ipython_display_()


def _require_kaleido() -> None:
    """Plotly's own message does not say that a page needs nothing."""
    if find_spec("kaleido") is None:
        raise SinklensError(
            "an image of a figure is made by kaleido, which is not installed: "
            "python -m pip install kaleido; write_html(FILE) needs nothing besides"
        )


class OfflineRenderer(NotebookRenderer):  # type: ignore[misc]  # plotly has no types
    """Plotly's program once in the notebook, and nothing from a web address."""

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, Any]:
        """A figure as HTML, without the program for formulas that Plotly would fetch."""
        bundle: dict[str, str] = super().to_mimebundle(fig_dict)
        return {kind: MATHJAX.sub("", text) for kind, text in bundle.items()}


def keep_figures() -> None:
    """Let a notebook keep all its figures, also those of plotly express, when it is exported.

    Plotly's program is put into the notebook once (5 MB), so that exported pages need no network.
    Figures of `plot` are kept as pictures in any case. On Colab nothing is changed.
    """
    if plotly.io.renderers.default != COLAB:
        plotly.io.renderers[OFFLINE] = OfflineRenderer()
        plotly.io.renderers.default = f"plotly_mimetype+{OFFLINE}"
