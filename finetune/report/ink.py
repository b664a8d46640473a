"""matplotlib drawn as inline SVG that takes its colours and fonts from the page, so that light and dark both work."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stand for a CSS custom property of the page: matplotlib writes the left, the page gets the right.
INK = {
    "ink": "#010101",
    "muted": "#020202",
    "line": "#030303",
    "base": "#040404",
    "tuned": "#050505",
    "classic": "#060606",
    "paper": "#070707",
    "fail": "#080808",
    "pass": "#090909",
    "hair": "#0a0a0a",
}
SIZE = 12.5  # CSS px where one inch is 72 of them; the page shows a drawing at 0.95 to 1.15 of its size
SMALL = 11.5

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": SIZE,
    "text.parse_math": False,  # a dollar sign in a title is one, not the start of a formula
    "text.color": INK["ink"],
    "axes.edgecolor": INK["line"],
    "axes.labelcolor": INK["muted"],
    "axes.linewidth": 1.0,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.unicode_minus": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": INK["line"],
    "ytick.color": INK["line"],
    "xtick.labelcolor": INK["muted"],
    "ytick.labelcolor": INK["ink"],
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SIZE,
    "axes.labelsize": SMALL,
    "xtick.major.size": 4,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
}


@contextmanager
def style() -> Iterator[None]:
    """The drawing rules of the page. A glyph that matplotlib's own font lacks is no matter: the browser draws text."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def make_axes(
    width: float, height: float, *, left: float, right: float, top: float, bottom: float
) -> "tuple[Figure, Axes]":
    """Axes with margins in px. No automatic layout: it would measure text in another font than the reader's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72))
    inner = ((width - left - right) / width, (height - top - bottom) / height)
    axes = figure.add_axes((left / width, bottom / height, *inner))
    return figure, axes


def to_svg(figure: "Figure", name: str) -> str:
    """The figure as an `<svg>` element whose ids all begin with `name`: the same figure gives the same bytes."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # A style element inside an inline SVG would rule the whole page.
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r"font: ([0-9.]+px) [^;\"]+", r"font-size: \1", text)
    for word, colour in INK.items():
        text = text.replace(colour, f"var(--{word})")
    opening = re.search(r'viewBox="([^"]+)"', text)
    assert opening is not None
    body = text[text.index(">") + 1:]
    return f'<svg viewBox="{opening[1]}" aria-hidden="true" focusable="false">{body.strip()}'
