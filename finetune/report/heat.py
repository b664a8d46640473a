"""Maps of right answers by length of the text and depth of what was asked for: of the base and of the tuned model, one
for each kind of question."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetune.report import figures
from finetune.report.ink import INK, SMALL, make_axes
from finetune.report.layout import found_by
from finetune.report.plots import Plot, draw
from finetune.report.strings import words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DARKEST = 0.5
"""Opacity of a cell where all was right: ink on it keeps a contrast of 4.5 in light and in dark."""


def maps(facts: Mapping[str, Any]) -> list[Plot]:
    """Pictures for each kind of question that was asked; none where long texts were not measured."""
    measured = facts.get("context") or {}
    return [_map(facts, kind, who) for kind in measured.get("kinds", ()) for who in found_by(facts)]


def _map(facts: Mapping[str, Any], kind: str, who: str) -> Plot:
    t = words(facts["language"])["context"]
    measured = facts["context"]
    lengths, depths = list(measured["lengths"]), list(measured["depths"])
    shares = {
        (row["length"], row["depth"]): row["right" if who == "tuned" else who] / row["n"]
        for row in measured["rows"]
        if row["kind"] == kind and row["n"]
    }

    def picture(width: float) -> "Figure":
        from matplotlib.patches import Rectangle

        wide = min(width - 70, 110.0 * len(lengths))
        figure, axes = make_axes(
            width, 36 * len(depths) + 62, left=56, right=max(14.0, width - 56 - wide), top=8, bottom=54
        )
        axes.set_xlim(-0.5, len(lengths) - 0.5)
        axes.set_ylim(len(depths) - 0.5, -0.5)
        for column, length in enumerate(lengths):
            for line, depth in enumerate(depths):
                share = shares.get((length, depth))
                corner = (column - 0.48, line - 0.46)
                axes.add_patch(Rectangle(corner, 0.96, 0.92, facecolor=INK[who], alpha=_DARKEST * (share or 0.0)))
                axes.add_patch(Rectangle(corner, 0.96, 0.92, facecolor="none", edgecolor=INK["line"], linewidth=1))
                axes.text(column, line, figures.percent(share, 0), ha="center", va="center", fontsize=SMALL)
        axes.set_xticks(range(len(lengths)), [figures.count(length) for length in lengths])
        axes.set_yticks(range(len(depths)), [figures.percent(depth, 0) for depth in depths])
        axes.tick_params(axis="y", labelcolor=INK["muted"], labelsize=SMALL, pad=6)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="x", length=0, pad=6)
        axes.set_xlabel(t["length"], labelpad=8)
        return figure

    return draw(f"context-{kind}-{who}", picture)
