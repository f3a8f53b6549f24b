"""Results of studies as tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from seqrec_jax.describe import shown
from seqrec_jax.scaling.report import cell_text
from seqrec_jax.studies.scaling_law import law_tables


def rows_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table of rows that have the same columns; text is to the left, numbers to the right."""
    table = Table(title=Text(shown(title)))
    for name, value in (rows[0] if rows else {}).items():
        table.add_column(Text(shown(name)), justify="left" if isinstance(value, str) else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(cell_text(value), kept="\n")) for value in row.values()))
    return table


def trials_table(trials: Sequence[Mapping[str, Any]]) -> Table:
    """The trials of a sweep, as `sweep` returns them."""
    names, rows = sorted({name for trial in trials for name in trial["bindings"]}), []
    for trial in trials:
        metrics = {name: value for name, value in trial.items() if name.startswith(("valid/", "test/"))}
        bound = {name: trial["bindings"].get(name) for name in names}
        rows.append({"trial": trial["trial"], **bound, **metrics, "state": trial["state"]})
    return rows_table("Trials", rows)


def transfer_table(results: Mapping[str, Any]) -> Table:
    """A row a method, a column a share of the users; `results` as `transfer_study` returns them."""
    shares = sorted({row["users_share"] for row in results["table"]})
    rows: dict[str, dict[str, Any]] = {}
    for row in results["table"]:
        columns = rows.setdefault(row["method"], {"": row["method"]} | {f"{100 * share:g} %": None for share in shares})
        spread = "" if row["sd"] is None else f" ± {row['sd']:.4f}"
        gain = "" if row["gain"] is None else f"\n{100 * row['gain']:+.0f} %"
        columns[f"{100 * row['users_share']:g} %"] = f"{row['mean']:.4f}{spread}{gain}"
    title = f"Test {results['metric']}, mean ± standard deviation, and gain over the better from-scratch"
    return rows_table(title, list(rows.values()))


def forecast_table(forecast: Mapping[str, Any]) -> Table:
    """What was expected of the largest runs of a scaling study, by laws with their errors on others, and what came."""

    def filled(form: str, value: Any) -> str | None:
        return None if value is None else form.format(value)

    expected, percent, rows = "{0[metric]:.4f} ({0[low]:.4f} to {0[high]:.4f})", "{:+.1%}", []
    for row in forecast["forecasts"]:
        best = f"best, by {forecast['law']} (± {forecast['law_error']:.1%})"
        rows.append({"run": row["run"], "compute": row["compute"], best: filled(expected, row["frontier"]),
                     "came": row["best"], "error": filled(percent, row.get("frontier_error"))})  # fmt: skip
        if row["joint"] is not None:
            rows[-1] |= {f"end, by the joint law (± {forecast['joint_law_error']:.1%})": filled(expected, row["joint"]),
                         "came ": row["end"], "error ": filled(percent, row.get("joint_error"))}  # fmt: skip
    title = f"{forecast['metric']}, forecast from {forecast['runs']} smaller runs at {forecast['made']}"
    return rows_table(title, rows)


def scaling_law_tables(results: Mapping[str, Any]) -> list[Table]:
    """What scaling_law.json holds; the formulas stand on its page."""
    tables = law_tables(results)
    for row in tables["Laws over compute"]:
        del row["formula"]
    return [rows_table(title, rows) for title, rows in tables.items() if rows and title != "Runs left out"]
