"""A page and plots of a scaling study: the frontier with its laws, residuals, forecasts, and the plan."""

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqrec_jax.scaling.forecast import Study

GRID = 200
BEYOND = float(np.log(100))
"""How far, in ln C, the drawn laws go beyond the runs."""
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.plot { margin: 1.5rem 0; }
.table { overflow-x: auto; }
"""


def _grid(study: Study, budgets: Sequence[float]) -> np.ndarray:
    """Computes to draw laws at: [GRID] float64."""
    points = study.points
    last = points.z.max() + BEYOND
    if len(budgets):
        last = max(last, float(np.log(max(budgets)) - points.centre))
    return np.exp(np.linspace(points.z.min(), last, GRID) + points.centre)


def _curves(study: Study, budgets: Sequence[float]) -> dict[str, tuple[np.ndarray, ...]]:
    grid = _grid(study, budgets)
    return {name: (grid, *study.predict(name, grid)) for name in study.judged}


def _top(study: Study, budgets: Sequence[float]) -> float:
    """Where the plots of the metric end, so that all of the chosen law is seen."""
    _, _, high = study.predict(study.chosen, _grid(study, budgets))
    return 1.1 * float(max(high.max(), study.frontier.points.values.max()))


def _opaque(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha})"


def _frontier_figure(study: Study, metric: str, budgets: Sequence[float]) -> Any:
    import plotly.graph_objects as go

    figure, near = go.Figure(), study.frontier.points
    shown = ((study.points, "evaluations", 0.25, {"size": 4, "color": "#888"}),
             (near, "at the frontier", 0.9, {"size": 6, "color": "#222"}))  # fmt: skip
    for points, label, opacity, marker in shown:
        figure.add_scatter(
            x=np.exp(points.z + points.centre), y=points.values, mode="markers", name=label, opacity=opacity,
            marker=marker,
        )  # fmt: skip
    for colour, (name, (grid, values, low, high)) in zip(COLOURS, _curves(study, budgets).items(), strict=False):
        visible = True if name == study.chosen or not study.judged[name].told_apart else "legendonly"
        label = f"{name} (chosen)" if name == study.chosen else name
        figure.add_scatter(
            x=np.concatenate([grid, grid[::-1]]), y=np.concatenate([high, low[::-1]]), fill="toself", legendgroup=name,
            fillcolor=_opaque(colour, 0.15), line={"width": 0}, hoverinfo="skip", showlegend=False, visible=visible,
        )  # fmt: skip
        figure.add_scatter(
            x=grid, y=values, mode="lines", name=label, legendgroup=name, visible=visible,
            line={"color": colour, "width": 3 if name == study.chosen else 1.5},
        )  # fmt: skip
    for cut in _cuts(study):
        figure.add_vline(x=cut, line={"dash": "dot", "color": "#aaa"})
    figure.update_layout(
        title="The frontier, and the laws fitted to it with 95 % bands; dotted, where forecasts begin",
        xaxis={"type": "log", "title": "compute (multiply-adds of linear layers, forward)", "exponentformat": "power"},
        yaxis={"title": metric, "range": [0, _top(study, budgets)]}, template="plotly_white",
    )  # fmt: skip
    return figure


def _cuts(study: Study) -> list[float]:
    return [forecast.below for forecast in study.judged[study.chosen].forecasts]


def _residual_figure(study: Study) -> Any:
    import plotly.graph_objects as go

    figure, near = go.Figure(), study.frontier.points
    for colour, (name, judged) in zip(COLOURS, study.judged.items(), strict=False):
        residuals = np.log(near.values) - judged.fitted.law.ln(judged.fitted.theta, near.z)
        figure.add_scatter(
            x=np.exp(near.z + near.centre), y=100 * residuals, mode="markers", name=name,
            marker={"color": colour, "size": 5}, visible=True if name == study.chosen else "legendonly",
        )  # fmt: skip
    figure.add_hline(y=0, line={"color": "#888"})
    figure.update_layout(
        title="What the laws leave", template="plotly_white", yaxis={"title": "residual, %"},
        xaxis={"type": "log", "title": "compute", "exponentformat": "power"},
    )  # fmt: skip
    return figure


def _forecast_figure(study: Study) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    for colour, (name, judged) in zip(COLOURS, study.judged.items(), strict=False):
        figure.add_bar(
            x=[f"fitted below {forecast.below:.2g} ({forecast.runs} runs)" for forecast in judged.forecasts],
            y=[100 * forecast.error for forecast in judged.forecasts], name=name, marker={"color": colour},
        )  # fmt: skip
    figure.update_layout(
        title="Forecasts of larger runs that the fit has not seen", template="plotly_white",
        yaxis={"title": "mean error, %"}, barmode="group",
    )  # fmt: skip
    return figure


def _told(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_told, value)) or "–"
    return str(value)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_told(value))}</td>" for value in row.values()) + "</tr>" for row in rows
    )
    return f'<div class="table"><table><tr>{head}</tr>{body}</table></div>'


def write_page(
    path: Path, study: Study, metric: str, budgets: Sequence[float], tables: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Writes a page that needs no network, beside `path`, and renames it into place.

    Args:
        path: of the page.
        study: of the frontier.
        metric: its name.
        budgets: in the unit of compute, to draw the laws as far as.
        tables: by their headings, rows of cells by column.
    """
    figures = (_frontier_figure(study, metric, budgets), _residual_figure(study), _forecast_figure(study))
    parts = [f"<h1>Scaling law of {html.escape(metric)}</h1>"]
    for place, figure in enumerate(figures):
        drawn = figure.to_html(full_html=False, include_plotlyjs=place == 0, default_height="480px")
        parts.append(f'<div class="plot">{drawn}</div>')
    for heading, rows in tables.items():
        parts.append(f"<h2>{html.escape(heading)}</h2>{_table(rows)}")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Scaling law</title>'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)


def write_plot(path: Path, study: Study, metric: str, budgets: Sequence[float]) -> None:
    """Draws the frontier and its laws, for a paper, beside `path`, and renames it into place."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes, points, near = figure.subplots(), study.points, study.frontier.points
    axes.scatter(np.exp(points.z + points.centre), points.values, s=4, color="#bbb", label="evaluations")
    axes.scatter(np.exp(near.z + near.centre), near.values, s=10, color="#222", label="at the frontier")
    for colour, (name, (grid, values, low, high)) in zip(COLOURS, _curves(study, budgets).items(), strict=False):
        chosen = name == study.chosen
        axes.plot(grid, values, color=colour, lw=2 if chosen else 1, label=f"{name} (chosen)" if chosen else name)
        if chosen:
            axes.fill_between(grid, low, high, color=colour, alpha=0.2, lw=0)
    axes.set_xscale("log")
    axes.set_xlabel("compute (multiply-adds of linear layers, forward)")
    axes.set_ylabel(metric)
    axes.set_ylim(0, _top(study, budgets))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    partial = path.with_name(f".partial.{path.name}")
    figure.savefig(partial, dpi=150)
    os.replace(partial, path)
