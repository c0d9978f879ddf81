"""Figures drawn as plain SVG: no package, no script, equal data gives equal files."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Svg:
    """Collects elements; text is escaped, numbers are rounded so that equal rows give equal files."""

    width: int
    height: int
    parts: list[str] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str = "#d0d0d0", width: float = 1) -> None:
        place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        self.parts.append(f'<line {place} stroke="{colour}" stroke-width="{width}"/>')

    def path(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>')

    def area(self, points: Sequence[tuple[float, float]], colour: str, opacity: float) -> None:
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polygon points="{joined}" fill="{colour}" fill-opacity="{opacity}"/>')

    def dot(self, x: float, y: float, colour: str, tip: str) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"><title>{_safe(tip)}</title></circle>')

    def box(self, x: float, y: float, width: float, height: float, colour: str, tip: str) -> None:
        place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self.parts.append(f'<rect {place} fill="{colour}"><title>{_safe(tip)}</title></rect>')

    def text(self, x: float, y: float, text: str, *, size: int = 12, anchor: str = "start", colour: str = "#222") -> None:
        look = f'font-size="{size}" text-anchor="{anchor}" fill="{colour}"'
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" {look}>{_safe(text)}</text>')

    def render(self, title: str, *, ground: str = "#ffffff") -> str:
        """The figure; on a white ground of its own, since the page around it may be dark. '': on the page's."""
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
                f'height="{self.height}" font-family="sans-serif" role="img"><title>{_safe(title)}</title>',
                *([f'<rect width="{self.width}" height="{self.height}" fill="{ground}"/>'] if ground else []),
                *self.parts,
                "</svg>",
                "",
            ]
        )


def _safe(text: str) -> str:
    return html.escape(text, quote=True)


@dataclass(frozen=True)
class HeatMap:
    """One panel: `values[row][column]`; white is the low end of the scale, dark the high end."""

    title: str
    values: Sequence[Sequence[float]]
    low: float
    high: float


def heat_maps_svg(title: str, rows: Sequence[str], columns: Sequence[str], panels: Sequence[HeatMap], across: str) -> str:
    """Panels side by side over the same rows (named once, on the left) and columns."""
    label, cell, high, top = 170, max(16, min(34, 300 // max(1, len(columns)))), 18, 74
    width = cell * len(columns)
    svg = Svg(label + len(panels) * (width + 36) + 20, top + high * len(rows) + 50)
    svg.text(16, 26, title, size=16)
    for number, name in enumerate(rows):
        svg.text(label - 8, top + high * number + 13, name, size=11, anchor="end")
    for place, panel in enumerate(panels):
        x0, span = label + place * (width + 36), (panel.high - panel.low) or 1.0
        svg.text(x0, 56, panel.title, size=12)
        for i, values in enumerate(panel.values):
            for j, value in enumerate(values):
                share = min(1.0, max(0.0, (value - panel.low) / span))
                tip = f"{rows[i]}, {across} {columns[j]}: {value:.4f}"
                svg.box(x0 + cell * j, top + high * i, cell - 1, high - 1, _shade(share), tip)
        for j, name in enumerate(columns):
            svg.text(x0 + cell * (j + 0.5), top + high * len(rows) + 14, name, size=10, anchor="middle", colour="#555")
        end = f"{across}; white {panel.low:.3f}, dark {panel.high:.3f}"
        svg.text(x0, top + high * len(rows) + 32, end, size=10, colour="#555")
    return svg.render(title)


def _shade(share: float) -> str:
    """White to dark violet; told apart in print too."""
    ends = ((255, 255, 255), (59, 15, 112))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(*ends, strict=True))
