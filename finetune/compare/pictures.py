"""Loss curves laid over each other, and differences with their intervals; drawn with the report's ink."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune.report import figures
from finetune.report.ink import INK, SMALL, make_axes
from finetune.report.plots import NARROW, Plot, draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("base", "tuned", "classic", "pass", "fail", "ink")
_LINES = ("-", (0, (5, 2)), (0, (1, 1.5)))
_MARKS = ("o", "s", "D")
_ENTRY = 46


def line(number: int) -> tuple[str, Any, str]:
    """Colour, dashes and mark of a run: never told apart by colour alone while there are three runs or fewer."""
    return INK[_COLOURS[number % len(_COLOURS)]], _LINES[number % len(_LINES)], _MARKS[number % len(_MARKS)]


def curves(stage: str, runs: Sequence[Sequence[Mapping[str, float]]], heads: Sequence[str]) -> Plot:
    """Training loss of each run as a line, its held-out loss as marks, by optimiser step."""
    from matplotlib.ticker import MaxNLocator

    def picture(width: float) -> "Figure":
        figure, axes = make_axes(width, 300, left=48, right=16, top=30, bottom=44)
        axes.grid(axis="y", color=INK["hair"], linewidth=1)
        axes.set_axisbelow(True)
        for number, rows in enumerate(runs):
            colour, dashes, mark = line(number)
            train = [(row["step"], row["loss"]) for row in rows if "loss" in row]
            held_out = [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]
            if train:
                axes.plot(*zip(*train, strict=True), color=colour, linestyle=dashes, linewidth=2)
            if held_out:
                axes.plot(
                    *zip(*held_out, strict=True), mark, color=colour, markersize=8, markeredgecolor=INK["paper"],
                    markeredgewidth=1.5, zorder=4, clip_on=False,
                )
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(axis="y", labelcolor=INK["muted"], labelsize=SMALL)
        axes.set_xlabel("step", labelpad=6)
        top = 1 - 13 / 300
        for number, head in enumerate(heads):
            colour, dashes, mark = line(number)
            x = (56 + _ENTRY * number) / width
            axes.plot([x, x + 16 / width], [top, top], color=colour, linestyle=dashes, linewidth=2, marker=mark,
                      markevery=[1], markersize=7, transform=figure.transFigure, clip_on=False)
            figure.text(x + 24 / width, top, head, fontsize=SMALL, va="center")
        return figure

    return draw(f"curve-{stage}", picture)


def differences(metrics: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> Plot | None:
    """Each other run minus the first, a mark and its 95 % interval, grouped by task; None where nothing was paired."""
    rows: list[tuple[str, Mapping[str, Any] | None]] = []
    for task in metrics:
        paired = [pair for pair in task["pairs"] if pair["refused"] is None]
        if paired:
            rows += [(task["title"], None), *((f"{heads[pair['run']]} − {heads[0]}", pair) for pair in paired)]
    if not rows:
        return None

    def picture(width: float) -> "Figure":
        narrow = width == NARROW
        left, right = (56.0, 16.0) if narrow else (130.0, 190.0)
        step = 38 if narrow else 28
        figure, axes = make_axes(width, len(rows) * step + 54, left=left, right=right, top=6, bottom=48)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks([])

        def say(x: float, y: float, text: str, *, end: bool = False, weight: str = "normal") -> None:
            axes.annotate(
                text, (1 if end else 0, y), xycoords=("axes fraction", "data"), xytext=(x, 0), va="center",
                textcoords="offset points", ha="right" if end and narrow else "left", fontsize=SMALL,
                fontweight=weight, color=INK["muted"] if end else INK["ink"], annotation_clip=False,
            )

        for at, (label, pair) in enumerate(rows):
            if pair is None:
                say(-left, at, textwrap.shorten(label, 48 if narrow else 100, placeholder="…"), weight="bold")
                continue
            colour, _, mark = line(pair["run"])
            height = at + (0.18 if narrow else 0)
            low, high = pair["ci95"]
            axes.plot([low, high], [height, height], color=colour, linewidth=2.5, zorder=3)
            axes.plot(pair["difference"], height, mark, markersize=8, color=colour, zorder=4)
            say(-left, at, label)
            numbers = f"{figures.signed(pair['difference'])}  {figures.interval(pair['ci95'])}"
            say(0 if narrow else 14, at - (0.24 if narrow else 0), numbers, end=True)
        ends = [end for _, pair in rows if pair is not None for end in (*pair["ci95"], 0.0)]
        margin = 0.08 * (max(ends) - min(ends)) or 0.01
        axes.set_xlim(min(ends) - margin, max(ends) + margin)
        axes.axvline(0, color=INK["ink"], linewidth=1, zorder=2)
        axes.locator_params(axis="x", nbins=4 if narrow else 8)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", figures.MINUS) if value else "0")
        axes.set_xlabel("difference in score", labelpad=8)
        return figure

    return draw("differences", picture)
