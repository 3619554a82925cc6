"""A plot as an SVG written by hand: records a second against what is already stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

__all__ = ["svg"]

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BOTTOM, _TOP = 720, 360, 84, 48, 48, 40
_COLOURS = ("#1565c0", "#c62828")
_STEPS = 5


def svg(series: Mapping[str, Sequence[tuple[int, float]]], title: str) -> str:
    """A line for each name, with a mark at each (stored, records a second)."""
    stored, rates = zip(*(point for line in series.values() for point in line), strict=True)
    step_x, step_y = _step(max(stored)), _step(max(rates))
    most_x, most_y = max(*stored, step_x), max(rates) * 1.1

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + x / most_x * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - y / most_y * (_HEIGHT - _BOTTOM - _TOP),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="22" font-size="14">{title}</text>',
    ]
    for value in _ticks(step_y, most_y):
        _, y = place(0, value)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:,}</text>')
    for value in _ticks(step_x, most_x):
        x, _ = place(value, 0)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{value:,}</text>')
    for number, (name, line) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [place(*point) for point in sorted(line)]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places]
        parts.append(
            f'<text x="{_WIDTH - _RIGHT - 80 * number}" y="22" text-anchor="end" fill="{colour}">{name}</text>'
        )
    middle = (_LEFT + _WIDTH) // 2
    parts += [f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">records already stored</text>', "</svg>"]
    return "\n".join(parts) + "\n"


def _step(most: float) -> int:
    """A round distance (1, 2 or 5 of a power of ten) of which about `_STEPS` reach `most`."""
    power = 1
    while True:
        for step in (power, 2 * power, 5 * power):
            if step * _STEPS >= most:
                return step
        power *= 10


def _ticks(step: int, most: float) -> Iterator[int]:
    value = 0
    while value <= most:
        yield value
        value += step
