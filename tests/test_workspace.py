import os

import pytest

from etl.running.report import StepReport
from etl.running.workspace import Step, key_of, open_workspace
from seqrec_jax.errors import InputError

REPORT = StepReport("s", 3, 2, {"bad": 1}, [], 0.5, 7, 9)


class InThisProcess:
    """An executor that counts what it runs."""

    def __init__(self):
        self.ran = []

    def map(self, function, paths):
        self.ran += paths
        return map(function, paths)


def test_a_step_is_kept_under_its_key_and_begun_afresh_under_another(tmp_path):
    step = Step(tmp_path / "s", key_of("a", 1))
    assert not step.is_done
    step.commit("t", {"rows": 2})
    (step.folder / ".t.arrow.partial-1").write_text("half")
    step = Step(tmp_path / "s", key_of("a", 1))
    assert step.finished("t") == {"rows": 2}
    assert step.finished("u") is None
    assert not (step.folder / ".t.arrow.partial-1").exists()
    step.finish(REPORT, {"parts": ["t"]})
    step = Step(tmp_path / "s", key_of("a", 1))
    assert step.is_done
    assert step.report == REPORT
    assert step.result == {"parts": ["t"]}
    step = Step(tmp_path / "s", key_of("a", 2))
    assert not step.is_done
    assert step.finished("t") is None


def test_a_damaged_record_is_named_with_what_to_do(tmp_path):
    step = Step(tmp_path / "s", "key")
    (step.folder / "step.json").write_text("{")
    with pytest.raises(InputError, match=r"step.json: is damaged .*; remove .*/s to redo this step"):
        Step(tmp_path / "s", "key")


def test_raw_files_are_hashed_once_until_they_change(tmp_path):
    raw, executor = tmp_path / "raw", InThisProcess()
    raw.write_text("one")
    with open_workspace(tmp_path / "out", "shop") as workspace:
        (first,) = workspace.fingerprints([raw], executor)
        assert workspace.fingerprints([raw], executor) == [first]
    with open_workspace(tmp_path / "out", "shop") as workspace:
        assert workspace.fingerprints([raw], executor) == [first]
        assert executor.ran == [raw]
        raw.write_text("two!")
        os.utime(raw, ns=(0, 0))
        (second,) = workspace.fingerprints([raw], executor)
    assert (second["bytes"], executor.ran) == (4, [raw, raw])
    assert second["sha256"] != first["sha256"]


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
