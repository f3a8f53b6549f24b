import json

import pytest

from etl.raw.item_files import ItemFiles, read_items
from seqrec_jax.errors import InputError

TEXTS = {"texts": {"title": "name", "brand": "maker"}, "max_tokens": {"title": 40, "brand": 8}}


def read(path, text, **bindings):
    path.write_text(text)
    files = ItemFiles([path.name], "id", **(TEXTS | bindings))
    (block,) = files.blocks(path, 1 << 20)
    return read_items(block, files)


def test_values_that_are_no_texts_become_texts_or_nothing(tmp_path):
    values = ["Ball", 7, 1.5, None, True, ["a"], {"b": 1}, "\ud83d\ude00", "\ud83d"]
    lines = [json.dumps({"id": i + 1, "name": value}) for i, value in enumerate(values)]
    items, bad, n_lines, left_out = read(tmp_path / "items.jsonl", "\n".join(lines))
    assert items["title"].to_pylist() == ["Ball", "7", "1.5", "", "", "", "", "\U0001f600", "?"]
    assert items["item_id"].to_pylist() == [str(i + 1) for i in range(9)]
    assert items["brand"].to_pylist() == [""] * 9
    assert (bad, n_lines, left_out) == ([], 9, {})


def test_items_without_an_id_are_named(tmp_path):
    lines = ['{"name": "a"}', '{"id": "", "name": "b"}', json.dumps({"id": "x" * 129}), '{"id": "c"}']
    items, bad, _, _ = read(tmp_path / "items.json", "\n".join(lines))
    assert items["item_id"].to_pylist() == ["c"]
    assert [(row.line, row.reason) for row in bad] == [
        (1, "item id is empty"),
        (2, "item id is empty"),
        (3, "item id is longer than 128 bytes"),
    ]


def test_required_texts_refuse_items(tmp_path):
    text = "id,name,maker\na,Ball,X\nb,,X\nc,getTime(),X\nd,\u00a0 ,X\n"
    items, _, n_lines, left_out = read(tmp_path / "items.csv", text, required="title", refused_text="getTime")
    assert items["item_id"].to_pylist() == ["a"]
    assert left_out == {"title is empty": 2, "title contains 'getTime'": 1}
    assert n_lines == 5


def test_the_first_three_short_categories_are_kept(tmp_path):
    lists = [["a", "b" * 40, "c", 4, "d", "e"], "text", None, ["f"], []]
    lines = [json.dumps({"id": str(i), "name": "n", "categories": each}) for i, each in enumerate(lists)]
    items, _, _, _ = read(tmp_path / "items.jsonl", "\n".join(lines), categories="categories")
    found = list(zip(*(items[f"category_l{level}"].to_pylist() for level in (1, 2, 3)), strict=True))
    assert found == [("a", "c", "d"), (None, None, None), (None, None, None), ("f", None, None), (None, None, None)]


def test_features_must_be_bound_alike():
    with pytest.raises(InputError, match="\(MAX_TOKENS\) must name the same features, not title and title, brand"):
        ItemFiles(["x.csv"], texts={"title": "name"}, max_tokens={"title": 40, "brand": 8})
