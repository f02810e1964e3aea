"""Small charts as inline SVG: no script, no resource from elsewhere. Colours are CSS variables of the page, so they follow its scheme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

import numpy as np

from safeladder.launch.view.series import Floats

WIDTH, HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 26
SIDE, _EDGE, _FIELD = 400, 48, 340  # of a square picture: all of it, what is left of the field, the field
POINTS: Final = 240  # of a line; longer ones are drawn as means of equal parts
COLOURS: Final = 8


@dataclass(frozen=True)
class Line:
    """A curve. x, y: [n], NaN where nothing was measured. colour: 0 to 7, one a run."""

    name: str
    x: Floats
    y: Floats
    colour: int = 0


def curves(
    title: str, lines: Sequence[Line], low: float | None = None, high: float | None = None, limit: float | None = None
) -> str:
    """Figures over steps: pale as measured, strong as a running mean. low, high: the axis at least reaches there."""
    kept = [_thinned(line) for line in lines]
    kept = [line for line in kept if len(line.x)]
    if not kept:
        return _figure(title, '<p class="none">not measured</p>')
    values = np.concatenate([line.y for line in kept])
    wanted = [value for value in (low, high, limit) if value is not None]
    bottom, top = _range(min([*wanted, float(values.min())]), max([*wanted, float(values.max())]))
    xs = np.concatenate([line.x for line in kept])
    scale = _Scale(float(xs.min()), float(xs.max()), bottom, top)
    parts = [scale.axes("step")]
    if limit is not None:
        y = scale.y(limit)
        parts.append(f'<path class="limit" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
    for line in kept:
        smooth = Line(line.name, line.x, running_mean(line.y), line.colour)
        if len(line.x) > 8:
            parts.append(f'<path class="raw c{line.colour % COLOURS}" d="{scale.path(line)}"/>')
        newest = f"{line.name}: {_short(float(smooth.y[-1]))} at step {int(line.x[-1])}"
        parts.append(
            f'<path class="line c{line.colour % COLOURS}" d="{scale.path(smooth)}"><title>{escape(newest)}</title></path>'
        )
    return _figure(title, _svg("".join(parts), title))


@dataclass(frozen=True)
class Walk:
    """Points of a trajectory. x, y: [n]; low, high: [n] bounds of y; labels: [n]. left, right: [n] bounds of x, where there are any."""

    name: str
    x: Floats
    y: Floats
    low: Floats
    high: Floats
    labels: Sequence[str]
    colour: int = 0
    left: Floats | None = None
    right: Floats | None = None


def trajectory(walks: Sequence[Walk], x_name: str, y_name: str, enlarged: bool = False) -> str:
    """A square picture with one scale for both axes, so that 45 degrees are 45 degrees: all from 0 to 1 with the line on which both are
    equal, or `enlarged` around the points, with a line of 45 degrees through each beginning."""
    plane = _around(walks) if enlarged else _Plane(0.0, 0.0, 1.0)
    parts = [plane.grid(x_name, y_name)]
    if enlarged:
        parts += [plane.diagonal(float(walk.x[0]), float(walk.y[0])) for walk in walks]
    else:
        parts.append(plane.diagonal(0.0, 0.0))
    parts += [_walked(walk, plane) for walk in walks]
    label = escape(f"{y_name} against {x_name}")
    body = "".join(parts)
    title = "enlarged; dashed: 45° from where it began" if enlarged else "the whole range; dashed: both are equal"
    return _figure(
        title, f'<svg class="square" viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="{label}">{body}</svg>'
    )


class _Plane:
    """A square piece of the plane: from (left, bottom), `size` wide and high."""

    def __init__(self, left: float, bottom: float, size: float) -> None:
        self.left, self.bottom, self.size = left, bottom, size

    def place(self, x: float, y: float) -> tuple[float, float]:
        scale = _FIELD / self.size
        return _EDGE + scale * (x - self.left), _TOP + _FIELD - scale * (y - self.bottom)

    def grid(self, x_name: str, y_name: str) -> str:
        low, parts = _TOP + _FIELD, []
        for tick in _ticks(self.left, self.left + self.size):
            x, _ = self.place(tick, 0)
            parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{low}"/>')
            parts.append(f'<text x="{x:.1f}" y="{low + 15}" text-anchor="middle">{_short(tick)}</text>')
        for tick in _ticks(self.bottom, self.bottom + self.size):
            _, y = self.place(0, tick)
            parts.append(f'<path class="grid" d="M{_EDGE} {y:.1f}h{_FIELD}"/>')
            parts.append(f'<text x="{_EDGE - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
        middle = _TOP + _FIELD / 2
        parts.append(f'<text x="{_EDGE + _FIELD / 2}" y="{SIDE - 3}" text-anchor="middle">{escape(x_name)}</text>')
        turned = f'transform="rotate(-90 11 {middle})"'
        parts.append(f'<text x="11" y="{middle}" text-anchor="middle" {turned}>{escape(y_name)}</text>')
        return "".join(parts)

    def diagonal(self, x: float, y: float) -> str:
        """As much of the line of 45 degrees through a point as lies in the picture."""
        back = min(x - self.left, y - self.bottom)
        on = min(self.left + self.size - x, self.bottom + self.size - y)
        (x0, y0), (x1, y1) = self.place(x - back, y - back), self.place(x + on, y + on)
        return f'<path class="limit" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>'


def _around(walks: Sequence[Walk]) -> _Plane:
    xs = np.concatenate([side for walk in walks for side in (walk.x, walk.left, walk.right) if side is not None])
    ys = np.concatenate([np.concatenate([walk.y, walk.low, walk.high]) for walk in walks])
    size = 1.15 * max(float(np.ptp(xs)), float(np.ptp(ys)), 0.05)
    corner = [float(values.min() + values.max() - size) / 2 for values in (xs, ys)]
    left, bottom = (min(max(0.0, low), max(0.0, 1.02 - size)) for low in corner)  # nothing is below 0 or above 1
    return _Plane(left, bottom, size)


def _walked(walk: Walk, plane: _Plane) -> str:
    spots = [plane.place(x, y) for x, y in zip(walk.x, walk.y, strict=True)]
    colour = f"c{walk.colour % COLOURS}"
    parts = [f'<path class="line {colour}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in spots)}"/>']
    for index, (x, y) in enumerate(spots):
        _, low = plane.place(0, walk.low[index])
        _, high = plane.place(0, walk.high[index])
        parts.append(f'<path class="whisker {colour}" d="M{x:.1f} {low:.1f}V{high:.1f}"/>')
        if walk.left is not None and walk.right is not None:
            (left, _), (right, _) = plane.place(walk.left[index], 0), plane.place(walk.right[index], 0)
            parts.append(f'<path class="whisker {colour}" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
        last = index == len(spots) - 1
        kind = "last" if last else "first" if index == 0 else "dot"
        label = escape(f"{walk.name}, {walk.labels[index]}")
        spot = f'class="{kind} {colour}" cx="{x:.1f}" cy="{y:.1f}" r="{6 if last else 3.5}"'
        parts.append(f"<circle {spot}><title>{label}</title></circle>")
    return "".join(parts)


def bars(title: str, counts: Sequence[float], labels: Sequence[str], colour: int = 0) -> str:
    """A histogram; labels[k] is written under bar k where it is not empty."""
    most = max(counts, default=0)
    if not most:
        return _figure(title, '<p class="none">not measured</p>')
    scale = _Scale(0, len(counts), 0, most)
    parts = [scale.rows()]
    step = (WIDTH - _LEFT - _RIGHT) / len(counts)
    for index, (count, label) in enumerate(zip(counts, labels, strict=True)):
        x, y = _LEFT + index * step, scale.y(count)
        tall = HEIGHT - _BOTTOM - y
        box = f'x="{x + 0.5:.1f}" y="{y:.1f}" width="{max(step - 1, 0.5):.1f}" height="{tall:.1f}"'
        said = escape(f"{label}: {count:g}")
        parts.append(f'<rect class="fill c{colour % COLOURS}" {box}><title>{said}</title></rect>')
        if label and (len(counts) <= 12 or index % math.ceil(len(counts) / 8) == 0):
            parts.append(f'<text x="{x + step / 2:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(label)}</text>')
    return _figure(title, _svg("".join(parts), title))


def running_mean(values: Floats) -> Floats:
    """Centred, over about a tenth of the points."""
    half = max(0, min(len(values) // 20, 12))
    if half == 0:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    begin, end = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return np.asarray((sums[end] - sums[begin]) / (end - begin), np.float64)


def _thinned(line: Line) -> Line:
    known = np.isfinite(line.y)
    x, y = line.x[known].astype(np.float64), line.y[known]
    if len(x) > POINTS:
        begins = np.linspace(0, len(x), POINTS + 1).astype(np.int64)[:-1]
        sizes = np.diff(np.append(begins, len(x)))
        x, y = np.add.reduceat(x, begins) / sizes, np.add.reduceat(y, begins) / sizes
    return Line(line.name, x, y, line.colour)


class _Scale:
    """From values to places in the picture."""

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        self.left, self.right = left, right if right > left else left + 1
        self.low, self.high = low, high if high > low else low + 1

    def x(self, value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (value - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - self.low) / (self.high - self.low)

    def path(self, line: Line) -> str:
        return "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in zip(line.x, line.y, strict=True))

    def rows(self) -> str:
        """Lines across, with their values."""
        parts = []
        for value in _ticks(self.low, self.high):
            y = self.y(value)
            parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
            parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
        return "".join(parts)

    def axes(self, name: str) -> str:
        left, right = f"{self.left:.0f}", f"{name} {self.right:.0f}"
        return (
            self.rows()
            + f'<text x="{_LEFT}" y="{HEIGHT - 10}">{left}</text>'
            + f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 10}" text-anchor="end">{escape(right)}</text>'
        )


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from low to high."""
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step *= next(factor for factor in (5, 2, 1) if factor == 1 or (high - low) / (factor * step) >= 2.5)
    return [step * place for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _range(low: float, high: float) -> tuple[float, float]:
    """Somewhat more than what is measured, unless that ends at a bound such as 0 or 1."""
    if high - low < 1e-9:
        room = max(abs(low) * 0.1, 0.05)
        return (low, low + room) if low == 0 else (low - room, high + room)
    room = 0.05 * (high - low)
    return low if low in (0.0, 1.0) else low - room, high if high in (0.0, 1.0) else high + room


def _short(value: float) -> str:
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if abs(value) >= 1000:
        return f"{value / 1000:.3g}k" if abs(value) < 1e6 else f"{value:.1e}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.0e}"


def _svg(body: str, title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg>'


def _figure(title: str, body: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{body}</figure>"
