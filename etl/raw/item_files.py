"""Tables of items and their texts: blocks of the items to keep."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gin
import pyarrow as pa
import pyarrow.compute as pc

from etl.raw import values
from etl.raw.bad_rows import BadRow
from etl.raw.files import find_files
from etl.raw.json_lines import as_id, as_text, read_objects, text_array
from etl.raw.table_blocks import Block, RawRows, leave_out, read_block, table_blocks
from etl.raw.text_blocks import TextBlock
from seqrec_jax.errors import InputError

CATEGORY_COLUMNS = ("category_l1", "category_l2", "category_l3")


@gin.configurable
@dataclass(frozen=True)
class ItemFiles:
    """Where the items' files are and what their columns mean.

    Attributes:
        files: names or patterns, relative to SOURCE; formats as for `InteractionFiles`.
        item: column of the item's id.
        texts: column of each text feature, in the order in which the model concatenates the features.
        max_tokens: most tokens of each feature.
        categories: column with a list of categories, from the widest to the narrowest, or None. The first three that
            are shorter than `category_length` are kept.
        category_length: characters.
        header: names of a CSV file's columns where its first line is none.
        required: a feature without which an item is left out, or None to keep every item.
        refused_text: an item whose required feature contains this is left out; None refuses nothing.
    """

    files: Sequence[str]
    item: str = "item_id"
    texts: Mapping[str, str] = gin.REQUIRED
    max_tokens: Mapping[str, int] = gin.REQUIRED
    categories: str | None = None
    category_length: int = 40
    header: Sequence[str] | None = None
    required: str | None = None
    refused_text: str | None = None

    def __post_init__(self) -> None:
        if not self.texts or set(self.texts) != set(self.max_tokens):
            raise InputError(
                "Gin bindings ItemFiles.texts (TEXTS) and ItemFiles.max_tokens (MAX_TOKENS) must name the same "
                f"features, not {', '.join(self.texts)} and {', '.join(self.max_tokens)}"
            )
        if self.required is not None and self.required not in self.texts:
            raise InputError(f"Gin binding ItemFiles.required = {self.required!r}: is not among ItemFiles.texts")

    @property
    def columns(self) -> list[str]:
        """Names of the columns to read: the id, the texts, the categories."""
        return [self.item, *self.texts.values(), *([self.categories] if self.categories else [])]

    @property
    def schema(self) -> pa.Schema:
        """Of what `read_items` makes: raw texts and categories."""
        names = ["item_id", *self.texts, *(CATEGORY_COLUMNS if self.categories else ())]
        return pa.schema([(name, pa.string()) for name in names])

    def find(self, source: Path) -> list[Path]:
        """The files, which must be there and not be empty."""
        return find_files(source, self.files, "ItemFiles.files")

    def blocks(self, path: Path, block_bytes: int) -> Iterator[Block]:
        """Cuts one of the files into blocks, after a check that it has the columns."""
        return table_blocks(path, self.columns, self.header, block_bytes)


def read_items(block: Block, files: ItemFiles) -> tuple[pa.RecordBatch, list[BadRow], int, dict[str, int]]:
    """Reads a block of items.

    Returns:
        The items to keep, in the columns of `files.schema`; rows that cannot be read, with their line in the block;
        lines of the block; and items left out, by reason.

    Raises:
        InputError: a column has a type that makes no sense for what it is to hold.
    """
    raw, columns, faults = _read_json(block, files) if isinstance(block, TextBlock) else _read_table(block, files)
    kept, bad = leave_out(raw, faults)
    left_out = {}
    if files.required:
        texts = columns[1 + list(files.texts).index(files.required)]
        refused = {f"{files.required} is empty": pc.equal(pc.utf8_trim_whitespace(texts), "")}
        if files.refused_text:
            reason = f"{files.required} contains {files.refused_text!r}"
            refused[reason] = pc.match_substring(texts, files.refused_text)
        for reason, mask in refused.items():
            fault = mask.to_numpy(zero_copy_only=False) & kept
            kept &= ~fault
            if fault.any():
                left_out[reason] = int(fault.sum())
    items = pa.record_batch(columns, schema=files.schema)
    return items if kept.all() else items.filter(pa.array(kept)), sorted(raw.bad + bad), raw.n_lines, left_out


def _read_table(block: Block, files: ItemFiles) -> tuple[RawRows, list[pa.Array], values.Faults]:
    """A block's rows, the columns of `files.schema`, and what is wrong with them."""
    raw = read_block(block, files.columns)

    def where(column: str) -> str:
        return f"{block.path}: column {column!r}"

    ids, faults = values.ids(raw.table[files.item], "item id", where(files.item))
    columns = [ids.cast(pa.string())]
    for name in files.texts.values():
        texts, wrong = values.texts(raw.table[name], where(name))
        columns.append(texts)
        faults |= {f"{name} {reason}": fault for reason, fault in wrong.items()}
    if files.categories:
        lists = raw.table[files.categories]
        if not (pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type) or pa.types.is_null(lists.type)):
            raise InputError(f"{where(files.categories)} holds no lists; bind ItemFiles.categories to one that does")
        columns += _categories(lists.to_pylist(), files.category_length)
    return raw, columns, faults


def _read_json(block: TextBlock, files: ItemFiles) -> tuple[RawRows, list[pa.Array], values.Faults]:
    """As `_read_table`; what is no text, as `as_text` has it, is an empty one."""
    objects = read_objects(block.read(), files.columns)
    columns = objects.columns
    table = pa.table([text_array(map(as_id, columns[0]))], names=[files.item])
    ids, faults = values.ids(table[files.item], "item id", block.path)
    texts = [_texts(column) for column in columns[1 : 1 + len(files.texts)]]
    shown = {str(place): text for place, text in enumerate([table[files.item], *texts])}
    categories = _categories(columns[-1], files.category_length) if files.categories else []
    raw = RawRows(pa.table(shown), objects.lines, objects.bad, objects.n_lines)
    return raw, [ids.cast(pa.string()), *texts, *categories], faults


def _texts(values: list[Any]) -> pa.Array:
    """A column of texts; what is no text, as `as_text` has it, and what Arrow cannot hold, as nearly as can be."""
    try:
        return pa.array(["" if value is None else value for value in values], pa.string())
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError):
        texts = [as_text(value) or "" for value in values]
        return pa.array([text.encode("utf-8", "replace").decode() for text in texts], pa.string())


def _categories(values: list[Any], length: int) -> list[pa.Array]:
    """The first three short texts of each list, a column each."""
    chosen = [
        [text for text in listed if isinstance(text, str) and len(text) < length] if isinstance(listed, list) else []
        for listed in values
    ]
    return [
        pa.array([texts[level] if level < len(texts) else None for texts in chosen], pa.string())
        for level in range(len(CATEGORY_COLUMNS))
    ]
