"""Small drawings in SVG. Shapes stretch with the page; words are in the HTML around them, so that they do not."""

from __future__ import annotations

import html
from collections.abc import Sequence

WIDTH = 1000.0


def _svg(body: Sequence[str], height: float, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {height:g}" height="{height:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(label)}">{"".join(body)}</svg>'
    )


def bars(parts: Sequence[tuple[float, float, str, str]], length: float, height: float, label: str) -> str:
    """A lane: (start, end, class, what it is)."""
    scale = WIDTH / length if length else 0.0
    body = [
        f'<rect class="{kind}" x="{start * scale:.2f}" y="0" width="{max((end - start) * scale, 1.0):.2f}" '
        f'height="{height:g}"><title>{html.escape(title)}</title></rect>'
        for start, end, kind, title in parts
    ]
    return _svg(body, height, label)


def steps(points: Sequence[tuple[float, float]], length: float, top: float, height: float, label: str) -> str:
    """A filled staircase through (at, value); the last value holds to the end."""
    if not points or not length:
        return ""
    scale_x, scale_y = WIDTH / length, (height - 2) / (top or 1.0)
    path = [f"M{points[0][0] * scale_x:.2f} {height:g}"]
    for index, (at, value) in enumerate(points):
        until = points[index + 1][0] if index + 1 < len(points) else length
        y = height - value * scale_y
        path.append(f"L{at * scale_x:.2f} {y:.2f}L{until * scale_x:.2f} {y:.2f}")
    path.append(f"L{WIDTH:g} {height:g}Z")
    return _svg([f'<path class="area" d="{"".join(path)}"/>'], height, label)


def line(
    points: Sequence[tuple[float, float]], length: float, bottom: float, top: float, height: float, label: str
) -> str:
    """A curve through (at, value)."""
    if len(points) < 2 or not length:
        return ""
    span = (top - bottom) or 1.0
    placed = [
        f"{at * WIDTH / length:.2f},{(height - 2) - (value - bottom) / span * (height - 4):.2f}" for at, value in points
    ]
    return _svg([f'<polyline class="line" points="{" ".join(placed)}"/>'], height, label)
