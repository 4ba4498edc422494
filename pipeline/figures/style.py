"""The style of all charts: fonts, colors, and how they are stored.

As PNG, a chart has an opaque light background, so that it looks the same on a light and on a dark page. As SVG inside
a page, it has none, and its text and axes have the color of the page's text.
"""

from __future__ import annotations

import io
import logging
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

from data_prep.common.errors import printable
from data_prep.maintain.drawing import FAINT, INK, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#2878b5", "#d9730d", "#2e8b57", "#b8478f", "#7d6bc4", "#a07c1c", "#1799a8", "#c44e52")
"""Of lines, in turn; each has enough contrast on white and on a dark page."""
DOTS_PER_INCH = 110
FALLBACK_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Noto Sans", "FreeSans", "Unifont")
"""Fonts with more alphabets than DejaVu Sans, which are used where they are installed."""


@contextmanager
def styled() -> Iterator[None]:
    """Draws and stores the figures of the body in this style."""
    from matplotlib import font_manager, rc_context  # takes half a second to import

    installed = {one.name for one in font_manager.fontManager.ttflist}
    settings: Any = {
        "font.family": ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)],
        "font.size": 9,
        "figure.dpi": DOTS_PER_INCH,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "text.parse_math": False,  # class names are no formulas
        "svg.fonttype": "path",
        "svg.hashsalt": "phasecollapse",
        **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
        **{f"axes.{part}": INK for part in ("edgecolor", "labelcolor", "titlecolor")},
        **{f"figure.{part}": PAPER for part in ("facecolor", "edgecolor")},
        "axes.facecolor": "none",
        "figure.constrained_layout.w_pad": 0.08,
        "figure.constrained_layout.h_pad": 0.08,
        "grid.color": FAINT,
        "grid.alpha": 0.25,
    }
    missing = logging.getLogger("matplotlib.font_manager")
    before = missing.level
    missing.setLevel(logging.ERROR)
    try:
        with rc_context(settings), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # it is drawn as a box
            yield
    finally:
        missing.setLevel(before)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, whose parts never overlap nor are cut."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def name(text: str, width: int = 24, lines: int = 3) -> str:
    """A name from outside, wrapped into a few lines of at most `width` characters; an ellipsis replaces the middle of
    one that is longer, as names often differ at their end."""
    text = " ".join(printable(text).split())
    for kept in range(min(len(text), width * lines), 0, -1):
        short = text if kept == len(text) else f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        wrapped = textwrap.wrap(short, width, break_on_hyphens=False)
        if len(wrapped) <= lines:
            return "\n".join(wrapped)
    return text


def grid(axes: Axes) -> None:
    """Faint lines at the ticks of both axes."""
    axes.grid(True, linewidth=0.6)


def png(draw: Callable[[], Figure]) -> bytes:
    """The figure that `draw` returns, as PNG."""
    content = io.BytesIO()
    with styled():
        draw().savefig(content, format="png", dpi=DOTS_PER_INCH)
    return content.getvalue()


def svg(draw: Callable[[], Figure], description: str) -> str:
    """The figure that `draw` returns as an SVG element for a page, with the color of the page's text, as wide as there
    is room.

    Args:
        description: for readers who do not see it.
    """
    content = io.StringIO()
    with styled():
        draw().savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = content.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)  # the texts that are drawn, once more
    text = text.replace(INK, "currentColor")
    head, _, rest = text.partition(">")
    head = re.sub(r' (width|height|version|xmlns(:\w+)?)="[^"]*"', "", head)
    return f'{head} role="img" aria-label={quoteattr(description)}>{rest}'
