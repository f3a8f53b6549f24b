"""Files that appear whole or not at all, and arrays from strangers."""

import io
import os
import zipfile

import numpy as np
import pytest

from seqrec_jax import files
from seqrec_jax.errors import InputError

ARRAYS = {"items": np.arange(12, dtype=np.int32).reshape(3, 4), "name": np.array("abc"), "empty": np.zeros((0, 3))}


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    files.write_text(path, "grün\n")
    files.write_text(path, "blau\n")
    assert path.read_bytes() == b"blau\n"
    assert [of.name for of in tmp_path.iterdir()] == ["a.json"]


def test_what_is_cut_short_changes_nothing(tmp_path):
    path = tmp_path / "a.json"
    files.write_text(path, "before\n")

    def fill():
        with files.replacing(path) as file:
            file.write(b"half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fill()
    assert path.read_text() == "before\n"
    assert [of.name for of in tmp_path.iterdir()] == ["a.json"]


def test_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("sync"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("rename"), replace(*paths)))
    files.write_bytes(tmp_path / "a", b"x")
    assert calls == ["sync", "rename", "sync"]


@pytest.mark.parametrize("content", [b"", b"{", b"\0\0", b"[" * 100_000, b"\xff"])
def test_damaged_json_is_a_line(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"results\.json: is damaged .*; train again"):
        files.read_json(path, "train again")


def test_arrays_come_back(tmp_path):
    files.write_arrays(tmp_path / "a.npz", ARRAYS)
    found = files.read_arrays(tmp_path / "a.npz")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def npz(path, members, packed=False):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def npy(array, **header):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array) | header)
    return file.getvalue() + array.tobytes()


@pytest.mark.parametrize("header", [{"shape": (10**12,)}, {"shape": (2,)}, {"shape": (-3,)}, {"descr": "|O"}])
def test_an_array_that_is_not_what_it_says_is_refused(tmp_path, header):
    npz(tmp_path / "a.npz", {"items.npy": npy(np.arange(3), **header)})
    with pytest.raises(ValueError, match="an array of"):
        files.read_arrays(tmp_path / "a.npz")


def test_a_bomb_is_not_unpacked(tmp_path):
    npz(tmp_path / "a.npz", {"items.npy": npy(np.zeros(10_000_000))}, packed=True)
    with pytest.raises(ValueError, match=r"more than its bytes"):
        files.read_arrays(tmp_path / "a.npz")


def test_a_packed_array_is_refused(tmp_path):
    npz(tmp_path / "a.npz", {"items.npy": npy(np.random.default_rng(0).integers(0, 256, 1000, np.uint8))}, packed=True)
    with pytest.raises(ValueError, match=r"packed|more than its bytes"):
        files.read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("place", [0, 30, 60, 200, -1, -20])
def test_a_flipped_bit_is_seen(tmp_path, place):
    path = tmp_path / "a.npz"
    files.write_arrays(path, {"items": np.arange(100)})
    content = bytearray(path.read_bytes())
    content[place] ^= 8
    path.write_bytes(content)
    try:
        found = files.read_arrays(path)
    except ValueError:
        return
    np.testing.assert_array_equal(found.get("items", np.arange(100)), np.arange(100))


def test_json_that_would_take_all_memory_or_the_stack_is_a_line(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    for content in (b"[" * 101 + b"]" * 101, b'{"a":' * 101 + b"1" + b"}" * 101):
        path.write_bytes(content)
        with pytest.raises(InputError, match="it is too large, or too deep"):
            files.read_json(path, "train again")
    path.write_bytes(b"[" * 100 + b"]" * 100)
    assert files.read_json(path, "") is not None
    monkeypatch.setattr(files, "JSON_AT_MOST", 199)
    with pytest.raises(InputError, match="it is too large, or too deep"):
        files.read_json(path, "train again")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: None])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    make(path := tmp_path / "a.npz")
    with pytest.raises(InputError, match="it is no file"):
        files.read_json(path, "train again")
    with pytest.raises((ValueError, FileNotFoundError), match=r"it is no file|No such file"):
        files.read_arrays(path)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<i8', 'fortran_order': False, 'shape': (" + b"(" * 60_000 + b"), }",
        b"{'descr': '<i8', 'fortran_order': False, 'shape': (10**8,), }",
        b"{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (3,), }",
        b"{'descr': '<U999999999', 'fortran_order': False, 'shape': (3,), }",
        b"{'descr': '<U0', 'fortran_order': False, 'shape': (3,), }",
        b"{'descr': '<i8', 'fortran_order': False, 'shape': (0, 9" + b"9" * 30 + b"), }",
        b"__import__('os').abort()",
    ],
)
def test_a_header_is_read_and_not_evaluated(tmp_path, header):
    content = b"\x93NUMPY\x01\x00" + (len(header) % 65_536 + 1).to_bytes(2, "little") + header + b"\n" + bytes(24)
    npz(tmp_path / "a.npz", {"items.npy": content})
    with pytest.raises(ValueError, match=r"an array of|too large|maximum|int"):
        files.read_arrays(tmp_path / "a.npz")
