"""The pictures of the report. Each is drawn twice, for a wide and a narrow page, so that text keeps its size."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.report import figures
from finetune.report.ink import INK, SIZE, SMALL, make_axes, style, to_svg
from finetune.report.layout import alternatives
from finetune.report.strings import words
from finetune.report.verdict import CLASSIC

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, NARROW = 760.0, 340.0
SHORT = 220  # px for the name of a step
Facts = Mapping[str, Any]
_MARKS = {  # shape, size, colour, hollow, layer: two systems with one score both stay visible
    "base_zero_shot": ("o", 10.0, "base", True, 3),
    "base_few_shot": ("o", 5.0, "base", False, 4),
    "majority": ("|", 14.0, "base", False, 4),
    "linear_baseline": ("D", 7.0, "classic", True, 5),
    "nearest_baseline": ("s", 7.0, "classic", True, 5),
    "sft": ("^", 8.0, "tuned", True, 5),
    "tuned": ("o", 11.0, "tuned", False, 6),
}
Tick = Callable[[float], str]
_EVEN = 1e-9


@dataclass(frozen=True)
class Plot:
    """One picture: an SVG for pages wider than a phone and one for phones."""

    name: str
    wide: str
    narrow: str


def draw(name: str, picture: "Callable[[float], Figure]") -> Plot:
    """Draw `picture(width)` at both widths."""
    with style():
        return Plot(name, to_svg(picture(WIDE), f"{name}-wide"), to_svg(picture(NARROW), f"{name}-narrow"))


def forest(facts: Facts) -> Plot:
    """Tuned minus every other system, a dot and its 95 % interval for each, grouped by task."""
    t = words(facts["language"])
    rows: list[tuple[str, str, Mapping[str, Any] | None]] = []
    for task in facts["tasks"]:
        rows.append(("task", task["title"], None))
        rows += [
            (system, t["system"].get(system, system), task["differences"][system])
            for system in alternatives(facts)
            if task["differences"].get(system) is not None
        ]

    def picture(width: float) -> "Figure":
        narrow = width == NARROW
        step = 40 if narrow else 27
        figure, axes = make_axes(
            width, len(rows) * step + 54, left=8 if narrow else 190, right=8 if narrow else 180, top=6, bottom=48
        )
        axes.set_ylim(len(rows) - 0.5, -0.5)
        for at, (system, label, difference) in enumerate(rows):
            if difference is None:
                _say(axes, 0 if narrow else -190, at, label, weight="bold", wide=not narrow)
                continue
            colour = INK["classic"] if system in CLASSIC else INK["tuned"]
            low, high = difference["ci95"]
            height = at + (0.2 if narrow else 0)
            axes.plot([low, high], [height, height], color=colour, linewidth=2.5, zorder=3)
            axes.plot(
                difference["difference"], height, "o", markersize=8, color=colour, markeredgewidth=2, zorder=4,
                markerfacecolor=INK["paper"] if system in CLASSIC else colour,
            )
            numbers = f"{figures.signed(difference['difference'])}  {figures.interval(difference['ci95'])}"
            if narrow:
                _say(axes, 0, at - 0.24, label, size=SMALL)
                _say(axes, 0, at - 0.24, numbers, size=SMALL, right=True, colour=INK["muted"])
            else:
                _say(axes, -178, at, label)
                _say(axes, 14, at, numbers, right=True, outside=True, colour=INK["muted"])
        ends = [end for _, _, d in rows if d is not None for end in d["ci95"]]
        _span(axes, [*ends, 0.0])
        axes.axvline(0, color=INK["ink"], linewidth=1, zorder=2)
        axes.set_yticks([])
        _ticks(axes, lambda value: f"{value:+g}", 4 if narrow else 8)
        axes.set_xlabel(t["gain"]["forest_axis"], labelpad=8)
        return figure

    return draw("forest", picture)


def scores(facts: Facts) -> Plot:
    """The score of each system on each task, one row a task, from 0 to 1."""
    t = words(facts["language"])

    def picture(width: float) -> "Figure":
        narrow = width == NARROW
        tasks = facts["tasks"]
        shown = [*alternatives(facts), "tuned"]
        places = _flow([t["system"].get(system, system) for system in shown], width)
        legend = 22 * (1 + places[-1][1]) + 14
        titles = [task["title"] if narrow else _broken(task["title"]) for task in tasks]
        step = 62 if narrow else 26 + 18 * max(1 + title.count("\n") for title in titles)
        figure, axes = make_axes(
            width, len(tasks) * step + 34 + legend, left=10 if narrow else 190, right=14, top=legend, bottom=30
        )
        axes.set_ylim(len(tasks) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.set_yticks([])
        for at, task in enumerate(tasks):
            height = at + (0.16 if narrow else 0)
            _say(axes, 0 if narrow else -190, at - (0.24 if narrow else 0), titles[at])
            axes.plot([0, 1], [height, height], color=INK["hair"], linewidth=1, zorder=1)
            for system in shown:
                if task.get(system) is not None:
                    _mark(axes, task[system], height, system)
        for (x, line), system in zip(places, shown, strict=True):
            at_figure = ((x + 8) / width, 1 - (12 + 22 * line) / (figure.get_figheight() * 72))
            _mark(axes, *at_figure, system, transform=figure.transFigure)
            named = t["system"].get(system, system)
            figure.text(at_figure[0] + 12 / width, at_figure[1], named, fontsize=SMALL, va="center")
        _ticks(axes, lambda value: f"{value:g}", 5)
        return figure

    return draw("scores", picture)


def general(facts: Facts, limit: float | None) -> Plot:
    """Change of general perplexity for each kind of text, with the gate."""
    t = words(facts["language"])
    changes = facts["general"]["change"]

    def picture(width: float) -> "Figure":
        narrow = width == NARROW
        step = 46 if narrow else 34
        figure, axes = make_axes(
            width, len(changes) * step + 76, left=10 if narrow else 190, right=16 if narrow else 100, top=24, bottom=48
        )
        axes.set_ylim(len(changes) - 0.5, -0.5)
        axes.set_yticks([])
        _span(axes, [*changes.values(), 0.0, *([limit] if limit is not None else [])])
        axes.axvline(0, color=INK["ink"], linewidth=1)
        if limit is not None:
            axes.axvline(limit, color=INK["fail"], linewidth=1.2, linestyle=(0, (4, 3)))
            axes.annotate(
                f"{t['general']['limit']} {figures.change(limit)}", (limit, 1), xycoords=("data", "axes fraction"),
                xytext=(0, 8), textcoords="offset points", ha="right", color=INK["fail"], fontsize=SMALL,
            )
        for at, (kind, value) in enumerate(changes.items()):
            height = at + (0.14 if narrow else 0)
            bad = limit is not None and value > limit
            colour = INK["fail"] if bad else INK["tuned"]
            axes.plot([0, value], [height, height], color=colour, linewidth=2.5, zorder=3)
            axes.plot(value, height, "o", color=colour, markersize=8, zorder=4)
            if narrow:
                _say(axes, 0, at - 0.26, f"{kind}: {figures.change(value)}", size=SMALL)
            else:
                _say(axes, -190, at, kind)
                _say(axes, 14, at, figures.change(value), right=True, outside=True, colour=INK["muted"])
        _ticks(axes, lambda value: f"{100 * value:+g}\u00a0%", 4 if narrow else 6)
        axes.set_xlabel(t["general"]["axis"], labelpad=8)
        return figure

    return draw("general", picture)


def curve(facts: Facts, stage: str) -> Plot:
    """Training loss as a line, held-out loss as dots, by optimiser step."""
    from matplotlib.ticker import MaxNLocator

    t = words(facts["language"])["curves"]
    rows = facts["curves"][stage]
    train = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    held_out = [(row["step"], row["eval_loss"]) for row in rows if row.get("eval_loss") is not None]
    unusual = [(row["step"], row["loss"]) for row in rows if row.get("spikes") and "loss" in row]

    def picture(width: float) -> "Figure":
        # Half the wide page: two stages stand side by side there.
        figure, axes = make_axes(NARROW if width == NARROW else 360, 236, left=44, right=14, top=26, bottom=44)
        axes.grid(axis="y", color=INK["hair"], linewidth=1)
        axes.set_axisbelow(True)
        if train:
            axes.plot(*zip(*train, strict=True), color=INK["base"], linewidth=2)
        if unusual:
            axes.plot(*zip(*unusual, strict=True), "x", color=INK["fail"], markersize=8, markeredgewidth=2, zorder=5)
        if held_out:
            axes.plot(
                *zip(*held_out, strict=True), "o", color=INK["tuned"], markersize=8, markeredgecolor=INK["paper"],
                markeredgewidth=1.5, zorder=4, clip_on=False,
            )
        values = [value for _, value in (*train, *held_out)]
        margin = 0.08 * (max(values) - min(values)) or 0.1
        axes.set_ylim(max(0.0, min(values) - margin), max(values) + margin)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(axis="y", labelcolor=INK["muted"], labelsize=SMALL)
        axes.set_xlabel(t["step"], labelpad=6)
        axes.annotate(t["loss"], (0, 1), xycoords="axes fraction", xytext=(-34, 12), textcoords="offset points",
                      color=INK["muted"], fontsize=SMALL, va="center")
        key = [("base", t["train"], "_"), *([("tuned", t["eval"], "o")] if held_out else []),
               *([("fail", t["spike"], "x")] if unusual else [])]
        for place, (colour, label, mark) in enumerate(key):
            axes.annotate(label, (1, 1), xycoords="axes fraction", xytext=(84 * (place - len(key)) + 10, 12),
                          textcoords="offset points", color=INK["ink"], fontsize=SMALL, va="center")
            x = 1 - (84 * (len(key) - place) + 2) / (axes.get_position().width * figure.get_figwidth() * 72)
            y = 1 + 12 / (axes.get_position().height * figure.get_figheight() * 72)
            axes.plot(x, y, mark, transform=axes.transAxes, color=INK[colour], clip_on=False, markersize=8,
                      markeredgewidth=1 if mark == "o" else 2)
        return figure

    return draw(f"curve-{stage}", picture)


def flow(facts: Facts) -> Plot:
    """Rows kept and dropped at each step, all sources together, in the order of the ledger."""
    t = words(facts["language"])["data"]
    named = t["name"]
    kept: dict[str, int] = {}
    dropped: dict[str, int] = {}
    for row in facts["ledger"]:
        step = named.get(row["step"], row["step"])
        kept[step] = kept.get(step, 0) + row["rows_out"]
        dropped[step] = dropped.get(step, 0) + sum(row["dropped"].values())
    legend = ((t["kept"], "base"), (t["dropped"], "classic"))

    def picture(width: float) -> "Figure":
        narrow = width == NARROW
        step = 44 if narrow else 30
        figure, axes = make_axes(width, len(kept) * step + 40, left=4 if narrow else SHORT, right=4 if narrow else 170,
                                 top=34, bottom=6)
        axes.set_ylim(len(kept) - 0.5, -0.5)
        axes.set_xlim(0, max(kept[name] + dropped[name] for name in kept) or 1)
        axes.set_axis_off()
        height = 0.34 if narrow else 0.56
        for at, name in enumerate(kept):
            down = at + (0.2 if narrow else 0)
            axes.barh(down, kept[name], height=height, color=INK["base"])
            axes.barh(down, dropped[name], left=kept[name], height=height, color=INK["classic"])
            numbers = figures.count(kept[name])
            if dropped[name]:
                numbers = t["kept_dropped"].format(kept=numbers, dropped=figures.count(dropped[name]))
            if narrow:
                _say(axes, 0, at - 0.22, name, size=SMALL)
                _say(axes, 0, at - 0.22, numbers, size=SMALL, right=True, colour=INK["muted"])
            else:
                _say(axes, -SHORT, at, name)
                _say(axes, 14, at, numbers, right=True, outside=True, colour=INK["muted"])
        _swatches(figure, axes, legend, width)
        return figure

    return draw("flow", picture)


def timings(facts: Facts) -> Plot:
    """Seconds for each stage as bars."""
    t = words(facts["language"])
    spent = {t["stage"].get(name, name): value for name, value in facts["timings"].items()}

    def picture(width: float) -> "Figure":
        narrow = width == NARROW
        step = 40 if narrow else 30
        figure, axes = make_axes(width, len(spent) * step + 12, left=4 if narrow else SHORT, right=4 if narrow else 90,
                                 top=6, bottom=6)
        axes.set_ylim(len(spent) - 0.5, -0.5)
        axes.set_xlim(0, max(spent.values()) or 1)
        axes.set_axis_off()
        for at, (name, value) in enumerate(spent.items()):
            axes.barh(at + (0.2 if narrow else 0), value, height=0.3 if narrow else 0.56, color=INK["base"])
            if narrow:
                _say(axes, 0, at - 0.22, name, size=SMALL)
                _say(axes, 0, at - 0.22, f"{figures.seconds(value)} s", size=SMALL, right=True, colour=INK["muted"])
            else:
                _say(axes, -SHORT, at, name)
                _say(axes, 14, at, f"{figures.seconds(value)} s", right=True, outside=True, colour=INK["muted"])
        return figure

    return draw("timings", picture)


def _say(
    axes: "Axes", x: float, y: float, text: str, *, size: float = SIZE, weight: str = "normal", right: bool = False,
    outside: bool = False, colour: str = INK["ink"], wide: bool = False,
) -> None:
    """Text at `x` px from the left edge of the axes (from the right edge with `right`), at row `y`."""
    axes.annotate(
        text, (1 if right else 0, y), xycoords=("axes fraction", "data"), xytext=(x, 0), textcoords="offset points",
        ha="right" if right and not outside else "left", va="center", fontsize=size, fontweight=weight, color=colour,
        annotation_clip=False,
    )


def _broken(title: str) -> str:
    """The title in lines that end before the axes begin; a Chinese character is as wide as two Latin ones."""
    wide = sum(ord(letter) > 0x2E7F for letter in title) * 2 > len(title)
    return textwrap.fill(title, 12 if wide else 24)


def _span(axes: "Axes", values: Sequence[float]) -> None:
    """From the least to the largest value that is a number; what is none stands in the table and fails its gate."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known), max(known)
    margin = 0.08 * (high - low) or 0.01
    axes.set_xlim(low - margin, high + margin)


def _ticks(axes: "Axes", spell: Tick, most: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))

    def label(value: float, _: int) -> str:
        return "0" if abs(value) < _EVEN else spell(round(value, 9)).replace("-", figures.MINUS)

    axes.xaxis.set_major_formatter(FuncFormatter(label))


def _mark(axes: "Axes", x: float, y: float, system: str, **place: Any) -> None:
    """One system's mark: filled for the tuned model, grey for base and majority, hollow for classic baselines."""
    shape, size, colour, hollow, layer = _MARKS[system]
    axes.plot(
        [x], [y], linestyle="none", clip_on=False, marker=shape, markersize=size, color=INK[colour], zorder=layer,
        markerfacecolor=INK["paper"] if hollow else INK[colour], markeredgewidth=2 if system != "tuned" else 0, **place,
    )


def _flow(labels: Sequence[str], width: float) -> list[tuple[float, int]]:
    """(x, line) of each entry of a legend that wraps: text is guessed wide, so that no font makes entries touch."""
    places, x, line = [], 0.0, 0
    for label in labels:
        wide = 40 + sum(12.0 if ord(letter) > 0x2E80 else 7.2 for letter in label)
        if x and x + wide > width:
            x, line = 0.0, line + 1
        places.append((x, line))
        x += wide
    return places


def _swatches(figure: "Figure", axes: "Axes", legend: Sequence[tuple[str, str]], width: float) -> None:
    height = figure.get_figheight() * 72
    left = axes.get_position().x0 * width
    for place, (label, colour) in enumerate(legend):
        x = left + 6 + place * 110
        axes.plot([x / width], [1 - 12 / height], "s", markersize=9, color=INK[colour], transform=figure.transFigure,
                  clip_on=False)
        figure.text((x + 11) / width, 1 - 12 / height, label, fontsize=SMALL, va="center")
