"""A page and plots of a scaling law: the frontier with its laws, residuals, forecasts, and the plan."""

import contextlib
import html
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqrec_jax.files import write_text
from seqrec_jax.scaling.forecast import Judged, Study

GRID, THEME = 200, "plotly_white"
BEYOND = float(np.log(100))  # how far, in ln C, the drawn laws go beyond the runs
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756")
COMPUTE = "compute (multiply-adds of linear layers, forward)"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.plot { margin: 1.5rem 0; }
.table { overflow-x: auto; }
"""


def _axes(study: Study, budgets: Sequence[float]) -> tuple[np.ndarray, float]:
    """Computes to draw laws at, [GRID] float64, and where the metric's axis ends: above all of the chosen law."""
    points = study.points
    last = max([points.z.max() + BEYOND, *(float(np.log(budget)) - points.centre for budget in budgets)])
    grid = np.exp(np.linspace(points.z.min(), last, GRID) + points.centre)
    _, _, high = study.predict(study.chosen, grid)
    return grid, 1.1 * float(max(high.max(), study.frontier.points.values.max()))


def _forms(study: Study) -> Iterator[tuple[str, str, Judged, str]]:
    """Each form's name, label, fit and colour."""
    for colour, (name, judged) in zip(COLOURS, study.judged.items(), strict=False):
        yield name, f"{name} (chosen)" if name == study.chosen else name, judged, colour


def _figures(study: Study, metric: str, budgets: Sequence[float]) -> tuple[Any, Any, Any]:
    """The frontier with its laws, what they leave of it, and how far their forecasts are from what came."""
    import plotly.graph_objects as go

    figure, left, forecasts = go.Figure(), go.Figure(), go.Figure()
    near, (grid, top) = study.frontier.points, _axes(study, budgets)
    shown = ((study.points, "evaluations", 0.25, {"size": 4, "color": "#888"}),
             (near, "at the frontier", 0.9, {"size": 6, "color": "#222"}))  # fmt: skip
    for points, label, opacity, marker in shown:
        x, y = points.compute, points.values
        figure.add_scatter(x=x, y=y, mode="markers", name=label, opacity=opacity, marker=marker)
    for name, label, judged, colour in _forms(study):
        values, low, high = study.predict(name, grid)
        visible = True if name == study.chosen or not judged.told_apart else "legendonly"
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        shade = {"fill": "toself", "fillcolor": f"rgba({red}, {green}, {blue}, 0.15)", "line": {"width": 0}}
        x, y = np.concatenate([grid, grid[::-1]]), np.concatenate([high, low[::-1]])
        shared = {"legendgroup": name, "visible": visible}
        figure.add_scatter(x=x, y=y, hoverinfo="skip", showlegend=False, **shared, **shade)
        line = {"color": colour, "width": 3 if name == study.chosen else 1.5}
        figure.add_scatter(x=grid, y=values, mode="lines", name=label, line=line, **shared)
        y, visible = 100 * judged.fitted.residuals(near), True if name == study.chosen else "legendonly"
        marker = {"color": colour, "size": 5}
        left.add_scatter(x=near.compute, y=y, mode="markers", name=name, marker=marker, visible=visible)
        fits = [f"fitted below {forecast.below:.2g} ({forecast.runs} runs)" for forecast in judged.forecasts]
        errors = [100 * forecast.error for forecast in judged.forecasts]
        forecasts.add_bar(x=fits, y=errors, name=name, marker={"color": colour})
    for forecast in study.judged[study.chosen].forecasts:
        figure.add_vline(x=forecast.below, line={"dash": "dot", "color": "#aaa"})
    title = "The frontier, and the laws fitted to it with 95 % bands; dotted, where forecasts begin"
    xaxis, yaxis = {"type": "log", "title": COMPUTE, "exponentformat": "power"}, {"title": metric, "range": [0, top]}
    figure.update_layout(title=title, xaxis=xaxis, yaxis=yaxis, template=THEME)
    left.add_hline(y=0, line={"color": "#888"})
    xaxis = {"type": "log", "title": "compute", "exponentformat": "power"}
    left.update_layout(title="What the laws leave", template=THEME, yaxis={"title": "residual, %"}, xaxis=xaxis)
    title, yaxis = "Forecasts of larger runs that the fit has not seen", {"title": "mean error, %"}
    forecasts.update_layout(title=title, template=THEME, yaxis=yaxis, barmode="group")
    return figure, left, forecasts


def cell_text(value: Any) -> str:
    """A value as a cell of a table shows it."""
    if isinstance(value, list | tuple):
        return ", ".join(map(cell_text, value)) or "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    return str(value)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in rows[0])
    cells = ("".join(f"<td>{html.escape(cell_text(value))}</td>" for value in row.values()) for row in rows)
    return f'<div class="table"><table><tr>{head}</tr>{"".join(f"<tr>{row}</tr>" for row in cells)}</table></div>'


def write_page(
    path: Path, study: Study, metric: str, budgets: Sequence[float], tables: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Writes a page that needs no network: the laws as far as `budgets`, and tables of rows by their headings."""
    parts = [f"<h1>Scaling law of {html.escape(metric)}</h1>"]
    for place, figure in enumerate(_figures(study, metric, budgets)):
        drawn = figure.to_html(full_html=False, include_plotlyjs=place == 0, default_height="480px")
        parts.append(f'<div class="plot">{drawn}</div>')
    parts += [f"<h2>{html.escape(heading)}</h2>{_table(rows)}" for heading, rows in tables.items()]
    head = f'<head><meta charset="utf-8"><title>Scaling law</title><style>{STYLE}</style></head>'
    write_text(path, f'<!doctype html><html lang="en">{head}<body>{"".join(parts)}</body></html>\n')


@contextlib.contextmanager
def plot_at(path: Path) -> Iterator[Any]:
    """Axes of Matplotlib to draw on, which are then written to `path` as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    yield axes
    axes.grid(alpha=0.3)
    partial = path.with_name(f".partial.{path.name}")
    figure.savefig(partial, dpi=150)
    os.replace(partial, path)


def write_plot(path: Path, study: Study, metric: str, budgets: Sequence[float]) -> None:
    """Draws the frontier and its laws, for a paper."""
    points, near, (grid, top) = study.points, study.frontier.points, _axes(study, budgets)
    with plot_at(path) as axes:
        axes.scatter(points.compute, points.values, s=4, color="#bbb", label="evaluations")
        axes.scatter(near.compute, near.values, s=10, color="#222", label="at the frontier")
        for name, label, _, colour in _forms(study):
            values, low, high = study.predict(name, grid)
            axes.plot(grid, values, color=colour, lw=2 if name == study.chosen else 1, label=label)
            if name == study.chosen:
                axes.fill_between(grid, low, high, color=colour, alpha=0.2, lw=0)
        axes.set(xscale="log", xlabel=COMPUTE, ylabel=metric, ylim=(0, top))
        axes.legend(fontsize=8)
