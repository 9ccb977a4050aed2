"""Drawings for reports, as SVG text; the same figures give the same bytes."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

INK, SOFT, GRID = "#1d2126", "#6a737d", "#d8dde3"
COLOURS = ("#1f5f8b", "#c2571a", "#2f7d4f", "#8a4f9e", "#a8871d", "#4b5563")
_STYLE = {
    "font.size": 10, "axes.edgecolor": GRID, "axes.labelcolor": INK, "text.color": INK, "xtick.color": SOFT,
    "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "tenet",
    "svg.fonttype": "path", "figure.dpi": 100,
}  # fmt: skip


def drawn(draw: Callable[[Any], None], width: float, height: float, panels: int = 1) -> str:
    """SVG of a figure whose axes `draw` fills in: one Axes, or a list of several side by side."""
    matplotlib: Any = import_module("matplotlib")
    figures: Any = import_module("matplotlib.figure")
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; the tables hold it in full.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        # A Figure of its own, not pyplot's: nothing global stays behind, and no display is looked for.
        figure = figures.Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        draw(axes[0] if panels == 1 else list(axes))
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def short(name: str) -> str:
    """A name that fits a drawing; a dollar sign is no mathematics."""
    cut = name if len(name) <= 34 else name[:16] + "…" + name[-16:]
    return cut.replace("$", r"\$")
