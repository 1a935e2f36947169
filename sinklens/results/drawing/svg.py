"""Shapes of a picture as SVG: text and axes have the colour of the page, so dark pages too."""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

Place = tuple[float, float]
DASHES = {
    "dash": "7 4",
    "dot": "2 3",
    "dashdot": "7 3 2 3",
    "longdash": "11 4",
    "longdashdot": "11 3 2 3",
}
CORNERS = {"square": (4, 45), "diamond": (4, 0), "triangle-up": (3, 90), "pentagon": (5, 90)}


def line(start: Place, end: Place, *, colour: str = "currentColor", **style: Any) -> str:
    """A straight line."""
    ends = f'x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"'
    return f'<line {ends} stroke="{colour}"{_attributes(style)}/>'


def path(places: Sequence[Place], colour: str, width: float, dash: str = "", **style: Any) -> str:
    """Lines from place to place."""
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dashes = f' stroke-dasharray="{DASHES[dash]}"' if dash in DASHES else ""
    own = f'fill="none" stroke="{colour}" stroke-width="{width:g}"{dashes}'
    return f'<polyline points="{points}" {own}{_attributes(style)}/>'


def area(places: Sequence[Place], colour: str) -> str:
    """A filled area."""
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polygon points="{points}" fill="{colour}"/>'


def box(corner: Place, size: Place, colour: str, said: str = "") -> str:
    """A filled rectangle, with what stands under the pointer."""
    place = f'x="{corner[0]:.1f}" y="{corner[1]:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}"'
    return f'<rect {place} fill="{colour}">{_pointer(said)}</rect>'


def raster(pixels: UInt8[np.ndarray, "row column 4"], corner: Place, size: Place) -> str:
    """Many cells as one image, which takes a hundredth of as many rectangles."""
    rows, columns, _ = pixels.shape
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 6, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    content = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()
    place = f'x="{corner[0]:.1f}" y="{corner[1]:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}"'
    drawn = 'preserveAspectRatio="none" style="image-rendering: pixelated"'
    return f'<image {place} {drawn} href="data:image/png;base64,{content}"/>'


def text(
    words: str,
    place: Place,
    *,
    anchor: str = "middle",
    size: int = 12,
    turned: int = 0,
    bold: bool = False,
    colour: str = "currentColor",
) -> str:
    """Words at a place, which is on their base line."""
    x, y = place
    turn = f' transform="rotate({turned} {x:.1f} {y:.1f})"' if turned else ""
    weight = ' font-weight="bold"' if bold else ""
    how = f'text-anchor="{anchor}" font-size="{size}" fill="{colour}"{weight}{turn}'
    return f'<text x="{x:.1f}" y="{y:.1f}" {how}>{html.escape(words)}</text>'


def mark(symbol: str, place: Place, colour: str, size: float = 8, said: str = "") -> str:
    """A mark of plotly's names, with what stands under the pointer."""
    x, y = place
    radius, name = size / 2, symbol.removesuffix("-open")
    drawn = f'fill="none" stroke="{colour}" stroke-width="1.5"'
    if not symbol.endswith("-open"):
        drawn = f'fill="{colour}"'
    inside = _pointer(said)
    if name == "line-ns":
        ends = f'x1="{x:.1f}" y1="{y - radius:.1f}" x2="{x:.1f}" y2="{y + radius:.1f}"'
        return f'<line {ends} stroke="{colour}" stroke-width="2.5">{inside}</line>'
    if name not in (*CORNERS, "star"):
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" {drawn}>{inside}</circle>'
    points = " ".join(f"{px:.1f},{py:.1f}" for px, py in _corners(name, x, y, radius * 1.25))
    return f'<polygon points="{points}" {drawn}>{inside}</polygon>'


def _corners(name: str, x: float, y: float, radius: float) -> Iterable[Place]:
    """The corners of a mark; those of a star are far and near in turn."""
    count, start = CORNERS.get(name, (10, 90))
    for number in range(count):
        reach = radius * (0.45 if name == "star" and number % 2 else 1)
        angle = math.radians(start + 360 * number / count)
        yield x + reach * math.cos(angle), y - reach * math.sin(angle)


def _pointer(said: str) -> str:
    """What a browser shows under the pointer."""
    return f"<title>{html.escape(said.replace('<br>', chr(10)))}</title>" if said else ""


def _attributes(style: dict[str, Any]) -> str:
    return "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
