"""Random tables as files, for tests of the readers: what is written, by whom, and what is read back."""

import csv
import io
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa

from etl.ids import hash_of, strings_of, words_of
from etl.raw.interaction_files import InteractionFiles, read_rows

T = 1_500_000_000
LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
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


def with_the_hash_of(victim: str, tries: int = 2_000_000) -> list[str]:
    """Other ids of an id's 64-bit hash, in printable ASCII: what whoever names a user or an item can make up."""
    words = words_of(pa.array([victim]))
    first = np.random.default_rng(0).choice(np.frombuffer(LETTERS, np.uint8), (tries, 8)).view("<u8").ravel()
    before = [first, *(np.repeat(word, tries) for word in words[1:-1])]
    # A hash adds a word to that of the words before it, and then mixes.
    last = (hash_of(words[:-1]) + words[-1] - hash_of(before)).astype("<u8")
    text = last.view(np.uint8).reshape(-1, 8)
    good = ((text > 32) & (text < 127) & (text != 34) & (text != 44) & (text != 92)).all(axis=1)
    return strings_of([word[good] for word in (*before, last)]).to_pylist()
