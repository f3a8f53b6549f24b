"""What a pipeline did with every row: a record a step, as a file and as a table."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging
from rich.console import Console
from rich.table import Table

from seqrec_jax.errors import InputError
from seqrec_jax.files import read_json, write_text

REPORT = "etl_report.json"
_WIDTH = 120


class StepReport(NamedTuple):
    """A step's row in `etl_report.json`.

    Attributes:
        step: its name.
        rows_in: rows, or items, that it read, bad ones among them.
        rows_out: rows, or items, that it wrote.
        rejected: rows left out, by reason.
        examples: some of the bad rows: file, line, reason, text.
        seconds: of the run that finished the step.
        bytes: on the disk, of what it wrote.
        peak_rss_bytes: largest resident memory of the processes together, in the run that finished the step.
    """

    step: str
    rows_in: int
    rows_out: int
    rejected: Mapping[str, int]
    examples: Sequence[str]
    seconds: float
    bytes: int
    peak_rss_bytes: int


def write_report(output: Path, steps: Sequence[StepReport]) -> None:
    """Writes `OUTPUT/etl_report.json`; steps that it has from earlier runs and that these are not stay in it."""
    path = output / REPORT
    by_name = {step["step"]: step for step in [*_earlier(path), *(step._asdict() for step in steps)]}
    write_text(path, json.dumps({"steps": list(by_name.values())}, indent=2) + "\n")


def _earlier(path: Path) -> list[dict[str, Any]]:
    """The steps of an earlier report; none, and a warning, where it is damaged."""
    try:
        steps = read_json(path, "it is written anew")["steps"] if path.exists() else []
        return [step for step in steps if step["step"]]
    except (InputError, KeyError, TypeError) as error:
        what = error if isinstance(error, InputError) else f"{path}: is no report; it is written anew"
        logging.warning("%s", what)
        return []


def print_report(steps: Sequence[StepReport]) -> None:
    """Prints the table of all steps, then every reason for which rows were left out."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    table = Table(title="What became of the rows")
    for column in ("step", "rows in", "rows out", "left out", "seconds", "rows/s", "written", "peak memory"):
        table.add_column(column, justify="left" if column == "step" else "right", no_wrap=True)
    for step in steps:
        table.add_row(
            step.step,
            f"{step.rows_in:,}",
            f"{step.rows_out:,}",
            f"{sum(step.rejected.values()):,}",
            f"{step.seconds:.1f}",
            f"{step.rows_in / max(step.seconds, 1e-9):,.0f}",
            f"{step.bytes / 1e6:,.1f} MB",
            f"{step.peak_rss_bytes / 1e9:.2f} GB",
        )
    console.print(table)
    for step in steps:
        for reason, count in step.rejected.items():
            if count:
                console.print(f"{step.step}: {count:,} left out: {reason}", highlight=False, markup=False)
