"""A baseline that is trained where it is not yet."""

import gin
import pytest

from seqrec_jax.errors import InputError
from seqrec_jax.tasks import child
from seqrec_jax.tasks import trained_baseline as module
from seqrec_jax.tasks.trained_baseline import trained_baseline


class FakeChild:
    """A run that is finished at once, or that fails."""

    trains, begun = False, []

    def __init__(self, command, run_dir, cpus=None):
        FakeChild.begun.append(command)
        if FakeChild.trains:
            run_dir.mkdir()
            (run_dir / "results.json").write_text("{}")

    def status(self):
        return 0 if FakeChild.trains else 2

    def stop(self):
        pass

    def last_line(self):
        return "error: DATASET has no interactions"


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(child, "Child", FakeChild)
    monkeypatch.setattr(child, "SECONDS_BETWEEN_LOOKS", 0.0)
    FakeChild.trains, FakeChild.begun = False, []
    gin.parse_config("Tracker.uri = None")


def test_it_is_trained_once_on_the_split_that_is_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "open_checkpoint", lambda run_dir, dataset: (run_dir, dataset))
    FakeChild.trains = True
    folder = str(tmp_path / "sasrec")
    for _ in range(2):
        assert trained_baseline(folder, "shop") == (folder, "shop")
    (command,) = FakeChild.begun
    assert "--gin_file=gin/sasrec.gin" in command
    for bound in ("DATASET = 'shop'", f"RUN_DIR = {folder!r}", "SPLIT = @leave_one_out", "Tracker.uri = None"):
        assert f"--gin_bindings={bound}" in command


def test_what_it_cannot_be_trained_on_is_told(tmp_path):
    with pytest.raises(InputError, match="SASRec: DATASET has no interactions"):
        trained_baseline(str(tmp_path / "sasrec"), "nothing")
