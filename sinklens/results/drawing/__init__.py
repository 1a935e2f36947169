"""Drawing with plotly what a result declares as its figure (`results.figures`)."""

from .choice import draw
from .overview import draw_overview, overview_pictures
from .static import to_svg

__all__ = ["draw", "draw_overview", "overview_pictures", "to_svg"]
