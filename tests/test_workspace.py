"""What an earlier run has left is used if it is whole and of the same inputs, named if it is not, and made again."""

import json
import os
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest

from etl.running import workspace as workspaces
from etl.running.records import checksum, read_record, write_record
from etl.running.report import StepReport, write_report
from etl.running.workspace import Step, key_of, open_workspace
from seqrec_jax.errors import InputError

REPORT = StepReport("s", 3, 2, {"bad": 1}, [], 0.5, 7, 9)


class InThisProcess:
    """An executor that counts what it runs."""

    def __init__(self):
        self.ran = []

    def submit(self, function, path):
        self.ran.append(path)
        done = Future()
        try:
            done.set_result(function(path))
        except Exception as error:
            done.set_exception(error)
        return done


def committed(step, task, result, content=b"rows"):
    """A task that has run."""
    step.path(task).write_bytes(content)
    record = {"result": result, "file": checksum(step.path(task))}
    step.commit(task, record)
    return record


def test_a_step_is_kept_under_its_key_and_begun_afresh_under_another(tmp_path):
    step = Step(tmp_path / "s", key_of("a", 1))
    assert not step.is_done
    record = committed(step, "t", {"rows": 2})
    step = Step(tmp_path / "s", key_of("a", 1))
    assert step.finished("t") == record
    assert step.finished("u") is None
    committed(step, "block-0", {})
    (step.folder / "held").mkdir()
    (step.folder / "held" / "hashes.npy").write_bytes(b"table")
    step.finish(REPORT, {"parts": ["t"]})
    assert not step.path("block-0").exists()
    step = Step(tmp_path / "s", key_of("a", 1))
    assert step.is_done
    assert step.damaged() is None
    assert step.report == REPORT
    assert step.result == {"parts": ["t"]}
    step = Step(tmp_path / "s", key_of("a", 2))
    assert not step.is_done
    assert step.finished("t") is None


def test_only_what_a_killed_run_was_writing_is_removed(tmp_path):
    step = Step(tmp_path / "s", "key")
    gone, kept = [".t.arrow.partial-12", ".step.json.partial", "000.text"], [".notes", ".partial", "t.text.txt", ".git"]
    for name in [*gone, *kept[:-1]]:
        (step.folder / name).write_text("")
    (step.folder / ".git").mkdir()
    (step.folder / ".x.partial").mkdir()
    Step(tmp_path / "s", "key")
    assert {path.name for path in step.folder.iterdir()} == {*kept, ".x.partial", "step.json"}


def test_results_without_the_record_of_their_step_are_not_believed(tmp_path):
    step = Step(tmp_path / "s", "one")
    committed(step, "t", {"rows": 2})
    (step.folder / "step.json").unlink()  # as a run that was killed while it removed the folder leaves it
    assert Step(tmp_path / "s", "two").finished("t") is None


def test_an_unfinished_step_goes_on_from_the_same_raw_files_only(tmp_path):
    identity, other = [4, 1, 2, 3], [4, 1, 5, 3]
    committed(Step(tmp_path / "s", "key", [identity]), "t", {})
    assert Step(tmp_path / "s", "key", [identity]).finished("t")
    step = Step(tmp_path / "s", "key", [other])
    assert step.finished("t") is None
    step.finish(REPORT, None)
    assert Step(tmp_path / "s", "key", [identity]).is_done


DAMAGE = {
    "flipped": lambda data: data[:3] + bytes([data[3] ^ 4]) + data[4:],
    "cut": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"\n",
    "empty": lambda data: b"",
    "of zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_output_is_named_and_made_again(tmp_path, damage, caplog):
    step = Step(tmp_path / "s", "key")
    committed(step, "t", {"rows": 2}, b"an Arrow file")
    committed(step, "u", {"rows": 3})
    step.path("t").write_bytes(DAMAGE[damage](b"an Arrow file"))
    step = Step(tmp_path / "s", "key")
    assert step.finished("t") is None
    assert step.finished("u")["result"] == {"rows": 3}
    assert caplog.text.count(f"{step.path('t')}: is not as it was written; it is made again") == 1
    step.finish(REPORT, None)
    step.path("u").write_bytes(DAMAGE[damage](b"rows"))
    step = Step(tmp_path / "s", "key")
    assert step.damaged() == step.path("u")
    step.reopen()
    assert not step.is_done
    assert step.finished("u") is None


def test_an_output_that_is_missing_or_a_link_is_made_again(tmp_path):
    step = Step(tmp_path / "s", "key")
    committed(step, "t", {})
    step.finish(REPORT, None)
    step.path("t").rename(tmp_path / "elsewhere")
    assert step.damaged() == step.path("t")
    step.path("t").symlink_to(tmp_path / "elsewhere")
    assert step.damaged() == step.path("t")
    assert Step(tmp_path / "s", "key").finished("t") is None
    assert (tmp_path / "elsewhere").read_bytes() == b"rows"


RECORDS = {
    **DAMAGE,
    "none": lambda data: b"null",
    "a list": lambda data: b"[1, 2]",
    "a text": lambda data: b'"step"',
    "empty JSON": lambda data: b"{}",
    "of another shape": lambda data: json.dumps({"content": {"key": 1}}).encode(),
    "another number": lambda data: data.replace(b'"rows": 2', b'"rows": 3').replace(b'"key": "k', b'"key": "x'),
    "not UTF-8": lambda data: b"\xff" + data,
    "deep": lambda data: b"[" * 100_000,
}
del RECORDS["longer"]  # A line end more is the same JSON.


@pytest.mark.parametrize("damage", RECORDS)
def test_a_damaged_record_is_named_with_what_to_do(tmp_path, damage, caplog):
    step = Step(tmp_path / "s", "k")
    committed(step, "t", {"rows": 2})
    path = step.folder / "t.json"
    whole = path.read_bytes()
    path.write_bytes(RECORDS[damage](whole))
    step = Step(tmp_path / "s", "k")
    assert step.finished("t") is None
    assert f"{path}: is damaged" in caplog.text
    assert "this part is made again" in caplog.text
    path.write_bytes(whole)
    assert step.finished("t")["result"] == {"rows": 2}
    path = step.folder / "step.json"
    path.write_bytes(RECORDS[damage](path.read_bytes()))
    with pytest.raises(InputError, match=r"step.json: is damaged.*; remove .*/s to redo this step$") as caught:
        Step(tmp_path / "s", "k")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", RECORDS)
def test_damaged_hashes_of_raw_files_and_reports_are_made_again(tmp_path, damage, monkeypatch, caplog):
    monkeypatch.setattr(workspaces, "_NANOSECONDS_TO_SETTLE", 0)
    raw, executor, output = tmp_path / "raw", InThisProcess(), tmp_path / "out"
    raw.write_text("one")
    with open_workspace(output, "shop") as workspace:
        before = workspace.fingerprints([raw], executor, 1)
        path = workspace.folder / "inputs.json"
    path.write_bytes(RECORDS[damage](path.read_bytes().replace(b'"began": ', b'"rows": 2, "began": ')))
    with open_workspace(output, "shop") as workspace:
        assert workspace.fingerprints([raw], executor, 1) == before
    assert f"{path}: is damaged" in caplog.text
    assert "raw files are hashed again" in caplog.text
    assert len(executor.ran) == 2
    report = output / "etl_report.json"
    write_report(output, [REPORT])
    report.write_bytes(RECORDS[damage](report.read_bytes()))
    write_report(output, [REPORT._replace(step="t")])
    assert [step["step"] for step in json.loads(report.read_bytes())["steps"]][-1] == "t"


@pytest.mark.parametrize(
    "text", ["", "\0\0", "{", "[]", "null", "{}", '{"schema_version": [3]}', '{"schema_version": 2}']
)
def test_a_schema_that_is_damaged_or_another_is_refused(tmp_path, text):
    with open_workspace(tmp_path / "out", "shop"):
        pass
    (tmp_path / "out" / ".etl" / "schema.json").write_text(text)
    with (
        pytest.raises(InputError, match=r"schema.json: .*; bind OUTPUT to another folder, or remove .*/out/.etl$"),
        open_workspace(tmp_path / "out", "shop"),
    ):
        pass


def test_a_record_is_what_was_written(tmp_path):
    content = {"b": [1, 2.5, None, "naïve \ud83d"], "a": {"x": True, "y": 1e-300}}
    write_record(tmp_path / "r", content)
    assert read_record(tmp_path / "r", "") == content
    assert read_record(tmp_path / "none", "") is None


def test_a_record_leads_nowhere_else(tmp_path):
    (tmp_path / "other.arrow").write_text("")
    step = Step(tmp_path / "s", "key")
    for name in ("../other", "/etc/passwd", "a/../../other"):
        with pytest.raises(InputError, match=r"its record names .* which is not in it; remove .*/s"):
            step.path(name)
    step._record = {**step._record, "files": {"../other.arrow": [0, 0]}}
    with pytest.raises(InputError, match="which is not in it"):
        step.damaged()


@pytest.mark.parametrize("place", ["out/.etl/shop", "out/.etl/shop/metadata"])
def test_a_link_in_the_workspace_is_not_followed(tmp_path, place):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis").write_text("precious")
    with open_workspace(tmp_path / "out", "shop") as workspace:
        path = tmp_path / place
        if path == workspace.folder:
            path.rmdir()
        path.symlink_to(other)
    with (
        pytest.raises(InputError, match=f"{place}: is a link, which etl does not follow; remove it"),
        open_workspace(tmp_path / "out", "shop") as workspace,
    ):
        workspace.step("metadata", "key")
    assert [path.name for path in other.iterdir()] == ["thesis"]


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A raw file that may have changed at any moment before."""
    monkeypatch.setattr(workspaces, "_NANOSECONDS_TO_SETTLE", 0)
    path = tmp_path / "raw"
    path.write_text("one")
    return path


def hashed(tmp_path, raw, executor):
    with open_workspace(tmp_path / "out", "shop") as workspace:
        return workspace.fingerprints([raw], executor, 1)[raw]


def test_raw_files_are_hashed_once_until_they_change(tmp_path, raw):
    executor = InThisProcess()
    first = hashed(tmp_path, raw, executor)
    assert hashed(tmp_path, raw, executor) == first
    assert executor.ran == [raw]
    raw.write_text("two!")
    os.utime(raw, ns=(0, 0))
    second = hashed(tmp_path, raw, executor)
    assert (second["bytes"], executor.ran) == (4, [raw, raw])
    assert second["sha256"] != first["sha256"]


def change_in_place(raw):
    raw.write_text("two")


def change_by_rename(raw):
    raw.with_name("new").write_text("two")
    os.utime(raw.with_name("new"), ns=(raw.stat().st_atime_ns, raw.stat().st_mtime_ns))
    os.replace(raw.with_name("new"), raw)


def change_by_link(raw):
    raw.with_name("new").write_text("two")
    raw.unlink()
    raw.symlink_to(raw.with_name("new"))


@pytest.mark.parametrize("change", [change_in_place, change_by_rename, change_by_link])
def test_a_change_of_the_same_size_and_time_is_seen(tmp_path, raw, change):
    executor, before = InThisProcess(), raw.stat()
    first = hashed(tmp_path, raw, executor)
    change(raw)
    os.utime(raw, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hashed(tmp_path, raw, executor)["sha256"] != first["sha256"]


def test_a_file_that_changed_within_the_second_is_hashed_again(tmp_path, raw, monkeypatch):
    monkeypatch.setattr(workspaces, "_NANOSECONDS_TO_SETTLE", 10**12)
    executor = InThisProcess()
    assert hashed(tmp_path, raw, executor) == hashed(tmp_path, raw, executor)
    assert len(executor.ran) == 2


@pytest.mark.parametrize(
    "change",
    [change_in_place, change_by_rename, lambda raw: os.truncate(raw, 1), lambda raw: raw.open("a").write("more")],
)
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path, raw, change):
    executor = InThisProcess()
    with open_workspace(tmp_path / "out", "shop") as workspace:
        workspace.fingerprints([raw], executor, 1)
        workspace.check_unchanged()
        change(raw)
        with pytest.raises(InputError, match="raw: has changed while it was read; run the same command again"):
            workspace.check_unchanged()
    with open_workspace(tmp_path / "out", "shop") as workspace:
        workspace.fingerprints([raw], executor, 1)
        workspace.check_unchanged()


def test_a_file_that_changes_while_it_is_hashed_is_named(tmp_path, raw):
    class Slow(InThisProcess):
        def submit(self, function, path):
            done = super().submit(function, path)
            path.write_text("three")
            return done

    with pytest.raises(InputError, match="raw: has changed while it was read"):
        hashed(tmp_path, raw, Slow())
    assert hashed(tmp_path, raw, InThisProcess())["bytes"] == 5


def test_a_worker_that_is_killed_while_raw_files_are_hashed_is_one_line(tmp_path, raw):
    class Broken(InThisProcess):
        def submit(self, function, path):
            done = Future()
            done.set_exception(BrokenProcessPool("terminated abruptly"))
            return done

    with pytest.raises(InputError, match="a worker was killed, perhaps for want of memory; the same command goes on"):
        hashed(tmp_path, raw, Broken())
    assert hashed(tmp_path, raw, InThisProcess())["bytes"] == 3


def test_a_folder_that_is_not_etls_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="is a file; bind OUTPUT to a folder"),
        open_workspace(tmp_path / "file", "shop"),
    ):
        pass
    (tmp_path / "out" / ".etl").mkdir(parents=True)
    (tmp_path / "out" / ".etl" / "mine").write_text("")
    with pytest.raises(InputError, match="is no folder of etl's"), open_workspace(tmp_path / "out", "shop"):
        pass
    assert [path.name for path in (tmp_path / "out" / ".etl").iterdir() if path.name != "lock"] == ["mine"]


def test_a_run_that_was_killed_at_its_very_beginning_is_begun_again(tmp_path):
    folder = tmp_path / "out" / ".etl"
    folder.mkdir(parents=True)
    (folder / "lock").write_bytes(b"\xff\xff")
    (folder / ".schema.json.partial").write_text("{")
    with open_workspace(tmp_path / "out", "shop") as workspace:
        assert workspace.folder.is_dir()


def test_an_output_may_hold_what_etl_has_made_and_nothing_else(tmp_path):
    output = tmp_path / "data"
    for name, inside in (("shop", "manifest.json"), ("others", "etl_report.json"), ("more", ".etl"), ("empty", None)):
        (output / name).mkdir(parents=True)
        if inside:
            (output / name / inside).write_text("{}")
    (output / "tokenizer.model").write_text("")
    (output / "etl_report.json").write_text("{}")
    (output / ".hidden").mkdir()
    (output / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    for make in (lambda path: path.write_text(""), lambda path: (path / "chapter").mkdir(parents=True)):
        make(output / "thesis")
        with (
            pytest.raises(InputError, match="data: is not empty, and etl has not made 'thesis' in it; bind OUTPUT to"),
            open_workspace(output, "shop"),
        ):
            pass
        assert not (output / ".etl").exists()
        (output / "thesis").rename(tmp_path / f"thesis{make}")
    with open_workspace(output, "shop"):
        assert json.loads((output / ".etl" / "schema.json").read_text()) == {"schema_version": 3}
    (output / "thesis").write_text("of a later day")
    with open_workspace(output, "shop"):
        pass
