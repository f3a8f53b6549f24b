"""Tables for the terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table


def results_table(
    rows: Mapping[str, Mapping[str, float]],
    ks: Sequence[int],
    intervals: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    title: str = "Results",
) -> Table:
    """A row per model, its metrics at each cut-off; hit is recall here, so it is left out.

    Args:
        rows: metrics, by the model's name.
        ks: cut-offs.
        intervals: of each model, low and high by metric, to show that of the last cut-off's NDCG; None for none.
        title: of the table.
    """
    table = Table(title=title)
    table.add_column("", no_wrap=True)
    columns = [(metric, k) for metric in ("recall", "ndcg", "mrr") for k in ks]
    for metric, k in columns:
        table.add_column(f"{metric.upper() if metric != 'recall' else 'Recall'}@{k}", justify="right")
    if intervals is not None:
        table.add_column(f"95 % interval\nof NDCG@{ks[-1]}", justify="right")
    for name, metrics in rows.items():
        cells = [f"{metrics[f'{metric}_at_{k}']:.4f}" for metric, k in columns]
        if intervals is not None:
            low, high = intervals[name][f"ndcg_at_{ks[-1]}"]
            cells.append(f"{low:.4f} to {high:.4f}")
        table.add_row(name, *cells)
    return table


def recommendations_table(title: str, history: Sequence[Mapping[str, str]], best: Sequence[Mapping[str, str]]) -> Table:
    """A user's history, oldest first, and what is recommended, best first."""
    names = list((best or history)[0])
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, overflow="fold")
    for item in history:
        table.add_row("had", *(item.get(name, "") for name in names), style="dim")
    table.add_section()
    for place, item in enumerate(best, 1):
        table.add_row(str(place), *(item.get(name, "") for name in names))
    return table
