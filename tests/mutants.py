"""Mutants of the files that strangers may give: bits flipped, buffers swapped, lengths and values changed, bombs."""

import bz2
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import tensorstore

import seqrec_jax as sr
from seqrec_jax.data import format
from seqrec_jax.data.arrow import read_table
from seqrec_jax.model import storage
from seqrec_jax.model.terms.transitions import count_transitions

EXTREMES = [0, 1, -1, 127, 255, 1 << 15, (1 << 31) - 1, 1 << 31, -(1 << 31), (1 << 32) - 1, (1 << 63) - 1, -(1 << 63)]
NESTED = json.loads("[" * 50 + "]" * 50)
VALUES = [
    None, True, "", "x", "12", "x" * 5000, "\ud800", "a\nb", "../../../etc/passwd", "/etc/passwd", [], {}, [[1]],
    {"a": 1}, NESTED, -1, 0, 1, 2, 7, 1 << 20, 1 << 31, 1 << 62, 1 << 64, 10**400, 0.5, -1.5, 1e308,
    float("nan"), float("inf"),
]  # fmt: skip
BOMB = 12 << 30  # bytes
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError)


def whole_model(dataset: Path) -> sr.Recommender:
    """A small model, untrained, that has every kind of parameter and of statistic."""
    corpus = sr.Corpus(str(dataset))
    architecture = sr.Architecture(
        n_layers=1, hidden_size=8, inner_size=8, max_length=6, item_encoder="text_and_id", transitions=True,
        lexical_size=4, repeat_offset=True,
    )  # fmt: skip
    model = sr.Recommender.create(corpus, architecture, seed=1)
    return model.replace(statistics={"transitions": count_transitions(corpus.train, corpus.data.catalog_sha256())})


def near_the_ends(rng: random.Random, size: int) -> int:
    """A place in a file, often in its first or last bytes, where formats keep what they say of the rest."""
    edge = min(size, 3000)
    return rng.choice([rng.randrange(size), rng.randrange(edge), size - 1 - rng.randrange(edge)])


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes with one or several of them changed, moved, added or removed."""
    if not content:
        return rng.randbytes(rng.randrange(1, 50))
    data, size = bytearray(content), len(content)
    first, second = sorted(near_the_ends(rng, size) for _ in range(2))
    n = min(rng.choice([1, 4, 8, 64, 1000]), size - second)
    kind = rng.randrange(9)
    if kind <= 2:
        for _ in range(rng.choice([1, 1, 1, 4, 64])):
            data[near_the_ends(rng, size)] ^= 1 << rng.randrange(8)
    elif kind == 3:  # A number as formats have them: of 1 to 8 bytes, at a multiple of its size.
        width = rng.choice([1, 2, 4, 8])
        at = near_the_ends(rng, size) // width * width
        data[at : at + width] = (rng.choice(EXTREMES) % (1 << 8 * width)).to_bytes(width, "little")
    elif kind == 4:
        data[first : first + n] = rng.choice([bytes(n), b"\xff" * n, rng.randbytes(n)])
    elif kind == 5:
        data[first : first + n], data[second : second + n] = content[second : second + n], content[first : first + n]
    elif kind == 6:
        del data[rng.choice([first, second, size - 1, size // 2]) :]
    elif kind == 7:
        data[first:first] = content[second : second + n]
    else:
        del data[first : first + n]
    return bytes(data)


def places_in(value, place=()):
    """Paths to everything in a JSON value."""
    yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, of in inner:
        yield from places_in(of, (*place, key))


def changed(value, rng: random.Random):
    """A JSON value in which one thing is another, is missing, or has another name."""
    value = json.loads(json.dumps(value))
    *place, last = rng.choice([place for place in places_in(value) if place] or [("x",)])
    holder = value
    for key in place:
        holder = holder[key]
    if not isinstance(holder, dict | list) or not holder:
        return rng.choice(VALUES)
    kind, old = rng.randrange(4), holder[last]
    if kind == 0:
        del holder[last]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(["", "x", "../x", "/x", "é"])] = holder.pop(last)
    elif kind == 2 and isinstance(old, int):
        holder[last] = old + rng.choice([-1, 1, 1 << 16, 1 << 40])
    else:
        holder[last] = rng.choice(VALUES)
    return value


def json_damaged(content: bytes, rng: random.Random) -> bytes:
    """JSON that is another, or is none."""
    if rng.random() < 0.2:
        deep = b"[" * 100_000
        return rng.choice([b"", b"{", b"null", b"[]", b"NaN", b"\xff\xfe", bytes(64), deep, content + content])
    try:
        return json.dumps(changed(json.loads(content), rng)).encode()
    except UNREADABLE:
        return damaged(content, rng)


def mutate_file(path: Path, rng: random.Random) -> None:
    """Damages one file by its kind."""
    content = path.read_bytes()
    is_json = content[:1] in (b"{", b"[") and rng.random() < 0.8
    path.write_bytes(json_damaged(content, rng) if is_json else damaged(content, rng))


def mutate_tree(folder: Path, rng: random.Random) -> None:
    """Damages, removes, adds or replaces files of a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    one, other = rng.choice(files), rng.choice(files)
    kind = rng.randrange(40)
    if kind == 0:
        one.unlink()
    elif kind == 1:
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif kind == 2:
        one.unlink()
        outside = folder.parent / "secret"
        outside.write_text("secret")
        one.symlink_to(rng.choice([outside, other.resolve(), Path("/dev/zero"), one]))
    elif kind == 3:
        one.unlink()
        rng.choice([os.mkfifo, os.mkdir])(one)
    elif kind == 4:
        name = rng.choice(["extra", ".zarray", "checkpoint", "0", "١", "9" * 30, "zarr.json"])
        (one.parent / name).write_bytes(b"{}")
    elif kind == 5 and (parent := one.parent) != folder:
        shutil.move(parent, folder.parent / "outside")
        parent.symlink_to(folder.parent / "outside")
    else:
        for path in rng.sample(files, min(len(files), rng.choice([1, 1, 1, 2, 5]))):
            mutate_file(path, rng)


def other_values(column: pa.ChunkedArray, rng: random.Random) -> pa.Array:
    """A column in which rows or values are others, of the same type or of another one."""
    rows = column.to_pylist()
    one, other = rng.randrange(len(rows)), rng.randrange(len(rows))
    numbers = [*EXTREMES, *range(1, 300, 37)]
    kind = rng.randrange(7)
    if kind == 0:
        rows[one], rows[other] = rows[other], rows[one]
    elif kind == 1:
        rows[one] = rng.choice([None, rows[other], rows[one] * 2, rows[one][:1], type(rows[one])()])
    elif kind == 2 and isinstance(rows[one], str):
        rows[one] = rng.choice(["", "\0", "x" * 100_000, rows[other] + "\0", "\u202e\x1b[31m", rows[one].upper()])
    elif kind <= 4 and rows[one] and isinstance(rows[one], list):
        rows[one][rng.randrange(len(rows[one]))] = rng.choice([*rows[other], *numbers, None, *numbers])
    elif kind == 5:
        kinds = [pa.large_string(), pa.binary(), pa.string_view(), pa.list_(pa.int64()), pa.large_list(pa.int32()),
                 pa.list_(pa.int32()), pa.list_(pa.float64()), pa.dictionary(pa.int32(), pa.string())]  # fmt: skip
        return pa.array(rows, rng.choice(kinds))
    else:
        rng.shuffle(rows)
    return pa.array(rows, column.type)


def mutate_table(folder: Path, rng: random.Random) -> None:
    """Writes one of a dataset's tables with other values, columns, rows or batches."""
    path = folder / rng.choice([format.INTERACTIONS, format.ITEMS])
    table = read_table(pa.py_buffer(path.read_bytes()))
    kind = rng.randrange(12)
    try:
        if kind == 0:
            table = table.slice(rng.randrange(2), rng.choice([0, 1, 2, table.num_rows - 1]))
        elif kind == 1:
            table = pa.concat_tables([table, table.slice(0, rng.choice([1, 2, table.num_rows]))])
        elif kind == 2:
            table = table.select(rng.sample(table.column_names, rng.randrange(len(table.column_names))))
        elif kind == 3:
            table = table.rename_columns(rng.choices([*table.column_names, "x", ""], k=table.num_columns))
        elif kind > 4:
            place = rng.randrange(table.num_columns)
            table = table.set_column(place, table.column_names[place], other_values(table.column(place), rng))
    except (pa.ArrowException, OverflowError, TypeError):  # There is no such array.
        pass
    options = pa.ipc.IpcWriteOptions(compression=rng.choice([None] * 20 + ["zstd", "lz4"]))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rng.choice([None, None, 1, 37, 100]))


def counts_of(contents: dict[str, bytes]) -> dict[str, int] | None:
    """How many users, items and interactions a dataset's tables hold; None of what cannot be read."""
    try:
        users, items = (read_table(pa.py_buffer(contents[name])) for name in (format.INTERACTIONS, format.ITEMS))
        lists = users["items"].combine_chunks()
        return {"users": len(users), "items": len(items) - 1, "interactions": len(lists.values)}
    except (*UNREADABLE, pa.ArrowException):
        return None


def fit_dataset(folder: Path, rng: random.Random) -> None:
    """Gives a dataset's manifest the sizes, the checksums and often the counts of its files, as an attacker does."""
    path = folder / format.MANIFEST
    if path.is_symlink() or not path.is_file():
        return
    try:
        record = json.loads(path.read_bytes())
        files = [folder / name for name in format.DATA_FILES]
        contents = {file.name: file.read_bytes() if file.is_file() else b"" for file in files}
        for name, content in contents.items():
            record["sizes"][name], record["checksums"][name] = len(content), hashlib.sha256(content).hexdigest()
        if rng.random() < 0.9:
            record["counts"] = counts_of(contents) or record["counts"]
        if rng.random() < 0.8:
            record["tokenizer"]["sha256"] = record["checksums"][format.TOKENIZER]
        record["sha256"] = format.digest_of(record)
        path.write_text(json.dumps(record))
    except UNREADABLE:
        return


def fit_checkpoints(folder: Path, rng: random.Random) -> None:
    """Gives the checkpoints of a folder the checksums of their files."""
    for place in sorted(folder.glob("checkpoints/[0-9]*")):
        files = [path for path in place.rglob("*") if path.is_file() and path.parent != place and not path.is_symlink()]
        beside = [folder / name for name in storage.BESIDE if (folder / name).is_file()]
        if (place / storage.CHECKSUMS).is_symlink() or not (place / storage.CHECKSUMS).is_file():
            continue
        try:
            run = json.loads((place / storage.CHECKSUMS).read_bytes())["run"]
            record = {
                "run": run,
                "files": {path.relative_to(place).as_posix(): format.sha256_of(path) for path in files},
                "beside": {path.name: format.sha256_of(path) for path in beside},
            }
            (place / storage.CHECKSUMS).write_text(json.dumps(record))
        except UNREADABLE:
            continue


def zstd_bomb(n: int) -> bytes:
    """A frame of zstd that becomes n zeros: 4 bytes for each 128 kB."""
    block = (1 << 17 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (1 << 17 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd" + b"\x00\x58" + block * (n // (1 << 17) - 1) + last


def mutate_store(folder: Path, rng: random.Random) -> None:
    """Changes what a checkpoint's key-value store holds, so that TensorStore's own checksums fit."""
    item = rng.choice(sorted(folder.glob("checkpoints/[0-9]*/params")))
    base = {"driver": "file", "path": f"{item}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    key = rng.choice(store.list().result())
    content = store.read(key).result().value
    kind = rng.randrange(8)
    if kind == 0:
        store.delete_range(tensorstore.KvStore.KeyRange(key, key + b"\0")).result()
    elif kind == 1:
        store.write(key + rng.choice([b"x", b"/.zarray", b"/0", b"/zarr.json"]), content).result()
    elif kind == 2 and not key.endswith(b".zarray"):
        store.write(key, zstd_bomb(BOMB)).result()
    else:
        store.write(key, (json_damaged if content[:1] == b"{" else damaged)(content, rng)).result()


def zip_of(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An `.npz` of these files, with their checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def mutate_npz(path: Path, rng: random.Random) -> None:
    """Damages an array of an `.npz`, whose checksums then fit."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    one, other = (rng.choice(sorted(members)) for _ in range(2))
    kind = rng.randrange(8)
    if kind == 0:
        members[one], members[other] = members[other], members[one]
    elif kind == 1:
        members[rng.choice(["x.npy", "../x.npy", "/x.npy", "x"])] = members.pop(one)
    elif kind == 2:
        at = members[one].index(b"'shape': ")
        shape = rng.choice([b"(1000000000000,)", b"(-1,)", b"(0,)", b"()", b"(1, 1)", b"(" * 9000])
        members[one] = members[one][:at] + b"'shape': " + shape + members[one][at + 9 + len(shape) :]
    else:
        members[one] = damaged(members[one], rng)
    path.write_bytes(zip_of(members, rng.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])))


def mutate_header(path: Path, rng: random.Random) -> None:
    """Changes what the header of a file of safetensors says, whose length then fits."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    known = header["__metadata__"].get("seqrec_jax")
    if known and rng.random() < 0.5:
        header["__metadata__"]["seqrec_jax"] = json.dumps(changed(json.loads(known), rng))
    else:
        header = changed(header, rng)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def mutate_packed(path: Path, rng: random.Random) -> None:
    """A database that is damaged and then packed, or packed and then damaged, or a bomb."""
    pack = rng.choice([bz2.compress, gzip.compress])
    content, kind = path.read_bytes(), rng.randrange(10)
    if kind == 0:
        begin, part = pack(b"SQLite format 3\0"), pack(bytes(200 << 20))
        path.write_bytes(begin + part * (BOMB // (200 << 20)))
    elif kind < 5:
        path.write_bytes(pack(damaged(content, rng)))
    else:
        path.write_bytes(damaged(pack(content), rng))


Mutation = Callable[[Path, random.Random], None]


def both(*mutations: Mutation) -> Mutation:
    """One mutation after the other."""

    def mutate(path: Path, rng: random.Random) -> None:
        for mutation in mutations:
            mutation(path, rng)

    return mutate
