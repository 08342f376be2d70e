"""One picture a study. matplotlib is an extra: without it the numbers are all there, and a line says what lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def picture(path: Path, draw: Callable[[Any], None], rows: int = 1, columns: int = 1, **options: Any) -> str:
    """Draw and save; returns what was drawn, or why not.

    Args:
        path: of the PNG.
        draw: given the axes as an array [rows, columns].
        rows, columns, options: for `matplotlib.pyplot.subplots`.
    """
    try:
        import matplotlib
    except ImportError:
        return "No picture: it needs pip install matplotlib."
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained", **options)
    draw(axes)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return f"Picture: {path}"
