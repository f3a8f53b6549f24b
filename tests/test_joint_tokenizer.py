"""One tokenizer over several sources."""

import pytest

from etl import tokenizer
from etl.joint_tokenizer import train_tokenizer
from etl.recbole import convert
from seqrec_jax.data.store import open_dataset
from seqrec_jax.errors import InputError


def source(folder, words):
    folder.mkdir()
    lines = "".join(f"{row}\t{word} {word}\n" for row, word in enumerate(words))
    (folder / "x.item").write_text("item_id:token\ttitle:token_seq\n" + lines)
    (folder / "x.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nu\t0\t1\n")
    return str(folder)


def test_words_of_every_source_are_known_and_datasets_share_it(tmp_path):
    first, second = source(tmp_path / "a", ["lantern"] * 30), source(tmp_path / "b", ["thimble"] * 30)
    convert(source=second, output=str(tmp_path / "b_data"), vocab_size=40)
    output = tmp_path / "made" / "all.model"
    model = train_tokenizer([first, str(tmp_path / "b_data")], str(output), vocab_size=60)
    assert output.read_bytes() == model.model
    for word in ("lantern", "thimble"):
        assert len(model.encode([word], 10)[0]) == 1
    assert len(tokenizer.load(tmp_path / "b_data").encode(["lantern"], 10)[0]) > 1
    for name in (first, second):
        convert(source=name, output=f"{name}_made", tokenizer_from=str(output))
    assert open_dataset(f"{first}_made").tokenizer_sha256 == open_dataset(f"{second}_made").tokenizer_sha256
    assert train_tokenizer([first, second], str(tmp_path / "again.model"), vocab_size=60).model == model.model


def test_a_source_that_is_missing_or_has_no_text_is_told_and_nothing_written(tmp_path):
    first = source(tmp_path / "a", ["lantern"])
    for sources, message in (
        ([], "SOURCES = "),
        ([str(tmp_path / "none")], "none"),
        ([first], "none of the text columns"),
    ):
        with pytest.raises(InputError, match=message):
            train_tokenizer(sources, str(tmp_path / "x.model"), features=["maker"])
    assert not (tmp_path / "x.model").exists()
    with pytest.raises(InputError, match="is a folder"):
        train_tokenizer([first], str(tmp_path))


def test_only_a_tokenizer_is_replaced_and_a_link_stays(tmp_path):
    first = source(tmp_path / "a", ["lantern"] * 30)
    for name, text in (("thesis.txt", "precious"), ("x.inter", "user_id:token\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=f"{name}: is there and is no tokenizer; bind OUTPUT to another file"):
            train_tokenizer([first], str(tmp_path / name), vocab_size=40)
        assert (tmp_path / name).read_text() == text
    (tmp_path / "link.model").symlink_to(tmp_path / "disk.model")
    with pytest.raises(InputError, match="is a link to nothing"):
        train_tokenizer([first], str(tmp_path / "link.model"), vocab_size=40)
    made = train_tokenizer([first], str(tmp_path / "disk.model"), vocab_size=40).model
    train_tokenizer([source(tmp_path / "b", ["thimble"] * 30)], str(tmp_path / "link.model"), vocab_size=40)
    assert (tmp_path / "link.model").is_symlink()
    assert (tmp_path / "disk.model").read_bytes() != made


def test_a_damaged_source_is_named(tmp_path):
    convert(source=source(tmp_path / "a", ["lantern"] * 30), output=str(tmp_path / "data"), vocab_size=40)
    items = tmp_path / "data" / "items.arrow"
    items.write_bytes(bytes(items.stat().st_size))
    with pytest.raises(InputError, match=r"data: is damaged .*no Arrow IPC file"):
        train_tokenizer([str(tmp_path / "data")], str(tmp_path / "x.model"), vocab_size=40)
