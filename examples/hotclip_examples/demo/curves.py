"""Line charts as inline SVG: no script, no font, no file beside the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 560, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 34
COLOURS = ("#2563eb", "#db2777", "#059669", "#d97706")

Points = Sequence[tuple[float, float]]


def line_chart(
    title: str,
    lines: Mapping[str, Points],
    *,
    x_label: str,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """An SVG of one or more lines from zero up; `marks` are labelled moments on the x axis."""
    everything = [point for points in lines.values() for point in points]
    if not everything:
        return f"<p>{escape(title)}: nothing was measured.</p>"
    x_low, x_high = min(x for x, _ in everything), max(x for x, _ in everything)
    y_high = max(max(y for _, y in everything), 1e-9) * 1.08
    x_span = (x_high - x_low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / x_span * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - y / y_high * (HEIGHT - TOP - BOTTOM)
        return across, down

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        value = share * y_high
        _, down = place(x_low, value)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down:.1f}" y2="{down:.1f}" class="grid"/>'
            f'<text x="{LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    for share, anchor in ((0, "middle"), (0.5, "middle"), (1, "end")):
        x = x_low + x_span * share
        across, _ = place(x, 0)
        parts.append(
            f'<text x="{across:.1f}" y="{HEIGHT - 18}" text-anchor="{anchor}">{x:.4g}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>'
    )
    for x, label in marks:
        across, _ = place(x, 0)
        end = "end" if x > x_low + x_span * 0.7 else "start"
        parts.append(
            f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"'
            f' class="mark"/><text x="{across + (-4 if end == "end" else 4):.1f}" y="{TOP + 10}"'
            f' text-anchor="{end}">{escape(label)}</text>'
        )
    for (_, points), colour in zip(lines.items(), COLOURS, strict=False):
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    parts.append("</svg>")
    legend = " ".join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in zip(lines, COLOURS, strict=False)
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>{''.join(parts)}"
        f'<p class="legend">{legend}</p></figure>'
    )
