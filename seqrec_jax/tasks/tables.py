"""Tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from seqrec_jax.describe import shown

MOST_SHOWN = 200  # characters of a text of the user's


def print_tables(*tables: Table | str, width: int | None = None) -> None:
    """Prints tables and lines, `width` characters wide or as wide as the terminal."""
    for table in tables:
        Console(width=width).print(table)


def new_table(title: str, columns: Sequence[str]) -> Table:
    """An empty table whose first column is to the left and all others to the right."""
    first, *others = columns
    right = (Column(plain(name, kept="\n"), justify="right") for name in others)
    return Table(Column(plain(first), no_wrap=True), *right, title=plain(title))


def plain(text: str, kept: str = "") -> Text:
    """A text of the user's, such as a title, an id or a path, as it is: not as Rich's markup, nor as a terminal's.

    Control characters are escaped, but for those `kept`.
    """
    return Text(shown(text, MOST_SHOWN, kept))


def on_test(ties: Mapping[str, Mapping[str, Any]]) -> str:
    """A title: results on test, and how each dataset orders interactions at equal times, as Corpus.summary has it."""
    texts = []
    for name, of in ties.items():
        share = 100 * of["neighbours"] / max(1, of["of"])
        texts.append(f"{name} " * (len(ties) > 1) + f"{share:.0f} %: in {of['order']} order")
    return f"Results on test (interactions at equal times, {'; '.join(texts)})"


def results_table(
    rows: Mapping[str, Mapping[str, float]], ks: Sequence[int],
    intervals: Mapping[str, Mapping[str, Sequence[float]]] | None = None, *, title: str,
) -> Table:  # fmt: skip
    """A row per model, its metrics at each cut-off of `ks`; hit is recall here, so it is left out.

    `intervals` are low and high by model and metric, to show that of the last cut-off's NDCG; None for none.
    """
    columns = [(metric, k) for metric in ("recall", "ndcg", "mrr") for k in ks]
    names = [f"{metric.upper() if metric != 'recall' else 'Recall'}@{k}" for metric, k in columns]
    table = new_table(title, ["", *names, *([f"95 % interval\nof NDCG@{ks[-1]}"] if intervals is not None else [])])
    for name, metrics in rows.items():
        cells = [f"{metrics[f'{metric}_at_{k}']:.4f}" for metric, k in columns]
        if intervals is not None:
            low, high = intervals[name][f"ndcg_at_{ks[-1]}"]
            cells.append(f"{low:.4f} to {high:.4f}")
        table.add_row(plain(name), *cells)
    return table


def slices_table(slices: Mapping[str, Mapping[str, Any]], k: int) -> Table:
    """A row per slice of the test targets, at cut-off k; blank where a slice has no targets."""
    table = new_table("Slices of test", ["", "targets", f"Recall@{k}", f"NDCG@{k}", "95 % interval"])
    for name, of in slices.items():
        cells = ("", "", "")
        if of["targets"]:
            low, high = of["intervals"][f"ndcg_at_{k}"]
            cells = (f"{of[f'recall_at_{k}']:.4f}", f"{of[f'ndcg_at_{k}']:.4f}", f"{low:.4f} to {high:.4f}")
        table.add_row(plain(name.replace("_", " ")), str(of["targets"]), *cells)
    return table


def recommendations_table(title: str, history: Sequence[Mapping[str, str]], best: Sequence[Mapping[str, str]]) -> Table:
    """A user's history, oldest first, and what is recommended, best first."""
    names = list((best or history)[0])
    columns = (Column(plain(name), overflow="fold") for name in names)
    table = Table("", *columns, title=plain(title), title_justify="left")
    for item in history:
        table.add_row("had", *(plain(item.get(name, "")) for name in names), style="dim")
    table.add_section()
    for place, item in enumerate(best, 1):
        table.add_row(str(place), *(plain(item.get(name, "")) for name in names))
    return table


def transfer_table(results: Mapping[str, Any], ks: Sequence[int]) -> Table:
    """What fine-tuning changed: metrics of test, of its slices and of the pre-training corpus, before and after."""
    k, before = ks[-1], results["zero_shot"]
    rows = {"test": (before["test"], results["test"])}
    for name, of in results["slices"].items():
        rows[f"{name.replace('_', ' ')} ({of['users']} users)"] = before["slices"][name], of
    if "pretraining" in results:
        rows["pre-training datasets"] = results["pretraining"]["before"], results["pretraining"]["after"]
    whens = [f"{metric}@{k}\n{when}" for metric in ("Recall", "NDCG") for when in ("zero-shot", "after")]
    table = new_table("Transfer", ["", *whens])
    for name, of_both in rows.items():
        shown = [of.get(f"{metric}_at_{k}") for metric in ("recall", "ndcg") for of in of_both]
        table.add_row(plain(name), *("" if value is None else f"{value:.4f}" for value in shown))
    return table
