"""Charts as inline SVG that take the colours of the page, light or dark; drawn from numbers, and names of topics.

Names of classes stand in the HTML beside a chart, where they are escaped and every script has its glyphs.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from markupsafe import Markup, escape

from bertray.evaluation.curves import Curve, ReliabilityBin
from bertray.reports.plain import visible

if TYPE_CHECKING:  # it takes half a second, which every command would wait for
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

Points: TypeAlias = Sequence[tuple[float, float]]

# Placeholders that are replaced by CSS variables after drawing; no two are alike and none is a default of matplotlib.
_INK, _MUTED, _GRID = "#010203", "#020304", "#030405"
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _GRID: "--line"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)
}
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (8, 2)), (0, (3, 1, 1, 1)))
MAX_SERIES = len(SERIES)
MAX_TOPIC_COLOURS = 40  # smaller topics are grey
_HUE_STEP = 137.5  # degrees, the golden angle: hues of any number of topics lie far apart
_NAME_HEIGHT, _NAME_WIDTH = 8.0, 3.7  # of a line and of a letter of a topic's name on the map, in its units
_MAP_WIDTH, _MAP_HEIGHT = 440, 330
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bertray",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "lines.linewidth": 1.8,
}


class Charts:
    """Draws the charts of one page; ids of elements never repeat on it."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def reliability(self, bins: Sequence[ReliabilityBin]) -> Markup:
        """Accuracy against score with intervals, beside the diagonal of a model that is as sure as it is right."""
        with _style():
            figure, axes = _figure()
            axes.plot([0, 1], [0, 1], color=_MUTED, linestyle=(0, (4, 3)), linewidth=1)
            x = [b.confidence for b in bins]
            y = [b.accuracy.value for b in bins]
            below = [b.accuracy.value - b.accuracy.low for b in bins]
            above = [b.accuracy.high - b.accuracy.value for b in bins]
            axes.errorbar(
                x, y, yerr=[below, above], color=SERIES[0], linewidth=1.4, marker="o", markersize=4, capsize=2
            )
            start = min([*x, *(b.accuracy.low for b in bins), 1.0])
            axes.set(xlim=(max(0.0, start - 0.03), 1.01), ylim=(max(0.0, start - 0.03), 1.02))
            axes.set(xlabel="score of the predicted label", ylabel="share that is right")
            return self._svg(figure, "Reliability diagram: share of right predictions by score")

    def tried(self, points: Points, best: tuple[float, float], *, xlabel: str, ylabel: str, log: bool) -> Markup:
        """Metric of each trial of a search by one hyperparameter; the best trial is marked."""
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

        with _style():
            figure, axes = _figure()
            axes.plot(*zip(*points, strict=True), color=SERIES[0], linestyle="", marker="o", markersize=4)
            axes.plot(*best, color=SERIES[1], linestyle="", marker="D", markersize=7)
            # Five plain labels at most: those of matplotlib run into each other.
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            if log:
                decades = math.log10(max(x for x, _ in points) / min(x for x, _ in points))
                axes.set_xscale("log")
                subs = (1, 2, 5) if decades <= 1 else (1, 3) if decades <= 2 else (1,)
                axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=5))
                axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
                axes.xaxis.set_minor_locator(NullLocator())
            else:
                axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=all(isinstance(x, int) for x, _ in points)))
            axes.set(xlabel=xlabel, ylabel=ylabel)
            return self._svg(figure, f"Trials: {ylabel} by {xlabel}")

    def scores(self, right: Sequence[int], wrong: Sequence[int] | None) -> Markup:
        """Rows by score in equal bins over [0, 1]; right and wrong rows stacked where both are known."""
        with _style():
            figure, axes = _figure()
            width = 1 / len(right)
            centres = [(number + 0.5) * width for number in range(len(right))]
            axes.bar(centres, right, width=0.9 * width, color=SERIES[0])
            if wrong is not None:
                axes.bar(centres, wrong, width=0.9 * width, bottom=list(right), color=SERIES[1])
            filled = [n for n, rows in enumerate(right) if rows or (wrong is not None and wrong[n])]
            axes.set(xlim=(min(filled, default=0) * width, 1.0), xlabel="score of the predicted label", ylabel="rows")
            axes.grid(visible=False, axis="x")
            _whole_numbers(axes)
            return self._svg(figure, "Histogram of scores")

    def roc(self, shown: Sequence[Curve]) -> Markup:
        """True against false positive rate of each class against the rest."""
        with _style():
            figure, axes = _figure()
            axes.plot([0, 1], [0, 1], color=_MUTED, linestyle=(0, (4, 3)), linewidth=1)
            for number, curve in enumerate(shown):
                axes.plot(curve.x, curve.y, color=SERIES[number], linestyle=_DASHES[number])
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xlabel="false positive rate", ylabel="true positive rate")
            return self._svg(figure, "ROC curves, one class against the rest")

    def precision_recall(self, shown: Sequence[Curve]) -> Markup:
        """Precision against recall of each class against the rest."""
        with _style():
            figure, axes = _figure()
            for number, curve in enumerate(shown):
                axes.plot(curve.x, curve.y, color=SERIES[number], linestyle=_DASHES[number])
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xlabel="recall", ylabel="precision")
            return self._svg(figure, "Precision-recall curves, one class against the rest")

    def losses(self, steps: Points, train: Points, validation: Points) -> Markup:
        """Loss by epoch: (epoch, loss) of training steps, their means by epoch, and validation."""
        with _style():
            figure, axes = _figure()
            if steps:
                axes.plot(*zip(*steps, strict=True), color=SERIES[0], linewidth=0.8, alpha=0.45)
            for points, colour, marker in ((train, SERIES[0], "o"), (validation, SERIES[1], "s")):
                if points:
                    axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=5)
            axes.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(_ticks(nbins=6, integer=_last(train, validation) > 1))
            return self._svg(figure, "Training and validation loss by epoch")

    def validation(self, series: Sequence[Points]) -> Markup:
        """Figures on validation by epoch: (epoch, value) of each series."""
        with _style():
            figure, axes = _figure()
            for number, points in enumerate(series):
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=SERIES[number], linestyle=_DASHES[number], marker="o", markersize=5)
            axes.set(xlabel="epoch", ylabel="value on validation")
            axes.xaxis.set_major_locator(_ticks(nbins=6, integer=True))
            return self._svg(figure, "Figures on validation by epoch")

    def _svg(self, figure: Figure, title: str) -> Markup:
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        return Markup(_inlined(buffer.getvalue(), f"chart{next(self._numbers)}", title))  # noqa: S704 - numbers only


def topic_colour(topic: int) -> str:
    """CSS colour of a topic: hues by the golden angle, in three lightnesses that the style sheet sets."""
    return f"oklch(var(--topic-{topic % 3}) .15 {topic * _HUE_STEP % 360:.0f})"


def topic_map(points: Sequence[tuple[float, float, int]], names: Mapping[int, str]) -> Markup:
    """Reviews as dots in two dimensions, (x, y, topic): the largest topics in colours with their numbers and names.

    Written by hand, a dot in about a dozen bytes. What lies far off is drawn at the edge. A name that would cover that
    of a larger topic is left out; the legend has all.

    Args:
        points: reviews; topic -1 are outliers.
        names: of topics, by number.
    """
    xy_N2 = np.array([(x, y) for x, y, _ in points], np.float64)
    topic_N = np.array([topic for _, _, topic in points])
    low_2, high_2 = np.percentile(xy_N2, [0.5, 99.5], axis=0)
    low_2, high_2 = low_2 - 0.05 * (high_2 - low_2), high_2 + 0.05 * (high_2 - low_2)
    unit_N2 = np.clip((xy_N2 - low_2) / np.maximum(high_2 - low_2, 1e-9), 0, 1)
    size_2, margin = np.array([_MAP_WIDTH, _MAP_HEIGHT]), 10
    place_N2 = margin + unit_N2 * (size_2 - 2 * margin)
    dots: list[str] = []
    places: dict[int, tuple[float, float]] = {}
    for topic in (-1, *sorted(set(topic_N.tolist()) - {-1}, reverse=True)):
        mine_M2 = place_N2[topic_N == topic]
        if not len(mine_M2):
            continue
        colour = "var(--faint)" if topic < 0 else topic_colour(topic) if topic < MAX_TOPIC_COLOURS else "var(--muted)"
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in mine_M2)
        width = 2.4 if topic < 0 else 3.4
        dots.append(f'<path d="{path}" style="stroke: {colour}; stroke-width: {width}"/>')
        if 0 <= topic < MAX_TOPIC_COLOURS:
            x, y = np.median(mine_M2, axis=0).tolist()
            places[topic] = x, y
    svg = (
        f'<svg class="map" viewBox="0 0 {_MAP_WIDTH} {_MAP_HEIGHT}" role="img" aria-label="Map of reviews by topic">'
        f'<g class="dots">{"".join(dots)}</g><g class="numbers">{"".join(_topic_labels(places, names))}</g></svg>'
    )
    return Markup(svg)  # noqa: S704 - numbers, and names that are escaped


def _topic_labels(places: Mapping[int, tuple[float, float]], names: Mapping[int, str]) -> Iterator[str]:
    """A number at the centre of each topic, and its name beside it, right or left, where that covers no other label."""
    taken = [(topic, x - 5, x + 5, y) for topic, (x, y) in places.items()]
    for topic, (x, y) in sorted(places.items()):
        yield f'<text x="{x:.1f}" y="{y:.1f}">{topic}</text>'
        name = visible(names.get(topic, ""))
        width = _NAME_WIDTH * len(name)
        for side, low, high in (("start", x + 6, x + 6 + width), ("end", x - 6 - width, x - 6)):
            free = all(
                topic == other or high < start or end < low or abs(y - other_y) > _NAME_HEIGHT
                for other, start, end, other_y in taken
            )
            if free and low >= 0 and high <= _MAP_WIDTH:
                taken.append((topic, low, high, y))
                at = low if side == "start" else high
                yield f'<text class="name {side}" x="{at:.1f}" y="{y:.1f}">{escape(name)}</text>'
                break


@contextlib.contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_RC):
        yield


def _figure() -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    # Small on purpose: one chart fills the width of a phone, so that its letters keep their size.
    figure = Figure(figsize=(4.4, 3.0))
    figure.subplots_adjust(left=0.165, right=0.975, top=0.97, bottom=0.17)  # a layout engine takes twice the time
    return figure, figure.add_subplot()


def _ticks(*, nbins: int, integer: bool) -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=nbins, integer=integer)


def _whole_numbers(axes: Any) -> None:
    axes.yaxis.set_major_locator(_ticks(nbins=5, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))


def _short(value: float) -> str:
    """`950`, `1,200`, `35k`, `1.5M`: at most five characters."""
    if value >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value / 1e3:.3g}k" if value >= 1e4 else f"{value:,.0f}"


def _last(*series: Points) -> float:
    return max((x for points in series for x, _ in points), default=0.0)


def _inlined(svg: str, name: str, title: str) -> str:
    """Matplotlib's file as an element of an HTML page: no header, no metadata, own ids, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)  # would style the whole page
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", svg)  # up to matplotlib 3.10
    svg = re.sub(r"font-family: [^;\"]+", "font-family: inherit", svg)
    box = re.search(r'viewBox="([^"]+)"', svg)
    assert box, "matplotlib writes a viewBox"
    svg = re.sub(r"<svg[^>]*>", f'<svg viewBox="{box.group(1)}" role="img" aria-label="{title}">', svg, count=1)
    return re.sub(r"\n\s*", "\n", svg).strip()
