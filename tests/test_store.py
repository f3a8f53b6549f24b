import json
import shutil

import numpy as np
import pyarrow as pa
import pytest

from etl import dataset_writer
from seqrec_jax.data import format
from seqrec_jax.data.split import leave_one_out, train_counts
from seqrec_jax.data.store import open_dataset
from seqrec_jax.errors import InputError


@pytest.fixture
def folder(shop_folder, tmp_path):
    return shutil.copytree(shop_folder, tmp_path / "copy")


def write(path, schema, batches):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def test_a_file_of_several_chunks_reads_like_one(shop, folder):
    table = shop.interactions_table.combine_chunks()
    write(folder / format.INTERACTIONS, table.schema, table.to_batches(max_chunksize=37))
    manifest = json.loads((folder / format.MANIFEST).read_text())
    manifest["sizes"][format.INTERACTIONS] = (folder / format.INTERACTIONS).stat().st_size
    manifest["sha256"] = format.digest_of(manifest)
    (folder / format.MANIFEST).write_text(json.dumps(manifest))
    chunked = open_dataset(folder)
    assert len(chunked.items.starts) > 5
    np.testing.assert_array_equal(chunked.offsets, shop.offsets)
    everything = np.arange(shop.n_interactions)[::-1]
    np.testing.assert_array_equal(chunked.items.take(everything), shop.items.take(everything))
    np.testing.assert_array_equal(
        train_counts(chunked, leave_one_out(chunked)), train_counts(shop, leave_one_out(shop))
    )


def in_pieces(table, pieces):
    rows = table.num_rows // pieces + 1
    return [table.slice(first, rows) for first in range(0, table.num_rows, rows)]


@pytest.mark.parametrize("most", [1, 50, 10**6])
def test_the_file_does_not_depend_on_the_pieces_it_was_written_from(shop, folder, tmp_path, monkeypatch, most):
    monkeypatch.setattr(dataset_writer, "INTERACTIONS_PER_BATCH", most)
    monkeypatch.setattr(dataset_writer, "ITEMS_PER_BATCH", most)
    users, items = shop.interactions_table, shop.items_table
    written = []
    for pieces in (1, 3, 40):
        output = tmp_path / f"in{pieces}"
        dataset_writer.write_dataset(
            output,
            in_pieces(users, pieces),
            in_pieces(items, pieces),
            b"model",
            features={"title": 40},
            vocab_size=7,
            parameters={},
            inputs=[],
            rejected={},
        )
        written.append([(output / name).read_bytes() for name in (*format.DATA_FILES, format.MANIFEST)])
    assert written[0] == written[1] == written[2]
    dataset = open_dataset(output)
    assert len(dataset.items.starts) == (1 if most == 10**6 else len(dataset.interactions_table["items"].chunks))
    everything = np.arange(shop.n_interactions)
    np.testing.assert_array_equal(dataset.items.take(everything), shop.items.take(everything))
    assert dataset.manifest["counts"] == shop.manifest["counts"]
    assert max(len(chunk.values) for chunk in dataset.interactions_table["items"].chunks) <= max(most, 20)


def test_tokens_are_padded_and_cut(shop):
    tokens, cut = shop.tokens("title"), shop.tokens("title", 2)
    assert tokens.shape[0] == cut.shape[0] == shop.n_items + 1
    assert (tokens[0] == 0).all()
    assert (tokens[1:, 0] > 0).all()
    assert tokens.max() < shop.vocab_size
    np.testing.assert_array_equal(cut, tokens[:, :2])
    lists = shop.items_table["title_tokens"].to_pylist()
    assert [list(row[row > 0]) for row in tokens] == lists


def test_leave_one_out(shop):
    split = leave_one_out(shop)
    lengths = np.diff(shop.offsets)
    assert (split.valid.positions == lengths[split.valid.users] - 2).all()
    assert (split.test.positions == lengths[split.test.users] - 1).all()
    assert (split.train_lengths + 2 == lengths).all()


def damage_checksum(folder):
    path = folder / format.ITEMS
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "no such dataset folder": shutil.rmtree,
    "has no manifest.json": lambda folder: (folder / format.MANIFEST).unlink(),
    "interactions.arrow: is missing": lambda folder: (folder / format.INTERACTIONS).unlink(),
    "items.arrow: its checksum": damage_checksum,
    "was altered": lambda folder: (folder / format.TOKENIZER).write_bytes(b"short"),
    r"manifest.json: is damaged \(sha256 is missing, or is not": lambda folder: (folder / format.MANIFEST).write_text(
        (folder / format.MANIFEST).read_text().replace('"order": "file"', '"order": "random"')
    ),
    "manifest.json: is damaged": lambda folder: (folder / format.MANIFEST).write_text("{"),
    r"schema version 2, .* make it again with etl": lambda folder: (folder / format.MANIFEST).write_text(
        json.dumps(json.loads((folder / format.MANIFEST).read_text()) | {"schema_version": 2})
    ),
}


@pytest.mark.parametrize("words", DAMAGES)
def test_a_damaged_dataset_is_refused_with_the_place(folder, words):
    DAMAGES[words](folder)
    with pytest.raises(InputError, match=words):
        open_dataset(folder, verify=True)
