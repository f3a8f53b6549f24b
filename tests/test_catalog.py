import numpy as np
import pyarrow as pa
import pytest
from tables import with_the_hash_of

from etl import tokenizer
from etl.arrow_files import read_table, write_batches
from etl.catalog import Catalog, index_catalog, items_tables, sample_texts, tokenize_part
from etl.ids import IdTable, hash_of, words_of

WORDS = ["blue", "ball", "naïve", "café", "球", "b00x-9", "don't", "½", "ﷺ", "x\u200by", "ⅷ", "İstanbul", "10mm", "①"]
WORDS += ["दाना", "cafe\u0301", "کتاب\u200cها", "क्\u200cष", "น้ำ", "１２", "ﾞ", "5\ufe0f\u20e3"]


@pytest.fixture
def parts(tmp_path):
    """Two parts of a catalog, with an item listed again in the second."""
    rng = np.random.default_rng(0)
    paths = []
    for place, ids in enumerate((["a", "b", "c"], ["d", "b", "e", "f"])):
        titles = [" ".join(rng.choice(WORDS, 12)) for _ in ids]
        batch = pa.record_batch({"item_id": ids, "title": titles, "brand": ["", *["Some Brand"] * (len(ids) - 1)]})
        paths.append(tmp_path / f"part{place}.arrow")
        write_batches(paths[-1], batch.schema, [batch])
    return paths


def test_an_item_listed_again_keeps_its_first_row(parts, tmp_path):
    starts, again = index_catalog(parts, [3, 4], tmp_path)
    assert (starts, again) == ([0, 3, 7], 1)
    assert found_in(tmp_path, ["a", "b", "e", "f", "g"]) == [0, 1, 5, 6, -1]


def found_in(folder, ids: list[str]) -> list[int]:
    asked = pa.array(ids)
    return IdTable.load(folder).find(hash_of(words_of(asked)), lambda places: asked.take(pa.array(places))).tolist()


def test_an_item_of_the_hash_of_another_is_an_item_of_its_own(tmp_path):
    victim = "B0000001AAAAAAAA"
    crafted = with_the_hash_of(victim)[:3]
    parts = [tmp_path / f"{place}.arrow" for place in range(3)]
    listed = [[crafted[0], "x"], [], [victim, crafted[1], "x", crafted[0], crafted[1]]]
    for part, ids in zip(parts, listed, strict=True):
        batch = pa.record_batch({"item_id": pa.array(ids, pa.string())})
        write_batches(part, batch.schema, [batch])
    assert index_catalog(parts, [2, 0, 5], tmp_path) == ([0, 2, 2, 7], 3)
    assert found_in(tmp_path, [victim, *crafted, "x"]) == [2, 0, 3, -1, 1]
    assert IdTable.load(tmp_path).first_rows.tolist() == [0, 1, 2, 3]


def test_tokens_of_words_are_those_of_whole_texts(parts, tmp_path):
    texts = [text for part in parts for text in read_table(part)["title"].to_pylist()]
    model = tokenizer.train([tokenizer.normalize(text) for text in texts] * 3, 60)
    (tmp_path / "tokenizer.model").write_bytes(model.model)
    for part in parts:
        tokenize_part(tmp_path / "tokens.arrow", part, tmp_path / "tokenizer.model", {"title": 9, "brand": 8})
        tokens, table = read_table(tmp_path / "tokens.arrow"), read_table(part)
        for feature, most in (("title", 9), ("brand", 8)):
            whole = model.encode([tokenizer.normalize(text) for text in table[feature].to_pylist()], most)
            assert tokens[f"{feature}_tokens"].to_pylist() == whole


def test_items_are_taken_from_their_parts_in_order(parts, tmp_path):
    model = tokenizer.train(["blue ball some brand unknown"], 40)
    (tmp_path / "tokenizer.model").write_bytes(model.model)
    tokens = [tmp_path / f"tokens{place}.arrow" for place in range(2)]
    for part, to in zip(parts, tokens, strict=True):
        tokenize_part(to, part, tmp_path / "tokenizer.model", {"title": 9, "brand": 8})
    catalog = Catalog(parts, tokens, [0, 3, 7], {"title": 9, "brand": 8})
    for rows in ([0, 2, 3, 6], [5], []):
        table = pa.concat_tables(items_tables(catalog, np.array(rows, np.int64)))
        assert table["item_id"].to_pylist() == ["", *["abcdbef"[row] for row in rows]]
        assert table["title_tokens"].to_pylist()[0] == []
        assert table.column_names == ["item_id", "title_tokens", "brand_tokens", "title", "brand"]


def test_a_sample_of_texts_depends_on_the_items_alone(parts):
    everything = list(sample_texts(parts, ["title", "brand"], 1.0))
    assert len(everything) == 7 + 5  # empty brands are left out
    some = list(sample_texts(parts, ["title"], 0.5))
    assert 0 < len(some) < 7
    assert sorted(sample_texts(parts[::-1], ["title"], 0.5)) == sorted(some)
