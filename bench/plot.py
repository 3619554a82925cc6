"""A plot as an SVG written by hand: records a second against what is already stored."""

from __future__ import annotations

__all__ = ["svg"]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 360, 84, 48, 40


def svg(points: list[tuple[int, float]], title: str) -> str:
    """A line with a mark at each (stored, records a second)."""
    most_x = max(x for x, _ in points) or 1
    most_y = max(y for _, y in points) * 1.15

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + x / most_x * (_WIDTH - _LEFT - 24),
            _HEIGHT - _BOTTOM - y / most_y * (_HEIGHT - _BOTTOM - _TOP),
        )

    places = [at(x, y) for x, y in sorted(points)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="22" font-size="14">{title}</text>',
    ]
    for step in range(5):
        x, y = at(most_x * step / 4, most_y * step / 4)
        parts += [
            f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - 24}" stroke="#ddd"/>',
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{most_y * step / 4:,.0f}</text>',
            f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{most_x * step / 4:,.0f}</text>',
        ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#1565c0" stroke-width="2"/>')
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="#1565c0"/>' for x, y in places]
    middle = (_LEFT + _WIDTH) // 2
    parts += [f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">records already stored</text>', "</svg>"]
    return "\n".join(parts) + "\n"
