"""The pictures of scripts/analyse.sh. matplotlib is an extra: it is imported when something is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from analyse import Table

    from mlet.analysis import LawCheck

LARGEST = 8  # tables in a picture
POINTS = 400  # of a table, in the picture of the law
Trajectory = Sequence[tuple[float, Mapping[str, Sequence[float]]]]


def draw_all(
    folder: Path, tables: Sequence[Table], checks: Mapping[str, LawCheck], events: Trajectory
) -> tuple[dict[str, str], str]:
    """Draw what there is to draw; returns file name -> title, and what is missing and why."""
    try:
        import matplotlib
    except ImportError:
        return {}, "No pictures: they need pip install matplotlib."
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    largest = [table.name for table in sorted(tables, key=lambda table: -table.rows)[:LARGEST]]
    for old in ("spectra.png", "outside.png", "law.png", "trajectories.png"):
        (folder / old).unlink(missing_ok=True)  # of an earlier call that had more to draw
    figures = {"spectra.png": ("Singular values of the collapsed tables", draw_spectra(plt, tables, largest))}
    if checks:
        figures["outside.png"] = ("Share of a step that reaches rows out of the batch", draw_shares(plt, tables))
        figures["law.png"] = ("Measured and predicted steps in singular directions", draw_law(plt, checks, largest))
    if events:
        figures["trajectories.png"] = ("Singular values over training", draw_trajectories(plt, events, largest))
    for name, (title, figure) in figures.items():
        figure.suptitle(title)
        figure.savefig(folder / name, dpi=120)
        plt.close(figure)
    note = "" if events else 'No trajectories: the metrics file has no "spectrum" events (--spectra).'
    return {name: title for name, (title, _) in figures.items()}, note


def draw_spectra(plt: Any, tables: Sequence[Table], largest: Sequence[str]) -> Any:
    """s_i over i, one line a table."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for table in tables:
        values = [value for value in table.singular_values if value > 0]
        if table.name in largest and values:
            name = f"{table.name}, n={table.rows}"
            axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=name)
    axes.set(xlabel="i", ylabel="s_i", yscale="log")
    axes.legend(fontsize="small")
    return figure


def draw_shares(plt: Any, tables: Sequence[Table]) -> Any:
    """One point a table, the largest table first. Single layers are left out: theirs is 0."""
    measured = [table for table in tables if table.step and table.inner_dim]
    measured.sort(key=lambda table: table.rows)
    figure, axes = plt.subplots(figsize=(7, 1.5 + 0.22 * len(measured)), layout="constrained")
    names = [f"{table.name}, n={table.rows}" for table in measured]
    axes.plot([max(table.step["share_outside"], 1e-12) for table in measured], names, "o")
    axes.set(xlabel="share of ||W' - W||² in rows out of the batch", xscale="log")
    axes.set_xlim(right=1)
    axes.grid(alpha=0.3)
    return figure


def draw_law(plt: Any, checks: Mapping[str, LawCheck], largest: Sequence[str]) -> Any:
    """Magnitudes of the last batch in units of each table's largest: on the diagonal where the law holds."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.8), sharex=True, sharey=True, layout="constrained")
    formulas = {"general": "(s_i(W1)² + s_j(W2)²) |g_ij|", "balanced": "(s_i + s_j) |g_ij|"}
    for axis, (law_name, formula) in zip(axes, formulas.items(), strict=True):
        for name in [name for name in largest if name in checks] or list(checks)[:LARGEST]:
            law = getattr(checks[name], law_name)
            measured, predicted = law.measured.abs().flatten(), law.predicted.abs().flatten()
            seen = (measured > 0) & (predicted > 0)
            if not seen.any():
                continue
            top = measured.max()
            chosen = torch.nonzero(seen)[:, 0][:: max(1, int(seen.sum()) // POINTS)]
            axis.plot(predicted[chosen] / top, measured[chosen] / top, ".", markersize=3, alpha=0.6, label=name)
        axis.plot([1e-4, 1], [1e-4, 1], color="grey", linewidth=0.8)
        axis.set(xlabel=f"predicted: {formula}", xscale="log", yscale="log", title=f"{law_name} law")
        axis.set(xlim=(1e-4, 3), ylim=(1e-4, 3))
    axes[0].set_ylabel("measured: |u_i^T dW v_j| / rate")
    axes[1].legend(fontsize="small", markerscale=3)
    return figure


def draw_trajectories(plt: Any, events: Trajectory, largest: Sequence[str]) -> Any:
    """Small multiples: every singular value of a table over the epochs."""
    names = [name for name in largest if all(name in values for _, values in events)] or list(events[0][1])[:LARGEST]
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    size = (0.5 + 3 * columns, 0.8 + 2.4 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, sharex=True, squeeze=False, layout="constrained")
    epochs = [at for at, _ in events]
    for axis, name in zip(axes.flat, names, strict=False):
        for values in zip(*(tables[name] for _, tables in events), strict=True):
            axis.plot(epochs, values, marker=".", markersize=3, linewidth=1)
        axis.set(title=name, yscale="log", xlabel="epoch")
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    return figure
