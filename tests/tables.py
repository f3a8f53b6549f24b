"""Random tables as files, for tests of the readers: what is written, by whom, and what is read back."""

import csv
import io
import random
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import polars as pl

from etl.raw.interaction_files import InteractionFiles, read_rows

T = 1_500_000_000
PIECES = [
    '"',
    '""',
    ",",
    "\t",
    "\n",
    "\r",
    "\r\n",
    "\ufeff",
    "\0",
    " ",
    "",
    "a",
    "Ärger",
    "用户",
    "नमस्ते",
    "1.0",
    "nan",
    "'",
]


class Table(NamedTuple):
    """A log's columns; `text` is one that nothing reads."""

    user: list[str]
    item: list[str]
    time: list[int]
    text: list[str]


def random_table(draw: random.Random, pieces: list[str] = PIECES) -> Table:
    def text() -> str:
        return "".join(draw.choices(pieces, k=draw.randrange(6)))

    n = draw.randrange(1, 12)
    return Table(*([text() for _ in range(n)] for _ in range(2)), [T + i for i in range(n)], [text() for _ in range(n)])


def written_by_python(table: Table, delimiter: str, draw: random.Random) -> bytes:
    out = io.StringIO(newline="")
    quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    end = draw.choice(["\n", "\r\n"] + ["\r"] * (quoting != csv.QUOTE_MINIMAL))
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows([["user", "item", "time", "te,\txt"], *zip(*table, strict=True)])
    return out.getvalue().encode(draw.choice(["utf-8", "utf-8-sig"]))


def written_by_pandas(table: Table, delimiter: str, draw: random.Random) -> bytes:
    quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    return pd.DataFrame(table._asdict()).to_csv(sep=delimiter, index=False, quoting=quoting).encode()


def written_by_polars(table: Table, delimiter: str, draw: random.Random) -> bytes:
    style = draw.choice(["necessary", "always", "non_numeric"])
    text = pl.DataFrame(table._asdict()).write_csv(separator=delimiter, quote_style=style)
    return text.encode(draw.choice(["utf-8", "utf-8-sig"]))


WRITERS = [written_by_python, written_by_pandas, written_by_polars]


def read_back(path: Path, block_bytes: int, **bindings) -> tuple[list, list, int]:
    """Good rows, bad ones with their line in the file, and how many lines the blocks have."""
    files = InteractionFiles([path.name], **({"user": "user", "item": "item", "timestamp": "time"} | bindings))
    good, bad, lines = [], [], 0
    for block in files.blocks(path, block_bytes):
        rows, wrong, n_lines = read_rows(block, files)
        good += zip(rows.users.to_pylist(), rows.items.to_pylist(), rows.times.tolist(), strict=True)
        bad += [row._replace(line=lines + row.line) for row in wrong]
        lines += n_lines
    return good, bad, lines
